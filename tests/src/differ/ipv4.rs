//! IPv4 packets of a random sequence.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use overlay_common::family::V4;
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    family::SequenceFamily,
    packets::{
        DONT_FRAGMENT, Header as _, ICMP, IP_LEN, Ip, MORE_FRAGMENTS, has_valid_header_check,
        header_len, set_header_check,
    },
    sequence::{BACKEND, Mac, SERVICE_PORT},
};
use crate::{lab::Lab, netns::Namespace};

/// Why something that arrives is not compared, and how it is recognised. The packet is whole, from
/// the IP header on.
type Exception = (&'static str, fn(&[u8]) -> bool);

const NOT_COMPARED: [Exception; 3] = [
    (
        "A wrong header checksum is noticed by the first IP layer: the node's, or for a fast packet \
         the pod's. No socket but a packet socket sees the difference.",
        |packet| !has_valid_header_check(packet),
    ),
    (
        "\"Fragment reassembly time exceeded\" comes when a timer of the node ends.",
        |packet| icmp_kind(packet) == Some([11, 1]),
    ),
    (
        "IGMP reports of the node's bridge come by timers, too.",
        |packet| packet.get(9) == Some(&2),
    ),
];

/// Why a field is not compared, and how it is erased.
type Erasure = (&'static str, fn(&mut [u8]));

const ERASED: [Erasure; 1] = [(
    "The identification, and with it the checksum, of an ICMP error is the node's choice.",
    |packet| {
        if matches!(icmp_kind(packet), Some([3 | 5 | 11 | 12, _]))
            && !V4::PODS.contains(&source(packet))
        {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
    },
)];

fn icmp_kind(packet: &[u8]) -> Option<[u8; 2]> {
    let message = packet.get(header_len(packet)..)?;
    (packet.get(9) == Some(&ICMP)).then_some(*message.first_chunk()?)
}

fn source(packet: &[u8]) -> Ipv4Addr {
    let octets = packet.get(12..16).and_then(|octets| octets.try_into().ok());
    octets.map_or(Ipv4Addr::UNSPECIFIED, |octets: [u8; 4]| octets.into())
}

impl SequenceFamily for V4 {
    type Address = Ipv4Addr;
    type Ip = Ip;

    const PODS: [Ipv4Addr; 4] = [
        Ipv4Addr::new(10, 5, 1, 2),
        Ipv4Addr::new(10, 5, 1, 3),
        Ipv4Addr::new(10, 5, 2, 2),
        Ipv4Addr::new(10, 5, 2, 3),
    ];
    const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
    const ETHERTYPE: [u8; 2] = [8, 0];
    /// That of 224.0.0.251 (RFC 1112 §6.4).
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 0xfb];
    const MTU: usize = 1450;
    const LEN: usize = IP_LEN;
    const FRAGMENT_LEN: usize = 0;
    const ICMP: u8 = ICMP;
    const ECHO: [u8; 2] = [8, 0];
    const SYSCTLS: &[(&str, &str)] = &[
        // Errors are compared, too: none may be held back.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv4/icmp_msgs_per_sec", "1000000"),
        ("net/ipv4/icmp_msgs_burst", "1000000"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
        // Nor may fragments of which one is missing get in the way of others, or time out.
        ("net/ipv4/ipfrag_high_thresh", "268435456"),
        ("net/ipv4/ipfrag_time", "600"),
    ];
    const DEAF: &str = "meta protocol ip drop;";

    fn header(random: &mut StdRng, number: u16, ends: [Ipv4Addr; 2], protocol: u8) -> Ip {
        let fragment = if random.random() { DONT_FRAGMENT } else { 0 };
        Ip {
            source: ends[0],
            destination: ends[1],
            protocol,
            ttl: 64,
            tos: if random.random() { 0 } else { random.random() },
            id: number,
            fragment,
            options: Vec::new(),
        }
    }

    fn fragment(ip: &Ip, _: u16, offset: u16, more: bool) -> Ip {
        let more = if more { MORE_FRAGMENTS } else { 0 };
        Ip {
            fragment: offset | more,
            ..ip.clone()
        }
    }

    fn add_options(random: &mut StdRng, ip: &mut Ip) {
        ip.options = match random.random_range(0..4) {
            0 => vec![1, 1, 1, 0],
            // Record route, with room for two addresses.
            1 => vec![7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            // Router alert.
            2 => vec![148, 4, 0, 0],
            // Loose source route to the destination itself.
            _ => [&[131, 7, 8][..], &ip.destination.octets(), &[0]].concat(),
        };
    }

    fn damage(random: &mut StdRng, packet: &mut Vec<u8>) {
        match random.random_range(0..7) {
            // A checksum of the transport header, or what it covers.
            0 => {
                let last = packet.len() - 1;
                packet[last] ^= 0x55;
            }
            1 => packet[10] ^= 0x55,
            2 => packet[0] = 0x65,
            3 => {
                packet[0] = 0x44;
                set_header_check(packet);
            }
            // The header says more bytes than there are, or less.
            4 => {
                packet[2] ^= 0x02;
                set_header_check(packet);
            }
            5 => packet.extend([0xee; 30]),
            // A reserved flag.
            _ => {
                packet[6] |= 0x80;
                set_header_check(packet);
            }
        }
    }

    fn odd_addresses(random: &mut StdRng, ip: &mut Ip, neighbour: Ipv4Addr) -> Mac {
        match random.random_range(0..6) {
            0 => ip.source = neighbour,
            1 => ip.source = Ipv4Addr::new(10, 5, 9, 9),
            2 => ip.source = Ipv4Addr::new(192, 0, 2, 1),
            3 => {
                ip.destination = Ipv4Addr::BROADCAST;
                return Mac::Broadcast;
            }
            4 => {
                ip.destination = Ipv4Addr::new(224, 0, 0, 251);
                return Mac::Multicast;
            }
            _ => {
                // Of the pod's own subnet or the other node's.
                let [a, b, c, _] = ip.destination.octets();
                ip.destination = Ipv4Addr::new(a, b, c, 255);
                return Mac::Broadcast;
            }
        }
        Mac::Gateway
    }

    fn other_protocol(random: &mut StdRng, ip: &mut Ip, payload: &[u8]) -> Vec<u8> {
        ip.protocol = *[132, 47, 50, 4, 253, ICMP].choose(random).unwrap_or(&132);
        if ip.protocol == ICMP {
            let kind = *[5, 13, 17].choose(random).unwrap_or(&13);
            ip.icmp(kind, 0, payload)
        } else {
            payload.to_vec()
        }
    }

    fn add_pods(lab: &Lab) -> Result<Vec<Namespace>> {
        lab.add_pods(2)?;
        lab.ping_matrix()?;
        let pods: Vec<_> = lab.pods().into_iter().map(|(_, pod)| pod).collect();
        let addresses: Vec<_> = pods.iter().map(|pod| pod.address).collect();
        ensure!(addresses == Self::PODS, "the pods have {addresses:?}");
        Ok(pods.into_iter().map(|pod| pod.namespace).collect())
    }

    fn service_rules() -> String {
        let (address, (backend, port)) = (Self::SERVICE, BACKEND);
        // Protocols without ports must not reach the rule.
        format!(
            "table ip services {{ chain translate {{ type nat hook prerouting priority dstnat; \
             ip daddr {address} meta l4proto {{ tcp, udp }} th dport {SERVICE_PORT} \
             dnat to {}:{port}; }}; }}",
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
