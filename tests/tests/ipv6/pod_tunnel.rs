//! Pods that try to put packets into the IPv6 tunnel themselves: by themselves, behind extension
//! headers, in fragments.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    capture::{Capture, Direction, Frame},
    differ::{
        packets::{self, Header as _, UDP},
        packets6::{DESTINATION_OPTIONS, Extension, HOP_BY_HOP, Ip6},
        raw::{POD_INTERFACE, RawPort},
    },
    lab::{Lab, scenario},
    traffic::{Endpoint, ping6},
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const VXLAN_PORT: u16 = 8472;
/// Each of the ways is tried so often.
const COUNT: u16 = 10;
const SECRET: &[u8] = b"injected";

fn ip(source: Ipv6Addr, destination: Ipv6Addr, extensions: Vec<Extension>) -> Ip6 {
    Ip6 {
        extensions,
        ..Ip6::plain([source, destination], UDP)
    }
}

/// A tunnel packet's payload: a datagram to pod `to`, from an address of the first node's subnet.
fn payload(lab: &Lab, to: &Endpoint<Ipv6Addr>) -> Result<Vec<u8>> {
    let subnet = lab.node(0).subnet_env6()?.gateway.network();
    let stranger = Ipv6Addr::from_bits(subnet.to_bits() + 0x99);
    let ip = ip(stranger, to.address, Vec::new());
    let inner = ip.packet(&packets::udp(&ip, [1, 2], SECRET));
    let [dst, src] = [1, 0].map(|node| lab.node(node).mac("flannel-v6.1"));
    Ok([
        &[8, 0, 0, 0, 0, 0, 1, 0][..],
        &dst?.octets,
        &src?.octets,
        &[0x86, 0xdd],
        &inner,
    ]
    .concat())
}

/// How many of the tunnelled datagrams arrived.
fn arrived(frames: &[Frame]) -> usize {
    let frames = frames
        .iter()
        .filter(|frame| frame.direction == Direction::Received && frame.bytes.ends_with(SECRET));
    frames.count()
}

/// Ways to send the payload to a VTEP, and the packets of each. Of fragments the first is stopped.
fn attempts(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let options = |len: usize| Extension::options(DESTINATION_OPTIONS, &vec![0; len]);
    let plain = ip(from, to, Vec::new());
    let datagram = packets::udp(&plain, [40_000, VXLAN_PORT], payload);
    let behind = |extensions: Vec<Extension>| vec![ip(from, to, extensions).packet(&datagram)];
    // Two headers and the datagram.
    let mut whole = vec![DESTINATION_OPTIONS];
    whole.extend(options(6).rest);
    whole.push(UDP);
    whole.extend(options(6).rest);
    whole.extend(&datagram);
    let in_fragments = |at: usize| {
        let fragment = |offset: usize, more, bytes: &[u8]| {
            let units = u16::try_from(offset / 8).unwrap_or_default();
            let mut ip = ip(from, to, vec![Extension::fragment(units, more, 7)]);
            ip.protocol = DESTINATION_OPTIONS;
            ip.packet(bytes)
        };
        vec![
            fragment(0, true, &whole[..at]),
            fragment(at, false, &whole[at..]),
        ]
    };
    vec![
        ("plain", behind(Vec::new())),
        ("behind destination options", behind(vec![options(6)])),
        (
            "behind hop-by-hop and long destination options",
            behind(vec![Extension::options(HOP_BY_HOP, &[]), options(200)]),
        ),
        (
            "in one fragment",
            behind(vec![Extension::fragment(0, false, 5)]),
        ),
        (
            "behind four headers",
            behind((0..4).map(|_| options(6)).collect()),
        ),
        (
            "behind five headers",
            behind((0..5).map(|_| options(6)).collect()),
        ),
        ("in fragments", in_fragments(24)),
        ("its UDP header in the second fragment", in_fragments(16)),
        ("its headers in both fragments", in_fragments(8)),
    ]
}

#[test]
fn a_pod_cannot_put_packets_into_the_ipv6_tunnel() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&["--ip-masq"])?;
        let (attacker, victim) = (&pods[0], &pods[1]);
        ping6::all(attacker, victim.address, 3)?;
        let payload = payload(lab, victim)?;
        let port = RawPort::at(&attacker.namespace, POD_INTERFACE)?;
        let gateway = lab.node(0).mac("cni0")?;
        let header = [&gateway.octets[..], &port.mac.octets, &[0x86, 0xdd]].concat();
        for vtep in [lab.node(1).address6(), lab.node(0).address6()] {
            for (what, packets) in attempts(attacker.address, vtep, &payload) {
                let before = lab.node(0).counters()?;
                let capture = Capture::start(&victim.namespace, POD_INTERFACE)?;
                for _ in 0..COUNT {
                    for packet in &packets {
                        port.send(&[&header[..], packet].concat())?;
                    }
                }
                // What arrives after them shows that they would have arrived.
                ping6::all(attacker, victim.address, 3)?;
                let arrived = arrived(&capture.stop()?);
                let counted = lab.node(0).counters()?.since(&before);
                let dropped = counted.packets(Hook::Egress, Outcome::PodTunnel);
                ensure!(
                    arrived == 0 && dropped == u64::from(COUNT),
                    "{what} to {vtep}: {arrived} arrived, {dropped} dropped:\n{counted}"
                );
            }
        }

        // The packet is one that the peer believes, if it comes from the node.
        let capture = Capture::start(&victim.namespace, POD_INTERFACE)?;
        let vtep = lab.node(1).address6();
        lab.node(0).enter(|| -> Result<()> {
            let socket = std::net::UdpSocket::bind("[::]:0")?;
            for _ in 0..5 {
                socket.send_to(&payload, (vtep, VXLAN_PORT))?;
            }
            Ok(())
        })?;
        ping6::all(attacker, victim.address, 3)?;
        let arrived = arrived(&capture.stop()?);
        ensure!(arrived == 5, "{arrived} of 5 packets arrived");
        Ok(())
    });
}
