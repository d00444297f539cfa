//! Pods of three nodes, one of them behind a router, exchange everything; and what of it is on the wire.

use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, UdpHeader};
use overlay_tests::{
    capture::Direction,
    decode::{decode_ipv4, is_udp_to},
    lab::{Lab, Node, Wire, scenario, underlay::NODE_INTERFACE},
    traffic::{ping, tcp, udp},
};

use super::{CONFIG, DEVICE, PORT, counted};

/// Around everything that is special: the largest that fits is 1472 less IP and UDP headers.
const SIZES: [usize; 9] = [8, 9, 64, 100, 512, 1200, 1443, 1444, 4000];

/// In user space, whatever the wire.
fn exchange_everything(lab: &Lab) -> Result<()> {
    start(lab)?;
    for from in lab.nodes() {
        for to in lab.nodes().iter().filter(|to| to.name != from.name) {
            let (from, to) = (from.first_pod(), to.first_pod());
            ping::all(&from, to.address, 10)?;
            tcp::transfer(&from, &to, tcp::Spec::bulk(4 << 20))?;
            tcp::transfer(&from, &to, tcp::Spec::small_writes(50_000, 100))?;
            udp::echo_each(&from, &to, &SIZES, 10)?.ensure_lossless()?;
            udp::send_segmented(&from, &to, 1200, 40, 5)?.ensure_lossless()?;
        }
    }
    for node in lab.nodes() {
        let counted = counted(node)?;
        ensure!(counted["sent"] > 1000, "{counted:?}");
        ensure!(counted["received"] > 1000, "{counted:?}");
        // The interface itself speaks IPv6.
        let lost: u64 = counted.values().sum();
        let lost = lost - counted["sent"] - counted["received"] - counted["not_ipv4"];
        ensure!(lost == 0, "{counted:?}");
    }
    Ok(())
}

fn start(lab: &Lab) -> Result<()> {
    lab.start_agents(&["--fastpath=off"])?;
    lab.add_pods(1)?;
    lab.wait_converged()
}

#[test]
fn payloads_arrive_unchanged_between_all_nodes() {
    let builder = Lab::builder().nodes(2).routed_nodes(1).config(CONFIG);
    scenario(builder, |lab| exchange_everything(lab));
}

#[test]
fn payloads_arrive_unchanged_over_wires_without_offloads() {
    let builder = Lab::builder().nodes(2).config(CONFIG);
    scenario(builder.wire(Wire::Segmented), |lab| {
        exchange_everything(lab)
    });
}

#[test]
fn the_programs_or_their_absence_make_no_difference() {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.start_agents(&["--datapath=kernel"])?;
        lab.add_pods(1)?;
        super::wait_pings(lab)?;
        let (from, to) = (lab.node(0).first_pod(), lab.node(1).first_pod());
        tcp::transfer(&from, &to, tcp::Spec::bulk(1 << 20))?;
        let status = lab.node(0).operator(&["status"])?;
        ensure!(status.contains("there are no programs"), "{status}");
        ensure!(counted(lab.node(0))?["sent"] > 100, "{status}");
        Ok(())
    });
}

#[test]
fn the_node_is_as_flannel_would_have_it() {
    scenario(Lab::builder().nodes(1).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let env = node.subnet_env()?;
        ensure!(env.mtu == 1472, "MTU {}", env.mtu);
        let base = env.subnet()?.network();
        let link = node.cmd("ip", ["-d", "link", "show", "dev", DEVICE])?;
        for part in [
            "mtu 1472",
            "tun type tun pi off vnet_hdr on persist on",
            ",UP,",
        ] {
            ensure!(link.contains(part), "no {part:?} in\n{link}");
        }
        let addresses = node.cmd("ip", ["-4", "-o", "addr", "show", "dev", DEVICE])?;
        let address = format!(" inet {base}/32 scope global {DEVICE}");
        ensure!(addresses.contains(&address), "{addresses}");
        let routes = node.cmd("ip", ["route", "show", "dev", DEVICE])?;
        ensure!(
            routes.trim() == "10.5.0.0/16 proto 241 metric 241",
            "{routes}"
        );
        let leases = lab.store().leases()?;
        let [lease] = &leases[..] else {
            anyhow::bail!("{leases:?}");
        };
        let expected = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, node.address);
        ensure!(lease.value == expected, "{}", lease.value);
        let (code, status) = node.status()?;
        ensure!(code == Some(0), "{code:?}: {status}");
        ensure!(status.contains("ethtool -K eth0 tx off"), "{status}");
        Ok(())
    });
}

