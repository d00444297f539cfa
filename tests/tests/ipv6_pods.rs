//! IPv6 pods that lie about their address, or hand it on: nobody gets what is not his. And what pods
//! receive has the right checksums, with no card to compute any.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::IpNumber;
use overlay_common::{addr::MacAddr, outcome::Hook};
use overlay_tests::{
    capture::{Capture, Direction, Frame},
    decode6::{Packet6, decode_ipv6},
    differ::{
        packets::{self, Header as _, UDP},
        packets6::{ICMP6, Ip6},
        raw::{POD_INTERFACE, RawPort},
    },
    lab::{Lab, scenario},
    rules::Protocol,
    services::{Connection, Server},
    traffic::{Endpoint, ping6, tcp, udp},
    wait::wait_for,
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(15);
/// Address and MAC address of all hosts of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Uses a UDP connection until node `index` delivers its packets by the fast path.
fn warm(lab: &Lab, index: usize, connection: &mut Connection) -> Result<()> {
    wait_for("the fast path to carry a connection", DEADLINE, || {
        let before = lab.node(index).counters()?.fast(Hook::Ingress);
        connection.exchange(1_000, 100)?;
        let fast = lab.node(index).counters()?.fast(Hook::Ingress) - before;
        ensure!(fast >= 8, "{fast} of 10 packets were fast");
        Ok(())
    })
}

fn received(frames: &[Frame]) -> impl Iterator<Item = Packet6> {
    frames
        .iter()
        .filter(|frame| frame.direction == Direction::Received)
        .filter_map(|frame| decode_ipv6(&frame.bytes).ok())
}

/// Packets an interface received whose Ethernet and IP destinations are these.
fn addressed(frames: &[Frame], mac: MacAddr, address: Ipv6Addr) -> usize {
    let is_it = |packet: &Packet6| {
        packet.eth.destination == mac.octets && packet.ip.destination == address.octets()
    };
    received(frames).filter(is_it).count()
}

fn ip(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8) -> Ip6 {
    Ip6 {
        source,
        destination,
        protocol,
        hop_limit: 255,
        class: 0,
        label: 0,
        extensions: Vec::new(),
    }
}

/// Tells everybody that `address` is here (RFC 4861 §7.2.6), until the node has heard.
fn announce(lab: &Lab, port: &RawPort, address: Ipv6Addr) -> Result<()> {
    let ip = ip(address, ALL_NODES, ICMP6);
    let mac = port.mac.octets;
    // It overrides what is known; the target, and its link-layer address.
    let advertisement = [&[0x20, 0, 0, 0][..], &address.octets(), &[2, 1], &mac].concat();
    let packet = ip.packet(&ip.icmp(136, 0, &advertisement));
    let frame = [&ALL_NODES_MAC[..], &mac, &[0x86, 0xdd], &packet].concat();
    wait_for("the node to learn where an address is", DEADLINE, || {
        port.send(&frame)?;
        let known = ["-6", "neigh", "show", &address.to_string()];
        let known = lab.node(0).cmd("ip", known)?;
        ensure!(known.contains(&port.mac.to_string()), "it has {known}");
        Ok(())
    })
}

#[test]
fn an_ipv6_pod_that_sends_with_anothers_address_gets_none_of_its_packets() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&[])?;
        let (honest, server) = (&pods[0], &pods[1]);
        let liar = lab.node(0).add_pod6('b')?;
        ping6::once(&liar, server.address)?;
        let _server = Server::start(server, Protocol::Udp, PORT)?;
        let target = SocketAddr::new(server.address.into(), PORT);
        let mut datagrams = Connection::open(honest, Protocol::Udp, target, 0)?;
        warm(lab, 0, &mut datagrams)?;

        let port = RawPort::at(&liar.namespace, POD_INTERFACE)?;
        let own = honest.namespace.mac(POD_INTERFACE)?;
        let gateway = lab.node(0).mac("cni0")?;
        let ip = ip(honest.address, server.address, UDP);
        let ports = [datagrams.served.source.port(), PORT];
        let packet = ip.packet(&packets::udp(&ip, ports, b"not mine"));
        let captures = [&liar, honest].map(|pod| Capture::start(&pod.namespace, POD_INTERFACE));
        let [at_liar, at_honest] = captures;
        let (at_liar, at_honest) = (at_liar?, at_honest?);
        // A MAC address that nobody has, too.
        for source in [port.mac, MacAddr::new([2, 0, 0, 0, 0, 9])] {
            let frame = [&gateway.octets[..], &source.octets, &[0x86, 0xdd], &packet].concat();
            for _ in 0..20 {
                port.send(&frame)?;
            }
            datagrams.exchange(2_000, 100)?;
        }
        warm(lab, 0, &mut datagrams)?;
        let stolen = addressed(&at_liar.stop()?, port.mac, honest.address);
        let answers = addressed(&at_honest.stop()?, own, honest.address);
        ensure!(stolen == 0, "the pod got {stolen} packets of the other");
        ensure!(answers >= 80, "the owner of the address got {answers}");
        Ok(())
    });
}

