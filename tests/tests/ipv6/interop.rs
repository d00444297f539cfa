//! Our node and stand-ins for stock flannel nodes are peers of one cluster with IPv6, and what they
//! send each other is flannel's, byte by byte.

use anyhow::{Context as _, Result, ensure};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv6FlowLabel, Ipv6Header, UdpHeader};
use overlay_common::addr::MacAddr;
use overlay_tests::{
    capture::{Direction, Frame},
    lab::{Lab, Node, Wire, ipv6::ping_matrix, scenario, underlay::NODE_INTERFACE},
    traffic::{ping6, tcp, udp},
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const STOCK: &str = "10.5.200.0/24&fd00:10:5:200::/64";
const VXLAN_PORT: u16 = 8472;
/// `I` flag, reserved bits zero, VNI 1.
const VXLAN_HEADER: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 1, 0];

#[test]
fn a_stock_node_and_ours_exchange_pings_tcp_and_udp_both_ways_in_both_families() {
    let builder = Lab::builder().nodes(2).routed_nodes(1).config(DUAL);
    scenario(builder, |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.start_stock(lab.node(1), STOCK)?;
        lab.start_stock(lab.node(2), "10.5.201.0/24&fd00:10:5:201::/64")?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_converged6()?;
        lab.ping_matrix()?;
        let mut pods = Vec::new();
        for (node, pod) in lab.pods() {
            pods.push(node.add_ipv6(&pod)?);
        }
        ping_matrix(&pods)?;
        for theirs in &pods[1..] {
            for (from, to) in [(&pods[0], theirs), (theirs, &pods[0])] {
                ping6::all(from, to.address, 10)?;
                tcp::transfer(from, to, tcp::Spec::bulk(8 << 20))?;
                tcp::transfer(from, to, tcp::Spec::small_writes(100_000, 100))?;
                // What fits the tunnel: stock flannel's subnet file leaves no room for the larger
                // outer header, so its pods lose the first datagram that needs it.
                udp::echo_each(from, to, &[8, 100, 1382], 10)?.ensure_lossless()?;
                udp::send_segmented(from, to, 1200, 40, 5)?.ensure_lossless()?;
            }
        }
        Ok(())
    });
}

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

#[test]
fn the_ipv6_device_is_flannels_and_takes_udp_checksum_0_as_well() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.start_stock(lab.node(1), STOCK)?;
        lab.wait_converged6()?;
        let describe = |node: &Node| -> Result<(String, String)> {
            let link = node.cmd("ip", ["-d", "link", "show", "flannel-v6.1"])?;
            let settings = link.lines().find(|line| line.contains("vxlan id"));
            let settings = settings.with_context(|| format!("no vxlan settings in\n{link}"))?;
            let settings = settings.replace(&node.address6().to_string(), "LOCAL");
            let mut words = link.split_whitespace().skip_while(|word| *word != "mtu");
            Ok((settings, words.nth(1).unwrap_or_default().to_owned()))
        };
        let (ours, theirs) = (describe(lab.node(0))?, describe(lab.node(1))?);
        let expected = theirs.0.replace("noudp6zerocsumrx", "udp6zerocsumrx");
        ensure!(
            theirs.0 != expected && ours == (expected, theirs.1.clone()),
            "ours\n{ours:?}\nflannel's\n{theirs:?}"
        );
        ensure!(ours.1 == "1430", "MTU {}", ours.1);
        // And what is programmed for the peer: the same, whoever does it.
        let stock = lab.node(1).mac("flannel-v6.1")?;
        let base = "fd00:10:5:200::";
        let node = lab.node(0);
        let neighbours = node.cmd("ip", ["-6", "neigh", "show", "dev", "flannel-v6.1"])?;
        ensure!(
            neighbours.contains(&format!("{base} lladdr {stock} PERMANENT")),
            "{neighbours}"
        );
        let fdb = node.cmd("bridge", ["fdb", "show", "dev", "flannel-v6.1"])?;
        let address = lab.node(1).address6();
        ensure!(fdb.contains(&format!("{stock} dst {address}")), "{fdb}");
        let routes = node.cmd("ip", ["-6", "route", "show", &format!("{base}/64")])?;
        ensure!(
            routes.contains(&format!("via {base} dev flannel-v6.1 proto 241"))
                && routes.contains("metric 1024")
                && routes.contains("onlink"),
            "{routes}"
        );
        let addresses = node.cmd("ip", ["-6", "addr", "show", "dev", "flannel-v6.1"])?;
        let own = node.subnet_env6()?.subnet()?.network();
        ensure!(
            addresses.contains(&format!("inet6 {own}/128")),
            "{addresses}"
        );
        let accept_ra = node
            .enter(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/flannel-v6.1/accept_ra"))?;
        ensure!(accept_ra.trim() == "0", "accept_ra is {accept_ra}");
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
