//! IPv6 packets of a random sequence.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use overlay_common::family::V6;
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    family::SequenceFamily,
    packets::Header as _,
    packets6::{
        DESTINATION_OPTIONS, Extension, FRAGMENT, FRAGMENT_LEN, HOP_BY_HOP, ICMP6, IP6_LEN, Ip6,
        ROUTING, upper_layer,
    },
    sequence::{BACKEND, Mac, SERVICE_PORT},
};
use crate::{
    lab::{Lab, ipv6::ping_matrix},
    netns::Namespace,
};

/// Why something that arrives is not compared, and how it is recognised. The packet is whole, from
/// the IP header on.
type Exception = (&'static str, fn(&[u8]) -> bool);

const NOT_COMPARED: [Exception; 2] = [
    (
        "\"Fragment reassembly time exceeded\" comes when a timer of the node ends.",
        |packet| icmp_kind(packet) == Some([3, 1]),
    ),
    (
        "Multicast listener reports, router and neighbour discovery come by timers, redirects as \
         often as a timer allows.",
        |packet| matches!(icmp_kind(packet), Some([130..=137 | 143, _])),
    ),
];

/// Why a field is not compared, and how it is erased.
type Erasure = (&'static str, fn(&mut [u8]));

const ERASED: [Erasure; 2] = [
    (
        "The flow label of an ICMP error is the node's choice.",
        |packet| {
            if matches!(icmp_kind(packet), Some([0..=127, _]))
                && !V6::PODS.contains(&source(packet))
            {
                packet[1] &= 0xf0;
                packet[2..4].fill(0);
            }
        },
    ),
    (
        "Connection tracking puts fragments together and makes others, whose identification is \
         random.",
        |packet| {
            if packet.get(6) == Some(&FRAGMENT)
                && let Some(id) = packet.get_mut(IP6_LEN + 4..IP6_LEN + 8)
            {
                id.fill(0);
            }
        },
    ),
];

fn icmp_kind(packet: &[u8]) -> Option<[u8; 2]> {
    let (protocol, at) = upper_layer(packet)?;
    let kind = packet.get(at..)?.first_chunk()?;
    (protocol == ICMP6).then_some(*kind)
}

fn source(packet: &[u8]) -> Ipv6Addr {
    let octets = packet.get(8..24).and_then(|octets| octets.try_into().ok());
    octets.map_or(Ipv6Addr::UNSPECIFIED, |octets: [u8; 16]| octets.into())
}

const fn pod(node: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 5, node, 0, 0, 0, host)
}

impl SequenceFamily for V6 {
    type Address = Ipv6Addr;
    type Ip = Ip6;

    const PODS: [Ipv6Addr; 4] = [pod(1, 2), pod(1, 3), pod(2, 2), pod(2, 3)];
    const SERVICE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1);
    const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
    /// That of `ff02::fb` (RFC 2464 §7).
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 0xfb];
    const MTU: usize = 1430;
    const LEN: usize = IP6_LEN;
    const FRAGMENT_LEN: usize = FRAGMENT_LEN;
    const ICMP: u8 = ICMP6;
    const ECHO: [u8; 2] = [128, 129];
    const SYSCTLS: &[(&str, &str)] = &[
        // Errors are compared, too: none may be held back.
        ("net/ipv6/icmp/ratelimit", "0"),
        ("net/ipv4/icmp_msgs_per_sec", "1000000"),
        ("net/ipv4/icmp_msgs_burst", "1000000"),
        // Nor may fragments of which one is missing get in the way of others, or time out.
        ("net/ipv6/ip6frag_high_thresh", "268435456"),
        ("net/ipv6/ip6frag_time", "600"),
        ("net/netfilter/nf_conntrack_frag6_high_thresh", "268435456"),
        ("net/netfilter/nf_conntrack_frag6_timeout", "600"),
    ];
    const DEAF: &str = "meta protocol ip6 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } \
                        ip6 hoplimit 255 accept; meta protocol ip6 drop;";

    fn header(random: &mut StdRng, number: u16, ends: [Ipv6Addr; 2], protocol: u8) -> Ip6 {
        Ip6 {
            source: ends[0],
            destination: ends[1],
            protocol,
            hop_limit: 64,
            class: if random.random() { 0 } else { random.random() },
            label: u32::from(number),
            extensions: Vec::new(),
        }
    }

    fn fragment(ip: &Ip6, number: u16, offset: u16, more: bool) -> Ip6 {
        let mut ip = ip.clone();
        ip.extensions
            .push(Extension::fragment(offset, more, number.into()));
        ip
    }

    fn add_options(random: &mut StdRng, ip: &mut Ip6) {
        let padding = || Extension::options(DESTINATION_OPTIONS, &[]);
        ip.extensions = match random.random_range(0..9) {
            0 => vec![padding()],
            1 => vec![Extension::options(HOP_BY_HOP, &[])],
            // Router alert: MLD (RFC 2711).
            2 => vec![Extension::options(HOP_BY_HOP, &[5, 2, 0, 0])],
            // An option that nobody knows, with what to do about it in the two highest bits: skip
            // it, drop the packet, drop it and say so.
            3 => {
                let option = random.random_range(0..4) << 6 | 0x1e;
                vec![Extension::options(HOP_BY_HOP, &[option, 2, 0, 0])]
            }
            4 => vec![Extension::options(DESTINATION_OPTIONS, &[0x9e, 2, 0, 0])],
            // A routing header with nowhere left to go.
            5 => vec![Extension {
                kind: ROUTING,
                rest: vec![0, 4, 0, 0, 0, 0, 0],
            }],
            // The only fragment.
            6 => vec![Extension::fragment(0, false, 77)],
            7 => vec![
                Extension::options(HOP_BY_HOP, &[]),
                padding(),
                Extension::fragment(0, false, 78),
            ],
            // An option with data, 16 bytes in all.
            _ => vec![Extension::options(
                DESTINATION_OPTIONS,
                &[0x1e, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            )],
        };
    }

    fn damage(random: &mut StdRng, packet: &mut Vec<u8>) {
        match random.random_range(0..6) {
            // A checksum of the transport header, or what it covers.
            0 => {
                let last = packet.len() - 1;
                packet[last] ^= 0x55;
            }
            1 => packet[0] = 0x45,
            // The header says more bytes than there are, or less.
            2 => packet[4] ^= 0x02,
            3 => packet[4..6].fill(0),
            4 => packet.extend([0xee; 30]),
            // An extension header that is not there.
            _ => packet[6] = *[0, 43, 44, 60].choose(random).unwrap_or(&60),
        }
    }

    fn odd_addresses(random: &mut StdRng, ip: &mut Ip6, neighbour: Ipv6Addr) -> Mac {
        // No link-local source: errors about it would wait for a neighbour that never answers, and fill
        // the ICMP socket of the CPU, which has to send all others.
        match random.random_range(0..7) {
            0 => ip.source = neighbour,
            1 => ip.source = pod(9, 9),
            2 => ip.source = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
            3 => ip.destination = Ipv6Addr::LOCALHOST,
            4 => ip.destination = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a05, 0x0102),
            5 => {
                ip.destination = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
                return Mac::Multicast;
            }
            _ => {
                ip.destination = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0xfb);
                return Mac::Multicast;
            }
        }
        Mac::Gateway
    }

    fn other_protocol(random: &mut StdRng, ip: &mut Ip6, payload: &[u8]) -> Vec<u8> {
        // SCTP, GRE, IPv4, "no next header", an experiment.
        ip.protocol = *[132, 47, 4, 59, 253, ICMP6].choose(random).unwrap_or(&132);
        if ip.protocol == ICMP6 {
            // Errors about nothing, node information, an experiment.
            let kind = *[1, 3, 139, 200].choose(random).unwrap_or(&139);
            ip.icmp(kind, 0, payload)
        } else {
            payload.to_vec()
        }
    }

    fn add_pods(lab: &Lab) -> Result<Vec<Namespace>> {
        let mut pods = Vec::new();
        for node in lab.nodes() {
            pods.push(node.add_pod6('a')?);
            pods.push(node.add_pod6('b')?);
        }
        ping_matrix(&pods)?;
        let addresses: Vec<_> = pods.iter().map(|pod| pod.address).collect();
        ensure!(addresses == Self::PODS, "the pods have {addresses:?}");
        Ok(pods.into_iter().map(|pod| pod.namespace).collect())
    }

    fn service_rules() -> String {
        let (address, (backend, port)) = (Self::SERVICE, BACKEND);
        format!(
            "table ip6 services {{ chain translate {{ type nat hook prerouting priority dstnat; \
             ip6 daddr {address} meta l4proto {{ tcp, udp }} th dport {SERVICE_PORT} \
             dnat to [{}]:{port}; }}; }}",
            Self::PODS[backend]
        )
    }

    fn is_compared(packet: &[u8]) -> bool {
        !NOT_COMPARED.iter().any(|(_, applies)| applies(packet))
    }

    fn erase(packet: &mut [u8]) {
        for (_, erase) in ERASED {
            erase(packet);
        }
    }
}
