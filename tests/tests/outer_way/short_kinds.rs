//! Packets of every kind arrive by the short way as they were sent, and each is counted where the documents
//! say.

use std::{io::ErrorKind, net::SocketAddr, os::fd::AsRawFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    socket::{MsgFlags, SockaddrStorage, recv, sendto, setsockopt, sockopt::ReceiveTimeout},
    time::TimeVal,
};
use overlay_common::wire::IPPROTO_SCTP;
use overlay_tests::{
    differ::{Mode, in_mode},
    in_both_families,
    lab::{Lab, Node},
    rules::Protocol,
    services::{Server, is_unreachable},
    sys,
    traffic::{
        Address, Endpoint,
        tcp::{self, Spec},
        udp,
    },
    wait::{scaled, wait_for},
};
use serde_json::Value;

use crate::{
    family::{DEADLINE, Header, pods, two_nodes},
    short_way::counted,
};

const PORT: u16 = 8080;
/// Packets of a kind.
const COUNT: u32 = 40;
const PATIENCE: Duration = Duration::from_secs(2);
/// A protocol that is nobody's (RFC 3692).
const EXPERIMENT: u8 = 253;

/// Sends what `exchange` does, again until most of its packets went the short way at both nodes and in both
/// directions: `least` of each.
fn goes_the_short_way(
    lab: &Lab,
    least: u64,
    mut exchange: impl FnMut() -> Result<()>,
) -> Result<()> {
    let count = || -> Result<[[u64; 2]; 2]> { Ok([counted(lab.node(0))?, counted(lab.node(1))?]) };
    wait_for("the short way", DEADLINE, || {
        let before = count()?;
        exchange()?;
        let after = count()?;
        let went = before.as_flattened().iter().zip(after.as_flattened());
        let went: Vec<_> = went.map(|(before, after)| after - before).collect();
        ensure!(
            went.iter().all(|&packets| packets >= least),
            "packets that went it, out and in at each node: {went:?}"
        );
        Ok(())
    })
}

fn the_hosts_own_packets_arrive_whole<A: Header>() {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [_, pod] = pods::<A>(lab)?;
        let host = A::tunnel_end(lab.node(0))?;
        // Small ones, and others in two fragments and in many.
        wait_for("the short way", DEADLINE, || {
            let before = counted(lab.node(0))?;
            udp::echo_each(&host, &pod, &[100, 1_900, 20_000], COUNT)?.ensure_lossless()?;
            let after = counted(lab.node(0))?;
            let went = [after[0] - before[0], after[1] - before[1]];
            // Out go those that are whole, in come all.
            ensure!(
                went[0] >= u64::from(COUNT) * 9 / 10 && went[1] >= u64::from(COUNT) * 4,
                "packets that went it, out and in: {went:?}"
            );
            Ok(())
        })?;
        // What the host hands over in one piece leaves by the short way, and arrives as the network makes it.
        for (from, to) in [(&host, &pod), (&pod, &host)] {
            udp::send_segmented(from, to, 1_200, 20, COUNT)?.ensure_lossless()?;
        }
        let [out, _] = counted(lab.node(0))?;
        tcp::transfer(&host, &pod, Spec::bulk(32 << 20))?;
        tcp::transfer(&pod, &host, Spec::bulk(32 << 20))?;
        tcp::transfer(&host, &pod, Spec::small_writes(1 << 18, 100))?;
        let [after, _] = counted(lab.node(0))?;
        ensure!(
            after - out >= 1_000,
            "{} packets of 64 MiB went out the short way",
            after - out
        );
        Ok(())
    });
}

fn fragments_of_pods_arrive_whole<A: Header>() {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [client, server] = pods::<A>(lab)?;
        // They leave by the kernel's tunnel, as only it knows which datagram one belongs to. Inwards they are packets
        // like any other.
        wait_for("fragments by the short way", DEADLINE, || {
            let before = counted(lab.node(1))?;
            udp::echo_each(&client, &server, &[1_900, 20_000], COUNT)?.ensure_lossless()?;
            let after = counted(lab.node(1))?;
            ensure!(
                after[1] - before[1] >= COUNT.into(),
                "in {before:?} and {after:?}"
            );
            Ok(())
        })
    });
}

