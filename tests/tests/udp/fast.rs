//! Established flows, which the programs carry, agent or no agent: on wires where datagrams leave with all of their
//! checksums.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpNumber, Ipv4Header, UdpHeader};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    capture::Direction,
    decode::{Packet, decode_ipv4, is_udp_to},
    lab::{Builder, Lab, Node, Wire, counters::Counters, scenario, underlay::NODE_INTERFACE},
    rules::Protocol,
    services::{Connection, Server},
    traffic::{flow::SteadyFlow, ping, tcp, udp},
    wait::wait_for,
};

use super::{
    CONFIG, DEADLINE, PORT, counted,
    peer::{ADDRESS, StockPeer, packet},
};

/// Between two datagrams of a steady flow.
const INTERVAL: Duration = Duration::from_millis(2);

/// Nodes whose packets leave as a network card sends them.
pub fn cabled(nodes: u8) -> Builder {
    let builder = Lab::builder().nodes(nodes).config(CONFIG);
    builder.wire(Wire::Segmented)
}

/// What both nodes count while `exchange` runs.
fn counting(lab: &Lab, exchange: impl FnOnce() -> Result<()>) -> Result<[Counters; 2]> {
    let read =
        || -> Result<[Counters; 2]> { Ok([lab.node(0).counters()?, lab.node(1).counters()?]) };
    let before = read()?;
    exchange()?;
    let [near, far] = read()?;
    Ok([near.since(&before[0]), far.since(&before[1])])
}

/// That so many packets left fast at one node and arrived fast at the other, in both directions.
fn ensure_fast([near, far]: &[Counters; 2], outcome: Outcome, packets: u64) -> Result<()> {
    for (hook, counters) in [
        (Hook::Egress, near),
        (Hook::Ingress, near),
        (Hook::Egress, far),
        (Hook::Ingress, far),
    ] {
        ensure!(
            counters.packets(hook, outcome) >= packets,
            "{} {}, near\n{near}\nfar\n{far}",
            hook.name(),
            outcome.name()
        );
    }
    Ok(())
}

#[test]
fn established_flows_are_fast_in_both_directions() {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let (from, to) = (lab.node(0).first_pod(), lab.node(1).first_pod());
        let sizes = [8, 9, 100, 1200, 1443, 1444];
        let echoes = counting(lab, || {
            udp::echo_each(&from, &to, &sizes, 50)?.ensure_lossless()
        })?;
        ensure_fast(&echoes, Outcome::FastTunnel, 250).context("UDP")?;
        let pings = counting(lab, || ping::all(&from, to.address, 50).map(drop))?;
        ensure_fast(&pings, Outcome::FastTunnel, 40).context("ping")?;
        let bulk = counting(lab, || {
            tcp::transfer(&from, &to, tcp::Spec::bulk(16 << 20)).map(drop)
        })?;
        ensure_fast(&bulk, Outcome::FastTunnel, 100).context("TCP")?;
        let small = counting(lab, || {
            tcp::transfer(&from, &to, tcp::Spec::small_writes(50_000, 100)).map(drop)
        })?;
        ensure_fast(&small, Outcome::FastTunnel, 20).context("TCP in small writes")?;
        udp::send_segmented(&from, &to, 1200, 40, 5)?.ensure_lossless()?;
        let (code, status) = lab.node(0).status()?;
        ensure!(code == Some(0), "{code:?}: {status}");
        ensure!(
            status.contains("carries in user space what is not fast"),
            "{status}"
        );
        Ok(())
    });
}

#[test]
fn flows_are_left_to_the_forwarder_where_checksums_are_left_open() {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let (from, to) = (lab.node(0).first_pod(), lab.node(1).first_pod());
        let counted = counting(lab, || {
            udp::echo_each(&from, &to, &[100], 100)?.ensure_lossless()
        })?;
        ensure!(
            counted.iter().all(|node| node.fast(Hook::Egress) == 0),
            "{}",
            counted[0]
        );
        let (code, status) = lab.node(0).status()?;
        ensure!(code == Some(0), "{code:?}: {status}");
        ensure!(status.contains("ethtool -K eth0 tx off"), "{status}");
        Ok(())
    });
}

/// A datagram of a node on the wire: its headers, and the packet in it.
struct OnWire {
    outer: Packet,
    udp: UdpHeader,
    inner: Ipv4Header,
}

