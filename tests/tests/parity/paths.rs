//! Paths that are narrow, or that somebody measures: what pods observe is the same with the fast
//! path as without, and is what a routed network owes them.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{Icmpv4Header, Icmpv4Type, IpNumber};
use nix::sys::socket::{getsockopt, sockopt};
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::{Capture, Direction},
    decode::decode_ipv4,
    differ::{Mode, in_both_modes, raw::POD_INTERFACE},
    lab::{Lab, Wire, underlay::NODE_INTERFACE},
    rules::Protocol,
    services::{Connection, Server},
    sys::{self, PathMtuDiscovery},
    traffic::{Endpoint, ping, tcp, udp},
    wait::wait_for,
};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(15);

/// Pod `a` of the first node, and pod `a` of the second.
fn ends(lab: &Lab) -> Result<[Endpoint; 2]> {
    lab.add_pods(1)?;
    lab.ping_matrix()?;
    Ok([0, 1].map(|node| lab.node(node).pods()[0].endpoint()))
}

/// Uses a connection until the fast path carries it, if there is one.
fn warm(lab: &Lab, mode: Mode, connection: &mut Connection) -> Result<()> {
    wait_for("the fast path to carry a connection", DEADLINE, || {
        let before = lab.node(0).counters()?.fast(Hook::Egress);
        connection.exchange(1_000, 100)?;
        let fast = lab.node(0).counters()?.fast(Hook::Egress) - before;
        ensure!(
            mode == Mode::Off || fast >= 8,
            "{fast} of 10 packets were fast"
        );
        Ok(())
    })
}

/// A UDP socket of a pod and what it finds out about the path.
struct Probe {
    socket: UdpSocket,
}

