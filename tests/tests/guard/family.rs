//! Packets of both families, as an attacker makes them.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Result;
use overlay_tests::{
    differ::{
        packets::{self, DONT_FRAGMENT, Header as _, Ip, MORE_FRAGMENTS, UDP},
        packets6::{DESTINATION_OPTIONS, Extension, Ip6},
    },
    lab::{Lab, family::LabFamily},
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(15);
/// Where a datagram is cut in two: a multiple of 8.
const CUT: u16 = 512;

pub trait Forged: LabFamily {
    /// Bad packets of a flood.
    const FLOOD: u64;
    const ETHER_TYPE: [u8; 2];
    /// What a vxlan device needs beside ours on one port.
    const AS_OURS: &str;

    /// Waits until the two nodes that have agents know each other.
    fn wait_converged(lab: &Lab) -> Result<()>;

    /// Between two addresses, and two ports.
    fn datagram(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8>;

    /// With something between the IP header and UDP's.
    fn with_options(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8>;

    /// In two pieces.
    fn fragments(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> [Vec<u8>; 2];
}

fn ipv4([source, destination]: [Ipv4Addr; 2], fragment: u16, options: &[u8]) -> Ip {
    Ip {
        source,
        destination,
        protocol: UDP,
        ttl: 64,
        tos: 0,
        id: 77,
        fragment,
        options: options.to_vec(),
    }
}

impl Forged for Ipv4Addr {
    const FLOOD: u64 = 1_000_000;
    const ETHER_TYPE: [u8; 2] = [8, 0];
    const AS_OURS: &str = "";

    fn wait_converged(lab: &Lab) -> Result<()> {
        wait_for("both nodes to know each other", DEADLINE, || {
            let mut nodes = lab.nodes()[..2].iter();
            nodes.try_for_each(|node| lab.check_converged(node))
        })
    }

    fn datagram(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let ip = ipv4(addresses, DONT_FRAGMENT, &[]);
        ip.packet(&packets::udp(&ip, ports, payload))
    }

    /// Three of "no operation" and the end.
    fn with_options(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let ip = ipv4(addresses, DONT_FRAGMENT, &[1, 1, 1, 0]);
        ip.packet(&packets::udp(&ip, ports, payload))
    }

    fn fragments(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> [Vec<u8>; 2] {
        let segment = packets::udp(&ipv4(addresses, 0, &[]), ports, payload);
        let (first, last) = segment.split_at(CUT.into());
        let pieces = [(first, MORE_FRAGMENTS), (last, CUT / 8)];
        pieces.map(|(piece, fragment)| ipv4(addresses, fragment, &[]).packet(piece))
    }
}

fn ipv6(ends: [Ipv6Addr; 2], extensions: Vec<Extension>) -> Ip6 {
    Ip6 {
        extensions,
        ..Ip6::plain(ends, UDP)
    }
}

impl Forged for Ipv6Addr {
    const FLOOD: u64 = 100_000;
    const ETHER_TYPE: [u8; 2] = [0x86, 0xdd];
    const AS_OURS: &str = "udp6zerocsumrx";

    fn wait_converged(lab: &Lab) -> Result<()> {
        for node in &lab.nodes()[..2] {
            node.wait_ready6()?;
        }
        lab.wait_converged6()
    }

    fn datagram(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let ip = ipv6(addresses, Vec::new());
        ip.packet(&packets::udp(&ip, ports, payload))
    }

    fn with_options(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let options = Extension::options(DESTINATION_OPTIONS, &[]);
        let ip = ipv6(addresses, vec![options]);
        ip.packet(&packets::udp(&ip, ports, payload))
    }

    fn fragments(addresses: [Self; 2], ports: [u16; 2], payload: &[u8]) -> [Vec<u8>; 2] {
        let segment = packets::udp(&ipv6(addresses, Vec::new()), ports, payload);
        let (first, last) = segment.split_at(CUT.into());
        let pieces = [(first, 0, true), (last, CUT / 8, false)];
        pieces.map(|(piece, offset, more)| {
            let part = Extension::fragment(offset, more, 77);
            ipv6(addresses, vec![part]).packet(piece)
        })
    }
}
