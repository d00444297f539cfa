//! What is odd about IPv6 packets.

use etherparse::IpNumber;
use overlay_common::{family::V6, outcome::Outcome};

use super::{Odd, Oddities};
use crate::prog::{
    fixture::{Cluster as _, VXLAN_PORT},
    packet::{ETH_LEN, Extension, Outer, Packet, Transport},
};

const HOP_BY_HOP: IpNumber = IpNumber::IPV6_HEADER_HOP_BY_HOP;
const DESTINATION: IpNumber = IpNumber::IPV6_DESTINATION_OPTIONS;

/// The packet behind these extension headers.
fn behind(packet: &Packet<V6>, extensions: &[Extension]) -> Packet<V6> {
    packet
        .clone()
        .with(|p| p.ip.extensions = extensions.to_vec())
}

/// Every kind of extension header, by name.
fn each_extension() -> [(&'static str, Extension); 4] {
    [
        ("hop-by-hop options", Extension::options(HOP_BY_HOP, 8)),
        ("destination options", Extension::options(DESTINATION, 16)),
        ("a routing header", Extension::routing()),
        ("an authentication header", Extension::authentication()),
    ]
}

/// Hop-by-hop options, a routing header, an atomic fragment and authentication: as many headers as
/// the programs follow.
fn four_extensions() -> [Extension; 4] {
    [
        Extension::options(HOP_BY_HOP, 24),
        Extension::routing(),
        Extension::fragment(0, false),
        Extension::authentication(),
    ]
}

fn five_extensions() -> Vec<Extension> {
    let last = Extension::options(DESTINATION, 8);
    four_extensions().into_iter().chain([last]).collect()
}

impl Oddities for V6 {
    const ARP: Outcome = Outcome::Unserved;

    fn without_flow(packet: &Packet<V6>) -> Vec<Odd<Packet<V6>>> {
        let icmp = |head: [u8; 2]| {
            packet.clone().with(|p| {
                p.transport = Transport::Icmp;
                p.payload.splice(..0, head);
            })
        };
        let protocol = |number| {
            packet
                .clone()
                .with(|p| p.transport = Transport::Other(number))
        };
        let mut odd = vec![
            (Outcome::Protocol, "GRE", protocol(IpNumber::GRE)),
            (
                Outcome::Protocol,
                "encrypted",
                protocol(IpNumber::ENCAPSULATING_SECURITY_PAYLOAD),
            ),
            (
                Outcome::Protocol,
                "nothing behind the header",
                protocol(IpNumber::IPV6_NO_NEXT_HEADER),
            ),
            (Outcome::Protocol, "IPv4's ICMP", protocol(IpNumber::ICMP)),
            (Outcome::Protocol, "an error message", icmp([1, 4])),
            (Outcome::Protocol, "packet too big", icmp([2, 0])),
            (
                Outcome::Protocol,
                "an echo request with a code other than 0",
                icmp([128, 1]),
            ),
            (
                Outcome::Protocol,
                "a neighbour solicitation",
                icmp([135, 0]),
            ),
            (
                Outcome::Protocol,
                "a neighbour advertisement",
                icmp([136, 0]),
            ),
            (
                Outcome::Protocol,
                "a multicast listener report",
                icmp([143, 0]),
            ),
            (
                Outcome::IpOptions,
                "behind four extension headers",
                behind(packet, &four_extensions()),
            ),
        ];
        for (name, extension) in each_extension() {
            odd.push((Outcome::IpOptions, name, behind(packet, &[extension])));
        }
        for (name, offset, more) in [
            ("the first fragment", 0, true),
            ("a fragment that is the whole packet", 0, false),
            ("the last fragment", 1, false),
            ("a fragment at the largest offset", 0x1fff, true),
        ] {
            let fragment = Extension::fragment(offset, more);
            odd.push((Outcome::Fragment, name, behind(packet, &[fragment])));
        }
        odd
    }

    fn outers(outer: &Outer<V6>) -> Vec<Odd<Outer<V6>>> {
        let behind = |extension| {
            let mut outer = outer.clone();
            outer.ip.extensions = vec![extension];
            outer
        };
        vec![
            (
                Outcome::NotOverlay,
                "destination options",
                behind(Extension::options(DESTINATION, 8)),
            ),
            (
                Outcome::NotOverlay,
                "the first fragment",
                behind(Extension::fragment(0, true)),
            ),
        ]
    }

    fn injections(injection: &Packet<V6>) -> Vec<(&'static str, Packet<V6>)> {
        let many = vec![Extension::options(DESTINATION, 8); 12];
        let mut injections = vec![
            (
                "the first fragment",
                behind(injection, &[Extension::fragment(0, true)]),
            ),
            (
                "a fragment that is all of it",
                behind(injection, &[Extension::fragment(0, false)]),
            ),
            (
                "the first fragment with the UDP header alone",
                behind(injection, &[Extension::fragment(0, true)]).with(|p| p.payload.clear()),
            ),
            (
                "behind as many options as fit",
                behind(injection, &[Extension::options(DESTINATION, 2_048)]),
            ),
            (
                "the first fragment behind hop-by-hop options",
                behind(
                    injection,
                    &[
                        Extension::options(HOP_BY_HOP, 8),
                        Extension::fragment(0, true),
                    ],
                ),
            ),
            (
                "behind four extension headers",
                behind(injection, &four_extensions()),
            ),
            (
                "behind five extension headers",
                behind(injection, &five_extensions()),
            ),
            ("behind twelve extension headers", behind(injection, &many)),
        ];
        for (name, extension) in each_extension() {
            injections.push((name, behind(injection, &[extension])));
        }
        injections
    }

    fn harmless(injection: &Packet<V6>) -> Vec<Odd<Packet<V6>>> {
        let other_port = injection.clone().with(|p| {
            p.transport = Transport::Udp { src: 9, dst: 53 };
        });
        let other_node = injection.clone().with(|p| p.dst = V6::STRANGER.into());
        let tcp = injection.clone().with(|p| {
            p.transport = Transport::Tcp {
                src: 9,
                dst: VXLAN_PORT,
                flags: 0,
                options: 0,
            };
        });
        let options = [Extension::options(HOP_BY_HOP, 8)];
        let mut harmless = vec![
            (
                Outcome::Fragment,
                "a later fragment to a peer: without the first it is never whole",
                behind(injection, &[Extension::fragment(1, false)]),
            ),
            (
                Outcome::IpOptions,
                "a later fragment to a peer, behind hop-by-hop options",
                behind(
                    injection,
                    &[options[0].clone(), Extension::fragment(1, true)],
                ),
            ),
            (
                Outcome::IpOptions,
                "a peer at another port, behind four extension headers",
                behind(&other_port, &four_extensions()),
            ),
            (
                Outcome::IpOptions,
                "TCP to the tunnel's port of a peer, behind four extension headers",
                behind(&tcp, &four_extensions()),
            ),
            (
                Outcome::IpOptions,
                "the tunnel's port at no peer, behind five extension headers",
                behind(&other_node, &five_extensions()),
            ),
            (
                Outcome::IpOptions,
                "extension headers that nothing follows, to a peer",
                behind(injection, &options)
                    .with(|p| p.transport = Transport::Other(IpNumber::IPV6_NO_NEXT_HEADER)),
            ),
        ];
        for (name, extension) in each_extension() {
            harmless.push((Outcome::IpOptions, name, behind(&other_port, &[extension])));
        }
        harmless
    }

    fn without_length(frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        frame[ETH_LEN + 4..][..2].fill(0);
        frame
    }

    /// "Packet too big" (RFC 4443 §3.2).
    fn too_big(quoted: &[u8]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 0, 0x05, 0x14][..], &quoted[ETH_LEN..]].concat()
    }
}