impl Probe {
    fn open(from: &Endpoint, to: Ipv4Addr, discovery: PathMtuDiscovery) -> Result<Self> {
        let socket = from.namespace.enter(|| -> Result<_> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(SocketAddrV4::new(to, PORT))?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        sys::set_path_mtu_discovery(&socket, discovery)?;
        Ok(Self { socket })
    }

    /// Whether a datagram of `len` bytes comes back.
    fn echo(&self, len: usize) -> Result<bool> {
        self.socket.send(&vec![7; len])?;
        Ok(self.socket.recv(&mut [0; 2_048]).is_ok())
    }

    /// Sends datagrams of `len` bytes, too large and not to be fragmented, until the kernel of the
    /// pod knows better; the MTU it has learned.
    fn learn_mtu(&self, len: usize) -> Result<i32> {
        wait_for(
            "a datagram to be refused as too large",
            DEADLINE,
            || match self.socket.send(&vec![7; len]) {
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
                other => bail!("sent: {other:?}"),
            },
        )?;
        Ok(getsockopt(&self.socket, sockopt::IpMtu)?)
    }
}

/// What a pod finds out when the underlay's route to the peer gets a smaller MTU while flows are
/// fast: the MTU that sockets learn which do not want fragments, or `None` if their datagrams pass.
fn narrow_route(lab: &Lab, mode: Mode) -> Result<Option<i32>> {
    let [from, to] = ends(lab)?;
    let _tcp = Server::start(&to, Protocol::Tcp, PORT)?;
    let _udp = Server::start(&to, Protocol::Udp, PORT)?;
    let target = SocketAddrV4::new(to.address, PORT);
    let mut open = Connection::open(&from, Protocol::Tcp, target, 0)?;
    warm(lab, mode, &mut open)?;
    open.exchange(1 << 20, 60_000)?;

    let peer = format!("{}/32", lab.node(1).address);
    let route = ["route", "add", &peer, "dev", "eth0", "mtu", "1300"];
    lab.node(0).cmd("ip", route)?;
    if lab
        .node(0)
        .cmd("ip", ["route", "get", &to.address.to_string()])?
        .contains(" eth0 ")
    {
        // Direct: the route to the pods is the one that counts.
        let (subnet, via) = (lab.node(1).subnet_env()?.subnet()?, lab.node(1).address);
        lab.node(0).namespace.ip_batch(&format!(
            "route add {to}/32 via {via} dev eth0 mtu 1300\n",
            to = to.address
        ))?;
        ensure!(subnet.contains(to.address), "{subnet}");
    }
    let careful = Probe::open(&from, to.address, PathMtuDiscovery::Do)?;
    let learned = if careful.echo(1_400)? {
        None
    } else {
        Some(careful.learn_mtu(1_400)?)
    };
    ensure!(careful.echo(1_200)?, "a datagram that fits is lost");
    open.exchange(1 << 20, 60_000).context("open connection")?;
    let mut fresh = Connection::open(&from, Protocol::Tcp, target, 0)?;
    fresh.exchange(1 << 20, 60_000).context("new connection")?;
    warm(lab, mode, &mut open).context("after the MTU was learned")?;
    let sizes = [
        1_200, 1_222, 1_223, 1_271, 1_272, 1_273, 1_400, 1_422, 4_000,
    ];
    let careless = Probe::open(&from, to.address, PathMtuDiscovery::Dont)?;
    for size in sizes {
        ensure!(
            careless.echo(size)? || size > 2_000,
            "{size} bytes are lost"
        );
    }
    udp::echo_each(&from, &to, &sizes, 3)?.ensure_lossless()?;
    Ok(learned)
}

/// The kernel fragments the outer packets, as flannel's device does: pods notice nothing.
#[test]
fn a_smaller_mtu_of_the_underlays_route_stops_no_tunnelled_packet() {
    let nodes = Lab::builder().nodes(2);
    assert_eq!(in_both_modes(&nodes, &[], narrow_route), [None, None]);
}

/// What leaves the node while the route to the peer has a smaller MTU, one that is not locked: the
/// programs leave to the kernel what it has to fragment.
#[test]
fn tunnel_packets_keep_to_the_mtu_of_the_underlays_route() {
    let nodes = Lab::builder().nodes(2).wire(Wire::Segmented);
    in_both_modes(&nodes, &[], |lab, mode| {
        let [from, to] = ends(lab)?;
        let _tcp = Server::start(&to, Protocol::Tcp, PORT)?;
        let target = SocketAddrV4::new(to.address, PORT);
        let mut open = Connection::open(&from, Protocol::Tcp, target, 0)?;
        warm(lab, mode, &mut open)?;
        let node = lab.node(0);
        let peer = format!("{}/32", lab.node(1).address);
        node.cmd("ip", ["route", "add", &peer, "dev", "eth0", "mtu", "1300"])?;
        wait_for("small packets on the wire", DEADLINE, || {
            let capture = Capture::start(&node.namespace, NODE_INTERFACE)?;
            open.exchange(1 << 18, 60_000)?;
            let frames = capture.stop()?;
            let sent = frames
                .iter()
                .filter(|frame| frame.direction == Direction::Sent)
                .filter_map(|frame| decode_ipv4(&frame.bytes).ok());
            let longest = sent.map(|packet| packet.ip.total_len).max();
            ensure!(
                longest.is_some_and(|longest| (1_000..=1_300).contains(&longest)),
                "{mode:?}: the longest has {longest:?} bytes"
            );
            Ok(())
        })?;
        warm(lab, mode, &mut open)
    });
}

/// Without a tunnel the node is a router, and tells the pod.
#[test]
fn pods_learn_a_smaller_mtu_of_a_direct_route() {
    let nodes = Lab::builder()
        .nodes(2)
        .config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    assert_eq!(
        in_both_modes(&nodes, &[], narrow_route),
        [Some(1300), Some(1300)]
    );
}

/// A router in the middle has a smaller MTU than both ends, and tells.
#[test]
fn connections_survive_a_smaller_mtu_in_the_middle_of_the_path() {
    let nodes = Lab::builder().nodes(1).routed_nodes(1);
    in_both_modes(&nodes, &[], |lab, mode| {
        let [from, to] = ends(lab)?;
        let _tcp = Server::start(&to, Protocol::Tcp, PORT)?;
        let target = SocketAddrV4::new(to.address, PORT);
        let mut open = Connection::open(&from, Protocol::Tcp, target, 0)?;
        warm(lab, mode, &mut open)?;
        open.exchange(1 << 20, 60_000)?;

        let router = lab.outside().namespace;
        let segment = [
            "route",
            "change",
            "172.30.1.0/24",
            "dev",
            "seg1",
            "src",
            "172.30.1.1",
        ];
        router.run("ip", segment.iter().copied().chain(["mtu", "1400"]))?;
        let start = Instant::now();
        open.exchange(1 << 20, 60_000).context("open connection")?;
        let stall = start.elapsed();
        ensure!(
            stall < Duration::from_secs(5),
            "{mode:?}: an open connection stalls for {stall:?}"
        );
        let mut fresh = Connection::open(&from, Protocol::Tcp, target, 0)?;
        fresh.exchange(1 << 20, 60_000).context("new connection")?;
        udp::echo_each(&from, &to, &[1_200, 1_422, 4_000], 3)?.ensure_lossless()
    });
}

/// The flow that is traced is one the fast path carries.
#[test]
fn traceroute_shows_the_same_hops() {
    let nodes = Lab::builder().nodes(2);
    let traces = in_both_modes(&nodes, &[], |lab, mode| {
        let [from, to] = ends(lab)?;
        let _udp = Server::start(&to, Protocol::Udp, PORT)?;
        let probe = Probe::open(&from, to.address, PathMtuDiscovery::Dont)?;
        wait_for("the fast path to carry the probes", DEADLINE, || {
            let before = lab.node(0).counters()?.fast(Hook::Egress);
            for _ in 0..10 {
                ensure!(probe.echo(100)?, "no answer");
            }
            let fast = lab.node(0).counters()?.fast(Hook::Egress) - before;
            ensure!(
                mode == Mode::Off || fast >= 8,
                "{fast} of 10 packets were fast"
            );
            Ok(())
        })?;
        let mut hops = Vec::new();
        for ttl in 1..=4 {
            let capture = Capture::start(&from.namespace, POD_INTERFACE)?;
            probe.socket.set_ttl(ttl)?;
            // An error is the ICMP message, which is read from the capture.
            let reached = matches!(probe.echo(100), Ok(true));
            let errors = capture.stop()?;
            let errors = errors
                .iter()
                .filter(|frame| frame.direction == Direction::Received)
                .filter_map(|frame| decode_ipv4(&frame.bytes).ok())
                .filter(|packet| packet.ip.protocol == IpNumber::ICMP)
                .filter_map(|packet| {
                    let (icmp, _) = Icmpv4Header::from_slice(&packet.payload).ok()?;
                    let exceeded = matches!(icmp.icmp_type, Icmpv4Type::TimeExceeded(_));
                    exceeded.then(|| Ipv4Addr::from(packet.ip.source).to_string())
                });
            hops.push((ttl, errors.collect::<Vec<_>>(), reached));
        }
        Ok(hops)
    });
    let hop = |ttl, from: &[&str], reached| {
        let from = from.iter().map(|&hop| hop.to_owned()).collect::<Vec<_>>();
        (ttl, from, reached)
    };
    let expected = vec![
        hop(1, &["10.5.1.1"], false),
        hop(2, &["10.5.2.0"], false),
        hop(3, &[], true),
        hop(4, &[], true),
    ];
    assert_eq!(traces, [expected.clone(), expected]);
}

/// What segmentation and merging make of it on wires of both kinds, and fragments.
#[test]
fn large_sends_arrive_whole() {
    for wire in [Wire::Offloaded, Wire::Segmented] {
        let nodes = Lab::builder().nodes(2).wire(wire);
        in_both_modes(&nodes, &[], |lab, mode| {
            let [from, to] = ends(lab)?;
            for (from, to) in [(&from, &to), (&to, &from)] {
                tcp::transfer(from, to, tcp::Spec::bulk(4 << 20))?;
                udp::send_segmented(from, to, 1_200, 40, 5)?.ensure_lossless()?;
                udp::send_segmented(from, to, 1_422, 30, 5)?.ensure_lossless()?;
                let sizes = [1_422, 1_423, 4_000, 20_000, 65_000];
                udp::echo_each(from, to, &sizes, 3)?.ensure_lossless()?;
            }
            let counters = lab.node(0).counters()?;
            for hook in [Hook::Egress, Hook::Ingress] {
                let fast = counters.fast(hook);
                ensure!(
                    (fast > 50) == (mode == Mode::Fast),
                    "{fast} packets were fast"
                );
            }
            Ok(())
        });
    }
}

/// The pods build a tunnel of their own through ours, on vxlan's usual port and on flannel's.
#[test]
fn pods_can_run_a_tunnel_of_their_own() {
    let nodes = Lab::builder().nodes(2);
    in_both_modes(&nodes, &[], |lab, mode| {
        let ends = ends(lab)?;
        for (number, port) in [(1, "4789"), (2, "8472")] {
            let device = format!("vx{number}");
            let mut inner = Vec::new();
            for (own, peer) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
                let address = Ipv4Addr::new(192, 168, number, u8::try_from(inner.len() + 1)?);
                let (local, remote) = (own.address, peer.address);
                own.namespace.ip_batch(&format!(
                    "link add {device} mtu 1400 type vxlan id 42 dstport {port} \
                         local {local} remote {remote} dev {POD_INTERFACE}\n\
                     addr add {address}/24 dev {device}\n\
                     link set {device} up\n"
                ))?;
                inner.push(Endpoint {
                    namespace: own.namespace.clone(),
                    address,
                });
            }
            for (from, to) in [(&inner[0], &inner[1]), (&inner[1], &inner[0])] {
                ping::once(from, to.address)?;
                tcp::transfer(from, to, tcp::Spec::bulk(1 << 20))?;
                tcp::transfer(from, to, tcp::Spec::small_writes(5_000, 100))?;
                udp::send_segmented(from, to, 1_200, 20, 3)?.ensure_lossless()?;
            }
        }
        let dropped = lab.node(0).counters()?.dropped() + lab.node(1).counters()?.dropped();
        ensure!(dropped == 0, "{mode:?}: {dropped} packets were dropped");
        Ok(())
    });
}