#[test]
fn an_ipv6_address_that_moves_between_pods_takes_its_flows_with_it() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&[])?;
        let (before, client) = (&pods[0], &pods[1]);
        let after = lab.node(0).add_pod6('b')?;
        let address = before.address;
        let server = Server::start(before, Protocol::Udp, PORT)?;
        let target = SocketAddr::new(address.into(), PORT);
        let mut datagrams = Connection::open(client, Protocol::Udp, target, 0)?;
        warm(lab, 0, &mut datagrams)?;

        drop(server);
        let text = format!("{address}/64 dev {POD_INTERFACE}");
        before.namespace.ip_batch(&format!("addr del {text}\n"))?;
        after
            .namespace
            .ip_batch(&format!("addr add {text} nodad\n"))?;
        let moved = Endpoint {
            namespace: after.namespace.clone(),
            address,
        };
        let _server = Server::start(&moved, Protocol::Udp, PORT)?;
        announce(lab, &RawPort::at(&after.namespace, POD_INTERFACE)?, address)?;
        let learned = Instant::now();
        datagrams
            .exchange(1_000, 100)
            .context("datagrams after the move")?;
        ensure!(
            learned.elapsed() < Duration::from_secs(3),
            "served only after {:?}",
            learned.elapsed()
        );
        let capture = Capture::start(&before.namespace, POD_INTERFACE)?;
        warm(lab, 0, &mut datagrams)?;
        let mac = before.namespace.mac(POD_INTERFACE)?;
        let stray = addressed(&capture.stop()?, mac, address);
        ensure!(stray == 0, "the pod that had the address got {stray}");
        Ok(())
    });
}

/// Nothing on the way leaves a checksum to a card: each must be right at the receiver.
#[test]
fn checksums_of_ipv6_packets_are_right_without_any_offload() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&[])?;
        for (node, pod) in lab.nodes().iter().zip(&pods) {
            for interface in ["eth0", "vetha"] {
                node.cmd("ethtool", ["-K", interface, "tx", "off", "gro", "off"])?;
            }
            // Merging leaves checksums open that were right before.
            node.cmd("ethtool", ["-K", "flannel-v6.1", "gro", "off"])?;
            pod.namespace
                .run("ethtool", ["-K", POD_INTERFACE, "tx", "off"])?;
        }
        let captures = [
            Capture::start(&pods[0].namespace, POD_INTERFACE)?,
            Capture::start(&pods[1].namespace, POD_INTERFACE)?,
        ];
        for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
            tcp::transfer(from, to, tcp::Spec::bulk(300_000))?;
            tcp::transfer(from, to, tcp::Spec::small_writes(10_000, 100))?;
            udp::echo_each(from, to, &[8, 9, 100, 1_381, 1_382], 10)?.ensure_lossless()?;
            ping6::all(from, to.address, 10)?;
        }
        let mut count = 0;
        for capture in captures {
            for packet in received(&capture.stop()?) {
                if let IpNumber::UDP | IpNumber::TCP | IpNumber::IPV6_ICMP = packet.ip.next_header {
                    ensure!(packet.has_valid_payload_checksum()?, "{packet:?}");
                    count += 1;
                }
            }
        }
        ensure!(count > 1_000, "{count} packets arrived");
        let fast = lab.node(1).counters()?.fast(Hook::Ingress);
        ensure!(fast > 300, "{fast} packets were fast");
        Ok(())
    });
}
