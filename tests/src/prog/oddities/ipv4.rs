//! What is odd about IPv4 packets.

use etherparse::IpNumber;
use overlay_common::{family::V4, outcome::Outcome};

use super::{Odd, Oddities};
use crate::prog::packet::{ETH_LEN, Outer, Packet, Transport, edit_ip};

impl Oddities for V4 {
    const ARP: Outcome = Outcome::NotIp;

    fn without_flow(packet: &Packet) -> Vec<Odd<Packet>> {
        let with = |change: fn(&mut Packet)| packet.clone().with(change);
        let icmp = |head: &'static [u8]| {
            packet.clone().with(|p| {
                p.transport = Transport::Icmp;
                p.payload.splice(..0, head.iter().copied());
            })
        };
        vec![
            (
                Outcome::IpOptions,
                "with a router alert option",
                with(|p| p.ip.options = vec![0x94, 4, 0, 0]),
            ),
            (
                Outcome::IpOptions,
                "with as many options as fit",
                with(|p| p.ip.options = vec![1; 40]),
            ),
            (
                Outcome::Fragment,
                "the first fragment",
                with(first_fragment),
            ),
            (
                Outcome::Fragment,
                "the last fragment",
                with(|p| p.ip.fragment_offset = 1),
            ),
            (
                Outcome::Fragment,
                "a fragment at the largest offset",
                with(|p| p.ip.fragment_offset = 0x1fff),
            ),
            (
                Outcome::Protocol,
                "GRE",
                with(|p| p.transport = Transport::Other(IpNumber::GRE)),
            ),
            (Outcome::Protocol, "an ICMP error message", icmp(&[3, 0])),
            (
                Outcome::Protocol,
                "an echo request with a code other than 0",
                icmp(&[8, 1]),
            ),
        ]
    }

    fn outers(outer: &Outer) -> Vec<Odd<Outer>> {
        let with = |change: fn(&mut Outer)| {
            let mut outer = outer.clone();
            change(&mut outer);
            outer
        };
        vec![
            (
                Outcome::IpOptions,
                "IP options",
                with(|outer| outer.ip.options = vec![1; 4]),
            ),
            (
                Outcome::Fragment,
                "the first fragment",
                with(|outer| outer.ip.more_fragments = true),
            ),
        ]
    }

    fn injections(injection: &Packet) -> Vec<(&'static str, Packet)> {
        let with = |change: fn(&mut Packet)| injection.clone().with(change);
        vec![
            ("the first fragment", with(first_fragment)),
            ("with an IP option", with(|p| p.ip.options = vec![1; 4])),
            (
                "with as many IP options as fit",
                with(|p| p.ip.options = vec![1; 40]),
            ),
            (
                "the first fragment, with an IP option",
                with(|p| {
                    first_fragment(p);
                    p.ip.options = vec![1; 4];
                }),
            ),
            (
                "the first fragment with the UDP header alone",
                with(|p| {
                    first_fragment(p);
                    p.payload.clear();
                }),
            ),
        ]
    }

    fn harmless(injection: &Packet) -> Vec<Odd<Packet>> {
        vec![(
            Outcome::Fragment,
            "a later fragment to a peer: without the first it is never whole",
            injection.clone().with(|p| p.ip.fragment_offset = 1),
        )]
    }

    fn without_length(frame: &[u8]) -> Vec<u8> {
        edit_ip(frame, |ip| ip.total_len = 0)
    }

    /// "Fragmentation needed" (RFC 792, RFC 1191), with the header and 8 bytes.
    fn too_big(quoted: &[u8]) -> Vec<u8> {
        let quote = &quoted[ETH_LEN..][..28];
        [&[3, 4, 0, 0, 0, 0, 0x05, 0x14][..], quote].concat()
    }
}

fn first_fragment(packet: &mut Packet) {
    packet.ip.dont_fragment = false;
    packet.ip.more_fragments = true;
}
