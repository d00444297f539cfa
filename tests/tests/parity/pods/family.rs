//! Frames of either address family: who has an address, and who gets its packets.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use overlay_common::addr::MacAddr;
use overlay_tests::{
    capture::{Direction, Frame},
    decode::decode_ipv4,
    decode6::decode_ipv6,
    differ::{
        packets::{self, Header as _, Ip, UDP},
        packets6::{ICMP6, Ip6},
        raw::RawPort,
    },
    lab::{Lab, family::LabFamily},
    wait::wait_for,
};

use super::common::DEADLINE;

pub trait Frames: LabFamily {
    /// The prefix length of pods' addresses, and what else `ip` has to know to add one for use at once.
    const PREFIX: &str;
    const AT_ONCE: &str;

    /// Tells everybody that `address` is at the port, as container runtimes and keepalived do.
    fn announce(port: &RawPort, address: Self) -> Result<()>;

    /// A datagram in a frame between these MAC addresses.
    fn datagram(macs: [MacAddr; 2], ends: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8>;

    /// MAC and IP address that a frame is sent to.
    fn destination(frame: &[u8]) -> Option<(MacAddr, Self)>;
}

impl Frames for Ipv4Addr {
    const PREFIX: &str = "/24";
    const AT_ONCE: &str = "";

    fn announce(port: &RawPort, address: Self) -> Result<()> {
        port.announce(address)
    }

    fn datagram(macs: [MacAddr; 2], ends: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let ip = Ip {
            source: ends[0],
            destination: ends[1],
            protocol: UDP,
            ttl: 64,
            tos: 0,
            id: 1,
            fragment: 0,
            options: Vec::new(),
        };
        frame(macs, [8, 0], &ip.packet(&packets::udp(&ip, ports, payload)))
    }

    fn destination(frame: &[u8]) -> Option<(MacAddr, Self)> {
        let packet = decode_ipv4(frame).ok()?;
        let mac = MacAddr::new(packet.eth.destination);
        Some((mac, packet.ip.destination.into()))
    }
}

/// Address and MAC address of all hosts of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr::new([0x33, 0x33, 0, 0, 0, 1]);
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

impl Frames for Ipv6Addr {
    const PREFIX: &str = "/64";
    const AT_ONCE: &str = "nodad";

    /// RFC 4861 §7.2.6.
    fn announce(port: &RawPort, address: Self) -> Result<()> {
        let ip = ip6([address, ALL_NODES], ICMP6);
        let mac = port.mac.octets;
        // It overrides what is known; the target, and its link-layer address.
        let advertisement = [&[0x20, 0, 0, 0][..], &address.octets(), &[2, 1], &mac].concat();
        let packet = ip.packet(&ip.icmp(136, 0, &advertisement));
        port.send(&frame([port.mac, ALL_NODES_MAC], ETHERTYPE_IPV6, &packet))
    }

    fn datagram(macs: [MacAddr; 2], ends: [Self; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let ip = ip6(ends, UDP);
        let packet = ip.packet(&packets::udp(&ip, ports, payload));
        frame(macs, ETHERTYPE_IPV6, &packet)
    }

    fn destination(frame: &[u8]) -> Option<(MacAddr, Self)> {
        let packet = decode_ipv6(frame).ok()?;
        let mac = MacAddr::new(packet.eth.destination);
        Some((mac, packet.ip.destination.into()))
    }
}

fn ip6(ends: [Ipv6Addr; 2], protocol: u8) -> Ip6 {
    Ip6 {
        hop_limit: 255,
        ..Ip6::plain(ends, protocol)
    }
}

fn frame([source, destination]: [MacAddr; 2], ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&destination.octets[..], &source.octets, &ethertype, packet].concat()
}

/// Announces that `address` is at `port`, one of a pod of the first node, until the node has heard: a
/// bridge drops what comes before it has noticed that the port is up.
pub fn announce<A: Frames>(lab: &Lab, port: &RawPort, address: A) -> Result<()> {
    wait_for("the node to learn where an address is", DEADLINE, || {
        A::announce(port, address)?;
        let known = [A::IP, "neigh", "show", &address.to_string()];
        let known = lab.node(0).cmd("ip", known)?;
        ensure!(known.contains(&port.mac.to_string()), "it has {known}");
        Ok(())
    })
}

/// Frames an interface received whose Ethernet and IP destinations are these.
pub fn addressed<A: Frames>(frames: &[Frame], mac: MacAddr, address: A) -> usize {
    let received = frames.iter().filter(|frame| {
        frame.direction == Direction::Received
            && A::destination(&frame.bytes) == Some((mac, address))
    });
    received.count()
}
