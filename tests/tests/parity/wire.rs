//! What a network card would see, and what congested routers do to it: marks and checksums that
//! arrive in pods are the kernel's, with the fast path as without.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use etherparse::{IpNumber, UdpHeader};
use nix::sys::socket::{setsockopt, sockopt};
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::{Capture, Direction, Frame},
    decode::{Packet, decode_ipv4},
    decode6::decode_ipv6,
    differ::{Mode, in_both_modes, raw::POD_INTERFACE},
    lab::{DEFAULT_CONFIG, Lab},
    rules::Protocol,
    services::Server,
    traffic::{Address, Endpoint, ping, tcp, udp},
    wait::wait_for,
};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(15);
/// Names of the four ECN codepoints in nft, by value.
const CODEPOINTS: [&str; 4] = ["not-ect", "ect1", "ect0", "ce"];
/// An inner DSCP that must stay.
const DSCP: u8 = 0b10_1110;

fn ends(lab: &Lab) -> Result<[Endpoint; 2]> {
    lab.add_pods(1)?;
    lab.ping_matrix()?;
    Ok([0, 1].map(|node| lab.node(node).pods()[0].endpoint()))
}

fn received(frames: &[Frame]) -> impl Iterator<Item = Packet> {
    frames
        .iter()
        .filter(|frame| frame.direction == Direction::Received)
        .filter_map(|frame| decode_ipv4(&frame.bytes).ok())
}

/// The network between the nodes sets the outer codepoint of what the first node sends.
fn mark_outer<A: Marks>(lab: &Lab, codepoint: &str) -> Result<()> {
    let port = &lab.node(0).name;
    let rules = format!(
        "table netdev marks\n\
         delete table netdev marks\n\
         table netdev marks {{ chain set_codepoint {{\n\
         type filter hook ingress device {port} priority 0; udp dport 8472 {} ecn set {codepoint}\n\
         }}\n}}\n",
        A::NFT
    );
    lab.underlay().hub().run("nft", [rules.as_str()]).map(drop)
}

/// The TOS with which a packet arrives, by outer and inner codepoint; `None` if it does not.
type Arrivals = BTreeMap<(usize, usize), Option<u8>>;

/// An address family, and how its packets are marked.
trait Marks: Address {
    const CONFIG: &str;
    const NFT: &str;
    const ANY: IpAddr;

    fn ends(lab: &Lab) -> Result<[Endpoint<Self>; 2]>;
    fn set_tos(socket: &UdpSocket, tos: i32) -> nix::Result<()>;
    /// TOS and payload of a frame that carries UDP.
    fn read(frame: &Frame) -> Option<(u8, Vec<u8>)>;
}

impl Marks for Ipv4Addr {
    const CONFIG: &str = DEFAULT_CONFIG;
    const NFT: &str = "ip";
    const ANY: IpAddr = IpAddr::V4(Self::UNSPECIFIED);

    fn ends(lab: &Lab) -> Result<[Endpoint; 2]> {
        ends(lab)
    }

    fn set_tos(socket: &UdpSocket, tos: i32) -> nix::Result<()> {
        setsockopt(socket, sockopt::Ipv4Tos, &tos)
    }

    fn read(frame: &Frame) -> Option<(u8, Vec<u8>)> {
        let packet = decode_ipv4(&frame.bytes).ok()?;
        let tos = packet.ip.dscp.value() << 2 | packet.ip.ecn.value();
        let is_whole = packet.has_valid_header_checksum() && packet.ip.protocol == IpNumber::UDP;
        is_whole.then_some((tos, packet.payload))
    }
}

impl Marks for Ipv6Addr {
    const CONFIG: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
    const NFT: &str = "ip6";
    const ANY: IpAddr = IpAddr::V6(Self::UNSPECIFIED);

    fn ends(lab: &Lab) -> Result<[Endpoint<Self>; 2]> {
        Ok([lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?])
    }

    fn set_tos(socket: &UdpSocket, tos: i32) -> nix::Result<()> {
        setsockopt(socket, sockopt::Ipv6TClass, &tos)
    }

    fn read(frame: &Frame) -> Option<(u8, Vec<u8>)> {
        let packet = decode_ipv6(&frame.bytes).ok()?;
        let is_udp = packet.ip.next_header == IpNumber::UDP;
        is_udp.then_some((packet.ip.traffic_class, packet.payload))
    }
}

