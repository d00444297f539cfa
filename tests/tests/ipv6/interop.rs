//! Stand-ins for stock flannel nodes that have one family alone, and the bytes of tunnel packets over
//! IPv6. What holds in both families is among the tests of small clusters.

use anyhow::{Context as _, Result, ensure};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv6FlowLabel, Ipv6Header, UdpHeader};
use overlay_common::addr::MacAddr;
use overlay_tests::{
    capture::{Direction, Frame},
    lab::{Lab, Node, Wire, scenario, underlay::NODE_INTERFACE},
    traffic::{ping6, tcp, udp},
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const STOCK: &str = "10.5.200.0/24&fd00:10:5:200::/64";
const VXLAN_PORT: u16 = 8472;
/// `I` flag, reserved bits zero, VNI 1.
const VXLAN_HEADER: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 1, 0];

#[test]
fn a_stock_node_without_ipv4_is_a_peer() {
    scenario(Lab::builder().nodes(2).config(IPV6), |lab| {
        lab.node(0).start_agent(lab.store(), &[])?;
        lab.node(0).wait_ready6()?;
        lab.start_stock(lab.node(1), "fd00:10:5:200::/64")?;
        lab.wait_converged6()?;
        let (ours, theirs) = (lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?);
        ping6::all(&ours, theirs.address, 5)?;
        tcp::transfer(&theirs, &ours, tcp::Spec::bulk(8 << 20)).map(drop)
    });
}

#[test]
fn a_node_that_has_no_ipv6_is_a_peer_in_ipv4_only() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.start_stock(lab.node(1), "10.5.200.0/24")?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        let routes = lab
            .node(0)
            .cmd("ip", ["-6", "route", "show", "dev", "flannel-v6.1"])?;
        ensure!(!routes.contains("proto 241"), "{routes}");
        Ok(())
    });
}

/// The tunnel packets of IPv6 pods that a node sent, as its segment received them.
fn sent_tunnel_frames(frames: &[Frame]) -> impl Iterator<Item = &[u8]> {
    frames
        .iter()
        .filter(|frame| frame.direction == Direction::Received)
        .map(|frame| &frame.bytes[..])
        .filter(|frame| {
            // EtherType, next header, destination port.
            frame.get(12..14) == Some(&[0x86, 0xdd])
                && frame.get(20) == Some(&IpNumber::UDP.0)
                && frame.get(56..58) == Some(&VXLAN_PORT.to_be_bytes())
        })
}

/// The frame a stock node sends from `from` to `to` around the same inner packet: rebuilt from
/// nothing, except for what the sender may choose, the source port and the flow label.
fn rebuild(from: &Node, to: &Node, captured: &[u8]) -> Result<Vec<u8>> {
    let (_, rest) = Ethernet2Header::from_slice(captured)?;
    let (outer, rest) = Ipv6Header::from_slice(rest)?;
    let (udp, rest) = UdpHeader::from_slice(rest)?;
    let inner = rest.get(8 + 14..).context("no inner packet")?;
    let mac = |node: &Node, device: &str| -> Result<[u8; 6]> {
        let mac: MacAddr = node.mac(device)?;
        Ok(mac.octets)
    };
    let ethernet = |source, destination| Ethernet2Header {
        source,
        destination,
        ether_type: EtherType::IPV6,
    };
    let mut message = VXLAN_HEADER.to_vec();
    message.extend(ethernet(mac(from, "flannel-v6.1")?, mac(to, "flannel-v6.1")?).to_bytes());
    message.extend(inner);
    let ip = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::try_new(outer.flow_label.value())?,
        payload_length: u16::try_from(UdpHeader::LEN + message.len())?,
        next_header: IpNumber::UDP,
        hop_limit: 64,
        source: from.address6().octets(),
        destination: to.address6().octets(),
    };
    let udp = UdpHeader::with_ipv6_checksum(udp.source_port, VXLAN_PORT, &ip, &message)?;
    let mut frame = ethernet(mac(from, NODE_INTERFACE)?, mac(to, NODE_INTERFACE)?)
        .to_bytes()
        .to_vec();
    frame.extend(ip.to_bytes());
    frame.extend(udp.to_bytes());
    frame.extend(message);
    Ok(frame)
}

#[test]
fn tunnel_packets_are_flannels_byte_by_byte() {
    let builder = Lab::builder().nodes(2).config(DUAL).wire(Wire::Segmented);
    scenario(builder, |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.start_stock(lab.node(1), STOCK)?;
        lab.wait_converged6()?;
        let pods = [lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?];
        let captures = [lab.node(0).capture_wire()?, lab.node(1).capture_wire()?];
        udp::echo_each(&pods[0], &pods[1], &[100], 20)?.ensure_lossless()?;
        for (index, capture) in captures.into_iter().enumerate() {
            let (from, to) = (lab.node(index), lab.node(1 - index));
            let frames = capture.stop()?;
            let mut seen = 0;
            for frame in sent_tunnel_frames(&frames) {
                let expected = rebuild(from, to, frame)?;
                ensure!(
                    frame == expected,
                    "captured {frame:02x?}\nexpected {expected:02x?}"
                );
                let (ip, _) = Ipv6Header::from_slice(&frame[14 + 40 + 8 + 8 + 14..])?;
                ensure!(
                    (ip.hop_limit, ip.source) == (63, pods[index].address.octets()),
                    "inner header {ip:?}"
                );
                seen += 1;
            }
            ensure!(seen == 20, "{} sent {seen} of 20 datagrams", from.name);
        }
        Ok(())
    });
}
