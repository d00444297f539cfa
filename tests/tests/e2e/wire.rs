//! What is on the wire, byte by byte: each captured frame is rebuilt from nothing with another
//! implementation of the headers and compared as a whole.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use etherparse::{Ethernet2Header, IpNumber, Ipv4Header, UdpHeader};
use nix::sys::socket::{setsockopt, sockopt};
use overlay_common::addr::MacAddr;
use overlay_tests::{
    capture::{Capture, Direction, Frame},
    decode::{Vxlan, decode_ipv4, decode_vxlan, is_udp_to},
    lab::{Lab, Node, Pod, Wire, scenario, underlay::NODE_INTERFACE},
    traffic::udp,
};
use serde_json::Value;

const VXLAN_PORT: u16 = 8472;
/// `I` flag, reserved bits zero, VNI 1.
const VXLAN_HEADER: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 1, 0];
const DEFAULT_TTL: u8 = 64;

/// Who encapsulated a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    /// Outer DF clear with an identification, UDP checksum present.
    Kernel,
    /// Outer DF set with identification 0, UDP checksum 0.
    Fast,
}

/// The addresses of one hop of a tunnel.
struct Hop {
    eth: (MacAddr, MacAddr),
    ip: (Ipv4Addr, Ipv4Addr),
    vtep: (MacAddr, MacAddr),
}

impl Hop {
    /// From `from` to `to`, by the Ethernet next hop `next`.
    fn new(lab: &Lab, from: &Node, to: &Node, next: MacAddr) -> Result<Self> {
        Ok(Self {
            eth: (from.mac(NODE_INTERFACE)?, next),
            ip: (from.address, to.address),
            vtep: (vtep_mac(lab, from)?, vtep_mac(lab, to)?),
        })
    }

    /// The frame this hop must have for what is inside `captured`. From the capture come only what
    /// the sender may choose: the source port, and the kernel's identification.
    fn rebuild(&self, tier: Tier, captured: &Vxlan) -> Result<Vec<u8>> {
        let inner = Ethernet2Header {
            source: self.vtep.0.octets,
            destination: self.vtep.1.octets,
            ether_type: etherparse::EtherType::IPV4,
        };
        let inner_ip = &captured.inner.ip;
        let mut message = VXLAN_HEADER.to_vec();
        message.extend(inner.to_bytes());
        message.extend(inner_ip.to_bytes());
        message.extend(&captured.inner.payload);
        let length = u16::try_from(message.len() + UdpHeader::LEN)?;
        let (source, destination) = (self.ip.0.octets(), self.ip.1.octets());
        let mut ip = Ipv4Header::new(length, DEFAULT_TTL, IpNumber::UDP, source, destination)?;
        let port = captured.udp.source_port;
        let udp = match tier {
            Tier::Kernel => {
                ip.dont_fragment = false;
                ip.identification = captured.ip.identification;
                UdpHeader::with_ipv4_checksum(port, VXLAN_PORT, &ip, &message)?
            }
            Tier::Fast => {
                ip.dont_fragment = true;
                ip.identification = 0;
                UdpHeader::without_ipv4_checksum(port, VXLAN_PORT, message.len())?
            }
        };
        ip.header_checksum = ip.calc_header_checksum();
        let outer = Ethernet2Header {
            source: self.eth.0.octets,
            destination: self.eth.1.octets,
            ether_type: etherparse::EtherType::IPV4,
        };
        let mut frame = outer.to_bytes().to_vec();
        frame.extend(ip.to_bytes());
        frame.extend(udp.to_bytes());
        frame.extend(message);
        Ok(frame)
    }
}

/// The `VtepMAC` a node published.
fn vtep_mac(lab: &Lab, node: &Node) -> Result<MacAddr> {
    for lease in lab.store().leases()? {
        let value: Value = serde_json::from_str(&lease.value)?;
        if value["PublicIP"] == node.address.to_string() {
            let mac = value["BackendData"]["VtepMAC"].as_str();
            return Ok(mac
                .with_context(|| format!("no VtepMAC in {value}"))?
                .parse()?);
        }
    }
    anyhow::bail!("no lease of {}", node.name)
}

fn tier_of(packet: &Vxlan) -> Tier {
    if packet.ip.dont_fragment {
        Tier::Fast
    } else {
        Tier::Kernel
    }
}

