//! IPv4 paths that get narrow. The kernel fragments tunnel packets, as flannel's device does.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{getsockopt, sockopt};
use overlay_tests::{
    capture::{Capture, Direction},
    decode::decode_ipv4,
    differ::{Mode, in_both_modes},
    lab::{Lab, Wire, underlay::NODE_INTERFACE},
    sys::PathMtuDiscovery,
    traffic::udp,
    wait::wait_for,
};

use super::ends::{DEADLINE, Ends, echo, wait_refused, warm};

/// What a pod finds out when the underlay's route to the peer gets a smaller MTU while flows are
/// fast: the MTU that sockets learn which do not want fragments, or `None` if their datagrams pass.
fn narrow_route(lab: &Lab, mode: Mode) -> Result<Option<i32>> {
    let ends = Ends::<Ipv4Addr>::start(lab)?;
    let to = &ends.to;
    let mut open = ends.connect()?;
    warm(lab, mode, || open.exchange(100, 100))?;
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
    let careful = ends.probe(PathMtuDiscovery::Do)?;
    let learned = if echo(&careful, 1_400)? {
        None
    } else {
        wait_refused(&careful, 1_400)?;
        Some(getsockopt(&careful, sockopt::IpMtu)?)
    };
    ensure!(echo(&careful, 1_200)?, "a datagram that fits is lost");
    open.exchange(1 << 20, 60_000).context("open connection")?;
    let mut fresh = ends.connect()?;
    fresh.exchange(1 << 20, 60_000).context("new connection")?;
    warm(lab, mode, || open.exchange(100, 100)).context("after the MTU was learned")?;
    let sizes = [
        1_200, 1_222, 1_223, 1_271, 1_272, 1_273, 1_400, 1_422, 4_000,
    ];
    let careless = ends.probe(PathMtuDiscovery::Dont)?;
    for size in sizes {
        ensure!(
            echo(&careless, size)? || size > 2_000,
            "{size} bytes are lost"
        );
    }
    udp::echo_each(&ends.from, to, &sizes, 3)?.ensure_lossless()?;
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
        let ends = Ends::<Ipv4Addr>::start(lab)?;
        let mut open = ends.connect()?;
        warm(lab, mode, || open.exchange(100, 100))?;
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
        warm(lab, mode, || open.exchange(100, 100))
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
        let ends = Ends::<Ipv4Addr>::start(lab)?;
        let mut open = ends.connect()?;
        warm(lab, mode, || open.exchange(100, 100))?;
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
        let mut fresh = ends.connect()?;
        fresh.exchange(1 << 20, 60_000).context("new connection")?;
        udp::echo_each(&ends.from, &ends.to, &[1_200, 1_422, 4_000], 3)?.ensure_lossless()
    });
}