impl OnWire {
    fn of(frame: &[u8]) -> Result<Self> {
        let outer = decode_ipv4(frame)?;
        let (udp, rest) = UdpHeader::from_slice(&outer.payload)?;
        let (inner, payload) = Ipv4Header::from_slice(rest)?;
        ensure!(inner.header_checksum == inner.calc_header_checksum());
        ensure!(usize::from(inner.total_len) == inner.header_len() + payload.len());
        ensure!(usize::from(udp.length) == UdpHeader::LEN + usize::from(inner.total_len));
        ensure!(outer.has_valid_header_checksum());
        let inner_packet = Packet {
            eth: outer.eth.clone(),
            ip: inner.clone(),
            payload: payload.to_vec(),
        };
        ensure!(inner_packet.has_valid_payload_checksum()?);
        Ok(Self { outer, udp, inner })
    }
}

#[test]
fn what_is_fast_is_on_the_wire_as_the_forwarder_sends_it() {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let (near, far) = (lab.node(0), lab.node(1));
        let (from, to) = (near.first_pod(), far.first_pod());
        let wire = near.capture_wire()?;
        udp::echo_each(&from, &to, &[8, 100, 1444], 40)?.ensure_lossless()?;
        tcp::transfer(&from, &to, tcp::Spec::bulk(1 << 20))?;
        let frames = wire.stop()?;
        let mut seen = [[0, 0], [0, 0]];
        for frame in frames.iter().filter(|f| is_udp_to(&f.bytes, PORT)) {
            let OnWire { outer, udp, inner } = OnWire::of(&frame.bytes)?;
            let (ip, eth) = (&outer.ip, &outer.eth);
            // The hub sees what the node sends as received.
            let sent = frame.direction == Direction::Received;
            let ends = if sent { [near, far] } else { [far, near] };
            let macs = [ends[0].mac(NODE_INTERFACE)?, ends[1].mac(NODE_INTERFACE)?];
            ensure!([eth.source, eth.destination] == macs.map(|mac| mac.octets));
            let addresses = ends.map(|node| node.address.octets());
            ensure!([ip.source, ip.destination] == addresses);
            ensure!((udp.source_port, udp.destination_port) == (PORT, PORT));
            ensure!((ip.time_to_live, ip.dscp.value(), ip.ecn.value()) == (64, 0, 0));
            ensure!(!ip.more_fragments && ip.options.is_empty());
            // A host's own 64, less the hop over the bridge, less the forwarder's.
            ensure!(inner.time_to_live == 62, "TTL {}", inner.time_to_live);
            // A socket's datagrams have a checksum.
            let is_fast = udp.checksum == 0;
            // Those that a socket sends as one message have no DF.
            ensure!(!is_fast || ip.dont_fragment);
            // The kernel numbers the segments of what it cuts.
            let is_cut = inner.protocol == IpNumber::TCP;
            ensure!(!is_fast || is_cut || ip.identification == 0);
            seen[usize::from(is_fast)][usize::from(sent)] += 1;
        }
        ensure!(seen[1].iter().all(|count| *count >= 60), "{seen:?}");
        ensure!(seen[0].iter().all(|count| *count > 0), "{seen:?}");
        Ok(())
    });
}

/// What a stock node gets of a pod, answered.
fn answered(stock: &StockPeer, node: &Node, pod: &UdpSocket, number: u32) -> Result<()> {
    let SocketAddr::V4(end) = pod.local_addr()? else {
        anyhow::bail!("not IPv4");
    };
    let sent = udp::fill(number, 100);
    pod.send_to(&sent, (ADDRESS, 4000))?;
    let mut datagram = [0; 2000];
    let (len, from) = { stock.socket.recv_from(&mut datagram) }.context("at the stock node")?;
    ensure!(from == SocketAddr::from((node.address, PORT)), "{from}");
    let (inner, rest) = Ipv4Header::from_slice(&datagram[..len])?;
    let (header, data) = UdpHeader::from_slice(rest)?;
    ensure!(data == sent, "datagram {number}: {data:02x?}");
    let expected = header.calc_checksum_ipv4(&inner, data)?;
    ensure!(header.checksum == expected, "datagram {number}");
    ensure!(inner.time_to_live == 62);

    let reply = udp::fill(number, 80);
    let ends = ((ADDRESS, 4000), (*end.ip(), end.port()));
    let bytes = packet(ends.0, ends.1, 63, &reply)?;
    stock.socket.send_to(&bytes, (node.address, PORT))?;
    let (len, from) = pod.recv_from(&mut datagram).context("at the pod")?;
    ensure!(from == SocketAddr::from(ends.0), "{from}");
    ensure!(datagram[..len] == reply);
    Ok(())
}