/// The tunnel packets that a node sent, as its segment received them.
fn sent_tunnel_frames(frames: &[Frame]) -> Vec<&Frame> {
    let sent = |frame: &&Frame| frame.direction == Direction::Received;
    frames
        .iter()
        .filter(sent)
        .filter(|frame| is_udp_to(&frame.bytes, VXLAN_PORT))
        .collect()
}

/// Compares every tunnel frame with its rebuilt form and returns who encapsulated each.
fn check_frames(hop: &Hop, frames: &[Frame]) -> Result<Vec<Tier>> {
    let mut tiers = Vec::new();
    for frame in sent_tunnel_frames(frames) {
        let packet = decode_vxlan(&frame.bytes)?;
        let tier = tier_of(&packet);
        let expected = hop.rebuild(tier, &packet)?;
        ensure!(
            frame.bytes == expected,
            "a frame of the {tier:?} tier differs\ncaptured {:02x?}\nexpected {expected:02x?}",
            frame.bytes
        );
        ensure!(
            tier == Tier::Fast || packet.ip.identification != 0,
            "the identification is 0"
        );
        ensure!(
            packet.inner.has_valid_header_checksum(),
            "inner IP checksum of {packet:?}"
        );
        ensure!(
            packet.inner.has_valid_payload_checksum()?,
            "inner checksum of {packet:?}"
        );
        ensure!(
            packet.inner.ip.time_to_live == DEFAULT_TTL - 1,
            "inner TTL of {packet:?}"
        );
        tiers.push(tier);
    }
    Ok(tiers)
}

fn first_pods(lab: &Lab) -> Vec<Pod> {
    lab.nodes()
        .iter()
        .map(|node| node.pods()[0].clone())
        .collect()
}

fn builder() -> overlay_tests::lab::Builder {
    Lab::builder().nodes(2).wire(Wire::Segmented)
}

#[test]
fn fast_and_kernel_tunnel_packets_are_flannels_byte_by_byte() {
    scenario(builder(), |lab| {
        lab.bring_up(1)?;
        let pods = first_pods(lab);
        let captures = [lab.node(0).capture_wire()?, lab.node(1).capture_wire()?];
        udp::echo_each(&pods[0].endpoint(), &pods[1].endpoint(), &[100], 30)?.ensure_lossless()?;
        for (index, capture) in captures.into_iter().enumerate() {
            let (from, to) = (lab.node(index), lab.node(1 - index));
            let hop = Hop::new(lab, from, to, to.mac(NODE_INTERFACE)?)?;
            let tiers = check_frames(&hop, &capture.stop()?)?;
            ensure!(
                tiers.len() == 30,
                "{} sent {} of 30 datagrams",
                from.name,
                tiers.len()
            );
            ensure!(
                tiers[0] == Tier::Kernel,
                "netfilter must see the first packet: {tiers:?}"
            );
            ensure!(
                tiers[10..].iter().all(|&tier| tier == Tier::Fast),
                "{}: {tiers:?}",
                from.name
            );
        }
        Ok(())
    });
}

#[test]
fn tunnel_packets_to_a_routed_peer_go_to_the_router() {
    scenario(
        Lab::builder()
            .nodes(1)
            .routed_nodes(1)
            .wire(Wire::Segmented),
        |lab| {
            lab.bring_up(1)?;
            let pods = first_pods(lab);
            let capture = lab.node(0).capture_wire()?;
            udp::echo_each(&pods[0].endpoint(), &pods[1].endpoint(), &[100], 30)?
                .ensure_lossless()?;
            let next = lab.underlay().router_mac(0)?;
            let hop = Hop::new(lab, lab.node(0), lab.node(1), next)?;
            let tiers = check_frames(&hop, &capture.stop()?)?;
            ensure!(tiers.len() == 30 && tiers[29] == Tier::Fast, "{tiers:?}");
            Ok(())
        },
    );
}