/// The frame that carries an inner packet with one hop less than it was sent with.
fn expected(
    (from, to): (&Node, &Node),
    (ttl, identification, dont_fragment): (u8, u16, bool),
    inner: &Ipv4Header,
    payload: &[u8],
) -> Result<Vec<u8>> {
    let mut message = inner.to_bytes().to_vec();
    message.extend(payload);
    let length = u16::try_from(message.len() + UdpHeader::LEN)?;
    let (source, destination) = (from.address.octets(), to.address.octets());
    let mut ip = Ipv4Header::new(length, ttl, IpNumber::UDP, source, destination)?;
    ip.identification = identification;
    ip.dont_fragment = dont_fragment;
    ip.header_checksum = ip.calc_header_checksum();
    let udp = UdpHeader::with_ipv4_checksum(PORT, PORT, &ip, &message)?;
    let outer = Ethernet2Header {
        source: from.mac(NODE_INTERFACE)?.octets,
        destination: to.mac(NODE_INTERFACE)?.octets,
        ether_type: EtherType::IPV4,
    };
    let mut frame = outer.to_bytes().to_vec();
    frame.extend(ip.to_bytes());
    frame.extend(udp.to_bytes());
    frame.extend(message);
    Ok(frame)
}

#[test]
fn a_datagram_carries_the_packet_itself_from_port_to_port() {
    let builder = Lab::builder().nodes(2).config(CONFIG);
    scenario(builder.wire(Wire::Segmented), |lab| {
        start(lab)?;
        let (near, far) = (lab.node(0), lab.node(1));
        ping::all(&near.first_pod(), far.first_pod().address, 1)?;
        let wire = near.capture_wire()?;
        udp::echo_each(&near.first_pod(), &far.first_pod(), &[8, 100, 1444], 20)?
            .ensure_lossless()?;
        udp::send_segmented(&near.first_pod(), &far.first_pod(), 700, 20, 1)?.ensure_lossless()?;
        let frames = wire.stop()?;
        let mut compared = [0, 0];
        for frame in frames.iter().filter(|f| is_udp_to(&f.bytes, PORT)) {
            let outer = decode_ipv4(&frame.bytes)?;
            let (header, rest) = UdpHeader::from_slice(&outer.payload)?;
            let (inner, payload) = Ipv4Header::from_slice(rest)?;
            // A host's own 64, less the hop over the bridge, less the forwarder's.
            ensure!(inner.time_to_live == 62, "TTL {}", inner.time_to_live);
            ensure!(inner.header_checksum == inner.calc_header_checksum());
            // The hub sees what the node sends as received.
            let sent = frame.direction == Direction::Received;
            let ends = if sent { (near, far) } else { (far, near) };
            let of_kernel = (64, outer.ip.identification, outer.ip.dont_fragment);
            let expected = expected(ends, of_kernel, &inner, payload)?;
            ensure!(
                frame.bytes == expected,
                "{header:?}:\n{:02x?}\ninstead of\n{expected:02x?}",
                frame.bytes
            );
            compared[usize::from(sent)] += 1;
        }
        ensure!(compared.iter().all(|count| *count >= 60), "{compared:?}");
        Ok(())
    });
}

#[test]
fn a_subnet_that_no_node_has_is_unreachable_at_once() {
    scenario(Lab::builder().nodes(1).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let before = counted(node)?;
        let nobody = Ipv4Addr::new(10, 5, 250, 1);
        for from in [node.first_pod(), node.endpoint()] {
            let connected = from
                .namespace
                .enter(|| TcpStream::connect_timeout(&(nobody, 80).into(), super::DEADLINE));
            let error = connected.err().context("somebody answers")?;
            ensure!(
                error.kind() == std::io::ErrorKind::NetworkUnreachable,
                "{}: {error}",
                from.address
            );
        }
        let now = counted(node)?;
        ensure!(now["no_node"] > before["no_node"], "{now:?}");
        Ok(())
    });
}
