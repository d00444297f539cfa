//! IPv6 paths that get narrow. Nothing on the way fragments: pods learn it.

use std::{
    net::{Ipv6Addr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    differ::{Mode, in_both_modes},
    lab::{Builder, Lab},
    sys::PathMtuDiscovery,
};

use super::ends::{Ends, echo, wait_refused, warm};

/// The headers of IPv6 and UDP.
const HEADERS: usize = 48;
/// A datagram that fits before the path gets narrow and not after, as does what the server answers.
const LARGE: usize = 1_340;
const VXLAN: &str = r#"{"Type":"vxlan"}"#;
const DIRECT: &str = r#"{"Type":"vxlan","DirectRouting":true}"#;

fn nodes(backend: &str) -> Builder {
    Lab::builder().nodes(2).config(&format!(
        r#"{{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{backend}}}"#
    ))
}

/// What a socket learns that never sends fragments, and for which `len` bytes are too many: the largest
/// packet it may send.
fn learn(socket: &UdpSocket, len: usize) -> Result<usize> {
    wait_refused(socket, len)?;
    // An error may still be about a datagram before.
    let fits = |&len: &usize| {
        (0..5).any(|_| {
            thread::sleep(Duration::from_millis(1));
            socket.send(&vec![7; len]).is_ok()
        })
    };
    let largest = (1..len).rev().find(fits);
    Ok(largest.context("nothing may be sent")? + HEADERS)
}

/// Makes the path narrow while flows are fast; what is learned of it.
fn narrow(
    lab: &Lab,
    mode: Mode,
    ends: &Ends<Ipv6Addr>,
    make_narrow: impl FnOnce() -> Result<()>,
) -> Result<usize> {
    let mut open = ends.connect()?;
    let whole = ends.probe(PathMtuDiscovery::Do)?;
    warm(lab, mode, || open.exchange(100, 100))?;
    warm(lab, mode, || {
        ensure!(echo(&whole, LARGE)?, "{LARGE} bytes are lost");
        Ok(())
    })?;
    open.exchange(1 << 20, 60_000)?;

    make_narrow()?;
    let start = Instant::now();
    open.exchange(1 << 20, 60_000).context("open connection")?;
    let stall = start.elapsed();
    ensure!(
        stall < Duration::from_secs(5),
        "{mode:?}: an open connection stalls for {stall:?}"
    );
    let learned = learn(&whole, LARGE)?;
    while whole.recv(&mut [0; 8_192]).is_ok() {}
    ensure!(
        echo(&whole, learned - HEADERS)?,
        "a datagram that fits is lost"
    );
    ends.connect()?
        .exchange(1 << 20, 60_000)
        .context("new connection")?;
    // Sent in fragments, once the pod knows that it must.
    let careless = ends.probe(PathMtuDiscovery::Dont)?;
    for size in [
        1_200,
        learned - HEADERS,
        learned - HEADERS + 1,
        LARGE,
        1_900,
    ] {
        ensure!(
            echo(&careless, size)? || echo(&careless, size)?,
            "{size} bytes are lost"
        );
    }
    warm(lab, mode, || open.exchange(100, 100)).context("after the MTU was learned")?;
    open.close()?;
    Ok(learned)
}

/// A route of the underlay to the other node gets a smaller MTU.
fn narrow_route(lab: &Lab, mode: Mode, mtu: usize) -> Result<usize> {
    let ends = Ends::<Ipv6Addr>::start(lab)?;
    narrow(lab, mode, &ends, || {
        let (node, peer) = (lab.node(0), lab.node(1).address6());
        let pod = ends.to.address;
        let way = node.cmd("ip", ["-6", "route", "get", &pod.to_string()])?;
        // Directly, the route to the pods is the one that counts.
        let direct = if way.contains(" eth0 ") {
            format!("route add {pod}/128 via {peer} dev eth0 mtu {mtu}\n")
        } else {
            String::new()
        };
        node.namespace.ip_batch(&format!(
            "route add {peer}/128 dev eth0 mtu {mtu}\n{direct}"
        ))
    })
}

#[test]
fn pods_learn_a_smaller_mtu_of_the_underlays_route_through_the_tunnel() {
    let learned = in_both_modes(&nodes(VXLAN), &[], |lab, mode| {
        narrow_route(lab, mode, 1_400)
    });
    assert_eq!(learned, [1330, 1330]);
}

#[test]
fn pods_learn_a_smaller_mtu_of_a_direct_route() {
    let learned = in_both_modes(&nodes(DIRECT), &[], |lab, mode| {
        narrow_route(lab, mode, 1_350)
    });
    assert_eq!(learned, [1350, 1350]);
}

#[test]
fn pods_learn_a_smaller_mtu_in_the_middle_of_the_path() {
    let nodes = nodes(VXLAN).nodes(1).routed_nodes(1);
    let learned = in_both_modes(&nodes, &[], |lab, mode| {
        let ends = Ends::<Ipv6Addr>::start(lab)?;
        narrow(lab, mode, &ends, || {
            let router = lab.outside6().namespace;
            router.ip_batch("route replace fd00:172:30:1::/64 dev seg1 metric 1 mtu 1400\n")
        })
    });
    assert_eq!(learned, [1330, 1330]);
}