#[test]
fn a_stock_node_sends_and_gets_fast_packets() {
    scenario(cabled(1), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let stock = StockPeer::join(lab, node)?;
        let pod = udp::bind(&node.first_pod())?;
        pod.set_read_timeout(Some(DEADLINE))?;
        for number in 0..10 {
            answered(&stock, node, &pod, number)?;
        }
        let (before, forwarder) = (node.counters()?, counted(node)?);
        for number in 10..60 {
            answered(&stock, node, &pod, number)?;
        }
        let now = node.counters()?.since(&before);
        for hook in [Hook::Egress, Hook::Ingress] {
            ensure!(now.packets(hook, Outcome::FastTunnel) == 50, "{now}");
        }
        let after = counted(node)?;
        ensure!(after["sent"] == forwarder["sent"], "{after:?}");
        ensure!(after["received"] == forwarder["received"], "{after:?}");
        Ok(())
    });
}

#[test]
fn a_services_flow_is_fast_on_its_clients_node() {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let (node, client, pod) = (
            lab.node(0),
            lab.node(0).first_pod(),
            lab.node(1).first_pod(),
        );
        for (protocol, name) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
            let server = Server::start(&pod, protocol, 7000)?;
            let port = server.address.port();
            let rule = format!(
                "add table ip service\n\
                 add chain ip service pre {{ type nat hook prerouting priority -100; }}\n\
                 add rule ip service pre ip daddr 10.96.0.1 {name} dport 99 dnat to {}:{port}\n",
                pod.address
            );
            node.cmd("nft", [rule.as_str()])?;
            lab.ping_matrix()?;
            let counted = counting(lab, || {
                let service = SocketAddr::from(([10, 96, 0, 1], 99));
                let mut connection = Connection::open(&client, protocol, service, 0)?;
                connection.exchange(60 * 100, 100)?;
                connection.close()
            })?;
            let near = &counted[0];
            for hook in [Hook::Egress, Hook::Ingress] {
                let fast = near.packets(hook, Outcome::FastTranslated);
                ensure!(fast >= 50, "{name} {}: {near}", hook.name());
            }
        }
        Ok(())
    });
}

/// A rule of the host ends what is fast within a second.
fn a_rule_ends_a_flow(rule: &'static str) {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let flow = SteadyFlow::start(&node.first_pod(), &lab.node(1).first_pod(), INTERVAL)?;
        node.wait_fast()?;
        node.cmd("nft", [rule])?;
        wait_for("the flow to end", Duration::from_secs(1), || {
            let before = node.counters()?;
            let sent = flow.sent();
            wait_for("datagrams", DEADLINE, || {
                ensure!(flow.sent() >= sent + 20);
                Ok(())
            })?;
            let now = node.counters()?.since(&before);
            ensure!(now.fast(Hook::Egress) == 0, "{now}");
            Ok(())
        })?;
        // And it stays so.
        let (before, sent) = (node.counters()?, flow.sent());
        wait_for("more datagrams", DEADLINE, || {
            ensure!(flow.sent() >= sent + 1000);
            Ok(())
        })?;
        let now = node.counters()?.since(&before);
        ensure!(now.fast(Hook::Egress) == 0, "{now}");
        node.cmd("nft", ["delete table inet ends"])?;
        node.wait_fast()?;
        flow.stop().map(drop)
    });
}

#[test]
fn a_rule_about_pods_ends_a_flow() {
    a_rule_ends_a_flow(
        "add table inet ends\n\
         add chain inet ends forward { type filter hook forward priority 0; }\n\
         add rule inet ends forward ip daddr 10.5.0.0/16 meta l4proto udp drop\n",
    );
}

#[test]
fn a_rule_about_datagrams_ends_a_flow() {
    a_rule_ends_a_flow(
        "add table inet ends\n\
         add chain inet ends output { type filter hook output priority 0; }\n\
         add rule inet ends output udp dport 8285 drop\n",
    );
}

#[test]
fn fast_flows_outlive_a_killed_agent_and_its_restart_loses_nothing() {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let flow = SteadyFlow::start(&node.first_pod(), &lab.node(1).first_pod(), INTERVAL)?;
        node.wait_fast()?;
        let wait_sent = |more: u32| {
            let sent = flow.sent();
            wait_for("datagrams", DEADLINE, || {
                ensure!(flow.sent() >= sent + more);
                Ok(())
            })
        };
        node.kill_agent()?;
        let before = node.counters()?;
        wait_sent(500)?;
        let now = node.counters()?.since(&before);
        for hook in [Hook::Egress, Hook::Ingress] {
            ensure!(now.fast(hook) >= 450, "{now}");
        }
        let (code, status) = node.status()?;
        ensure!(code == Some(1), "{code:?}: {status}");
        ensure!(status.contains("what is fast goes on"), "{status}");
        lab.start_agent(node, &[])?;
        node.wait_ready()?;
        node.wait_fast()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}