#[test]
fn without_the_fast_path_every_packet_is_the_kernels() {
    scenario(builder(), |lab| {
        lab.start_agents(&["--fastpath=off"])?;
        lab.bring_up(1)?;
        let pods = first_pods(lab);
        let capture = lab.node(0).capture_wire()?;
        udp::echo_each(&pods[0].endpoint(), &pods[1].endpoint(), &[100], 20)?.ensure_lossless()?;
        let to = lab.node(1);
        let hop = Hop::new(lab, lab.node(0), to, to.mac(NODE_INTERFACE)?)?;
        let tiers = check_frames(&hop, &capture.stop()?)?;
        ensure!(
            tiers.len() == 20 && tiers.iter().all(|&tier| tier == Tier::Kernel),
            "{tiers:?}"
        );
        Ok(())
    });
}

#[test]
fn a_flow_keeps_its_source_port_from_the_kernel_path_to_the_fast_path() {
    scenario(builder(), |lab| {
        lab.bring_up(1)?;
        let pods = first_pods(lab);
        let capture = lab.node(0).capture_wire()?;
        udp::echo_each(&pods[0].endpoint(), &pods[1].endpoint(), &[100], 30)?.ensure_lossless()?;
        let frames = capture.stop()?;
        let mut ports = Vec::new();
        for frame in sent_tunnel_frames(&frames) {
            ports.push(decode_vxlan(&frame.bytes)?.udp.source_port);
        }
        ports.dedup();
        ensure!(
            ports.len() == 1,
            "source ports in the order of use: {ports:?}"
        );
        let range = lab
            .node(0)
            .cmd("cat", ["/proc/sys/net/ipv4/ip_local_port_range"])?;
        let bounds: Vec<u16> = range.split_whitespace().flat_map(str::parse).collect();
        ensure!(
            (bounds[0]..=bounds[1]).contains(&ports[0]),
            "{ports:?} of {range}"
        );
        Ok(())
    });
}

/// Sends `count` datagrams with type of service `tos` from one socket and returns the outer TOS of
/// the tunnel packets, which must all have left by `tier`, after the flow has settled.
fn outer_tos(lab: &Lab, from: usize, to: usize, tos: u8, tier: Tier) -> Result<u8> {
    let pods = first_pods(lab);
    let (from_pod, to_pod) = (pods[from].endpoint(), pods[to].endpoint());
    let server = udp::EchoServer::start(&to_pod)?;
    let capture = from_pod.namespace.enter(|| -> Result<Capture> {
        let socket = std::net::UdpSocket::bind((from_pod.address, 0))?;
        socket.connect(server.address)?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
        setsockopt(&socket, sockopt::Ipv4Tos, &i32::from(tos))?;
        let mut buffer = [0; 200];
        let mut exchange = |number| -> Result<()> {
            socket.send(&udp::fill(number, 100))?;
            socket.recv(&mut buffer).context("no echo")?;
            Ok(())
        };
        (0..10).try_for_each(&mut exchange)?;
        let capture = lab.node(from).capture_wire()?;
        (10..15).try_for_each(&mut exchange)?;
        Ok(capture)
    })?;
    server.stop()?;
    let frames = capture.stop()?;
    let mut seen = None;
    for frame in sent_tunnel_frames(&frames) {
        let packet = decode_vxlan(&frame.bytes)?;
        ensure!(
            tier_of(&packet) == tier,
            "TOS {tos:#04x} left by the {:?} tier",
            tier_of(&packet)
        );
        let inner = decode_ipv4(&frame.bytes[50..])?.ip;
        ensure!(
            (inner.dscp.value() << 2 | inner.ecn.value()) == tos,
            "inner TOS of {inner:?}"
        );
        seen = Some(packet.ip.dscp.value() << 2 | packet.ip.ecn.value());
    }
    seen.context("no tunnel packet was captured")
}

#[test]
fn dscp_and_ecn_of_the_outer_header_are_the_kernels() {
    scenario(builder(), |lab| {
        // Packets from n1 are fast, those from n2 are the kernel's own.
        lab.start_agent(lab.node(0), &[])?;
        lab.start_agent(lab.node(1), &["--fastpath=off"])?;
        lab.bring_up(1)?;
        for tos in [0x00, 0xb8, 0x01, 0x02, 0x29, 0xbb] {
            let fast = outer_tos(lab, 0, 1, tos, Tier::Fast)?;
            let kernel = outer_tos(lab, 1, 0, tos, Tier::Kernel)?;
            ensure!(
                fast == kernel,
                "TOS {tos:#04x}: fast {fast:#04x}, kernel {kernel:#04x}"
            );
        }
        Ok(())
    });
}