/// Sends packets of a protocol each way; each must arrive as it was sent.
fn exchange_raw<A: Address>(
    ends: [&Endpoint<A>; 2],
    protocol: u8,
    packet: impl Fn(u32) -> Vec<u8>,
) -> Result<()> {
    let open = |end: &Endpoint<A>| {
        let address = SocketAddr::new(end.address.into(), 0);
        let socket = end.namespace.enter(|| sys::ip_socket(address, protocol));
        let socket = socket.with_context(|| format!("protocol {protocol} at {address}"))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(2, 0))?;
        anyhow::Ok(socket)
    };
    let sockets = [open(ends[0])?, open(ends[1])?];
    let mut buffer = [0; 1 << 11];
    for number in 0..COUNT {
        for (from, to) in [(0, 1), (1, 0)] {
            let packet = packet(number);
            let address = SocketAddr::new(ends[to].address.into(), 0);
            let (from, to) = (&sockets[from], &sockets[to]);
            let target = SockaddrStorage::from(address);
            sendto(from.as_raw_fd(), &packet, &target, MsgFlags::empty())?;
            // Over IPv4 with the header.
            let len = recv(to.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .with_context(|| format!("protocol {protocol}, packet {number} to {address}"))?;
            ensure!(
                buffer[..len].ends_with(&packet),
                "packet {number} of protocol {protocol} arrives as {:?}",
                &buffer[..len]
            );
        }
    }
    Ok(())
}

/// An association's first packet, of which conntrack makes what it likes.
fn sctp(number: u32) -> Vec<u8> {
    const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 9, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    let ports = [PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
    [&ports[..], &[0; 4], &number.to_be_bytes(), &INIT].concat()
}

fn other_protocols_go_the_short_way<A: Header>() {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [client, server] = pods::<A>(lab)?;
        let host = A::tunnel_end(lab.node(0))?;
        for from in [&client, &host] {
            goes_the_short_way(lab, COUNT.into(), || {
                exchange_raw([from, &server], IPPROTO_SCTP, sctp)
            })?;
            goes_the_short_way(lab, COUNT.into(), || {
                exchange_raw([from, &server], EXPERIMENT, |number| udp::fill(number, 500))
            })?;
        }
        Ok(())
    });
}

fn pings_and_errors_go_the_short_way<A: Header>() {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [client, server] = pods::<A>(lab)?;
        let host = A::tunnel_end(lab.node(0))?;
        // As many errors as questions.
        for limit in ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"] {
            server.namespace.set_sysctl(limit, "0")?;
        }
        goes_the_short_way(lab, COUNT.into(), || {
            (0..COUNT).try_for_each(|_| A::ping(&host, server.address))
        })?;
        for from in [&client, &host] {
            goes_the_short_way(lab, COUNT.into(), || {
                (0..COUNT).try_for_each(|_| is_refused(from, &server))
            })?;
        }
        Ok(())
    });
}

/// Sends a datagram to a port where nobody is, and waits for the answer that says so.
fn is_refused<A: Address>(from: &Endpoint<A>, to: &Endpoint<A>) -> Result<()> {
    let socket = udp::bind(from)?;
    socket.connect(SocketAddr::new(to.address.into(), PORT))?;
    socket.set_read_timeout(Some(scaled(PATIENCE)))?;
    socket.send(&[0; 100])?;
    let answer = socket.recv(&mut [0]);
    ensure!(
        matches!(&answer, Err(error) if error.kind() == ErrorKind::ConnectionRefused),
        "{answer:?} instead of an error"
    );
    Ok(())
}

/// Packets that the tunnel device has sent and received.
fn of_the_device<A: Header>(node: &Node) -> Result<[u64; 2]> {
    let text = node.cmd("ip", ["-s", "-j", "link", "show", A::TUNNEL])?;
    let stats: Value = serde_json::from_str(&text)?;
    let count = |direction: &str| {
        let packets = stats[0]["stats64"][direction]["packets"].as_u64();
        packets.with_context(|| text.clone())
    };
    Ok([count("tx")?, count("rx")?])
}

fn a_packet_is_counted_by_the_device_or_the_programs<A: Header>() {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [client, server] = pods::<A>(lab)?;
        let _server = Server::start(&server, Protocol::Udp, PORT)?;
        let target = SocketAddr::new(server.address.into(), PORT);
        let ask = || -> Result<()> {
            for _ in 0..COUNT {
                let is_silent = is_unreachable(&client, Protocol::Udp, target, PATIENCE)?;
                ensure!(!is_silent, "no answer");
            }
            Ok(())
        };
        goes_the_short_way(lab, u64::from(COUNT) / 2, ask)?;
        let node = lab.node(0);
        let count = || -> Result<[u64; 2]> {
            let [sent, received] = of_the_device::<A>(node)?;
            let [out, inwards] = counted(node)?;
            Ok([sent + out, received + inwards])
        };
        let before = count()?;
        ask()?;
        let after = count()?;
        let counts = [after[0] - before[0], after[1] - before[1]];
        ensure!(counts == [u64::from(COUNT); 2], "counted: {counts:?}");
        Ok(())
    });
}

in_both_families! { addresses:
    the_hosts_own_packets_arrive_whole,
    fragments_of_pods_arrive_whole,
    other_protocols_go_the_short_way,
    pings_and_errors_go_the_short_way,
    a_packet_is_counted_by_the_device_or_the_programs,
}