fn arrivals<A: Marks>(lab: &Lab, mode: Mode) -> Result<Arrivals> {
    let [from, to] = A::ends(lab)?;
    let _server = Server::start(&to, Protocol::Udp, PORT)?;
    let target = SocketAddr::new(to.address.into(), PORT);
    let socket = from.namespace.enter(|| -> Result<_> {
        let socket = UdpSocket::bind((A::ANY, 0))?;
        socket.connect(target)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(Duration::from_millis(700)))?;
    let echo = |payload: &[u8]| -> Result<bool> {
        socket.send(payload)?;
        Ok(socket.recv(&mut [0; 64]).is_ok())
    };
    let fast_packets = || -> Result<u64> { Ok(lab.node(1).counters()?.fast(Hook::Ingress)) };
    let set_tos = |ecn: usize| -> Result<()> {
        let tos = i32::from(DSCP) << 2 | i32::try_from(ecn)?;
        Ok(A::set_tos(&socket, tos)?)
    };
    let capture = Capture::start(&to.namespace, POD_INTERFACE)?;
    let mut arrivals = Arrivals::new();
    let mut fast = 0;
    for (outer, name) in CODEPOINTS.iter().enumerate() {
        mark_outer::<A>(lab, name)?;
        // A rule is new: flows have to earn their permits, with a mark that no path drops.
        set_tos(1)?;
        wait_for("the fast path to carry the flow", DEADLINE, || {
            let before = fast_packets()?;
            for _ in 0..10 {
                ensure!(echo(b"warm")?, "no answer");
            }
            let fast = fast_packets()? - before;
            ensure!(
                mode == Mode::Off || fast >= 8,
                "{fast} of 10 packets were fast"
            );
            Ok(())
        })?;
        let before = fast_packets()?;
        for inner in 0..CODEPOINTS.len() {
            set_tos(inner)?;
            echo(&[u8::try_from(outer)?, u8::try_from(inner)?])?;
            arrivals.insert((outer, inner), None);
        }
        fast += fast_packets()? - before;
    }
    ensure!(
        (fast >= 14) == (mode == Mode::Fast),
        "{fast} of 16 packets were fast"
    );
    let frames = capture.stop()?;
    let frames = frames
        .iter()
        .filter(|frame| frame.direction == Direction::Received);
    for (tos, segment) in frames.filter_map(A::read) {
        if let (_, &[outer, inner]) = UdpHeader::from_slice(&segment)? {
            arrivals.insert((outer.into(), inner.into()), Some(tos));
        }
    }
    Ok(arrivals)
}

/// RFC 6040 §4.2 as Linux has it.
fn merged(outer: usize, inner: usize) -> Option<u8> {
    let [not_ect, ect1, ect0, ce] = [0, 1, 2, 3];
    let ecn = match (outer, inner) {
        (3, 0) => return None,
        (_, 0) => not_ect,
        (3, _) | (_, 3) => ce,
        (1, _) | (_, 1) => ect1,
        _ => ect0,
    };
    Some(DSCP << 2 | ecn)
}

fn congestion_marks_arrive<A: Marks>() {
    let nodes = Lab::builder().nodes(2).config(A::CONFIG);
    let [fast, off] = in_both_modes(&nodes, &[], arrivals::<A>);
    let expected: Arrivals = (0..4)
        .flat_map(|outer| (0..4).map(move |inner| ((outer, inner), merged(outer, inner))))
        .collect();
    assert_eq!(off, expected, "without the fast path");
    assert_eq!(fast, expected, "with the fast path");
}

#[test]
fn congestion_marks_of_the_path_reach_pods_in_all_sixteen_combinations() {
    congestion_marks_arrive::<Ipv4Addr>();
}

#[test]
fn congestion_marks_of_the_path_reach_ipv6_pods_in_all_sixteen_combinations() {
    congestion_marks_arrive::<Ipv6Addr>();
}

/// Nothing on the way leaves a checksum to a card: each must be right at the receiver.
#[test]
fn checksums_are_right_without_any_offload() {
    in_both_modes(&Lab::builder().nodes(2), &[], |lab, mode| {
        let ends = ends(lab)?;
        for node in lab.nodes() {
            for interface in ["eth0", "vetha"] {
                node.cmd("ethtool", ["-K", interface, "tx", "off", "gro", "off"])?;
            }
            // Merging leaves checksums open that were right before.
            node.cmd("ethtool", ["-K", "flannel.1", "gro", "off"])?;
        }
        for end in &ends {
            end.namespace
                .run("ethtool", ["-K", POD_INTERFACE, "tx", "off"])?;
        }
        let captures = [
            Capture::start(&ends[0].namespace, POD_INTERFACE)?,
            Capture::start(&ends[1].namespace, POD_INTERFACE)?,
        ];
        for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            tcp::transfer(from, to, tcp::Spec::bulk(300_000))?;
            tcp::transfer(from, to, tcp::Spec::small_writes(10_000, 100))?;
            udp::echo_each(from, to, &[8, 9, 100, 1_421, 1_422], 10)?.ensure_lossless()?;
            ping::all(from, to.address, 10)?;
        }
        let mut count = 0;
        for capture in captures {
            for packet in received(&capture.stop()?) {
                ensure!(packet.has_valid_header_checksum(), "IP: {packet:?}");
                if packet.ip.protocol != IpNumber::IGMP {
                    ensure!(packet.has_valid_payload_checksum()?, "{packet:?}");
                    count += 1;
                }
            }
        }
        ensure!(count > 1_000, "{count} packets arrived");
        let fast = lab.node(1).counters()?.fast(Hook::Ingress);
        ensure!(
            (fast > 300) == (mode == Mode::Fast),
            "{fast} packets were fast"
        );
        Ok(())
    });
}
