//! IPv6 paths that are narrow, or that somebody measures: what pods observe is the same with the fast
//! path as without.

use std::{
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{Icmpv6Header, Icmpv6Type, IpNumber};
use nix::sys::socket::{setsockopt, sockopt};
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::{Capture, Direction},
    decode6::decode_ipv6,
    differ::{Mode, in_both_modes, raw::POD_INTERFACE},
    lab::{Builder, Lab},
    rules::Protocol,
    services::{Connection, Server},
    sys::{self, PathMtuDiscovery},
    traffic::Endpoint,
    wait::wait_for,
};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(15);
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

/// A pod on each of the first two nodes, the second of which serves.
struct Ends {
    from: Endpoint<Ipv6Addr>,
    to: Endpoint<Ipv6Addr>,
    target: SocketAddr,
    _servers: [Server; 2],
}

impl Ends {
    fn start(lab: &Lab) -> Result<Self> {
        let (from, to) = (lab.node(0).add_pod6('a')?, lab.node(1).add_pod6('a')?);
        Ok(Self {
            target: SocketAddr::new(to.address.into(), PORT),
            _servers: [
                Server::start(&to, Protocol::Tcp, PORT)?,
                Server::start(&to, Protocol::Udp, PORT)?,
            ],
            from,
            to,
        })
    }

    fn connect(&self) -> Result<Connection> {
        Connection::open(&self.from, Protocol::Tcp, self.target, 0)
    }

    fn probe(&self, discovery: PathMtuDiscovery) -> Result<UdpSocket> {
        let socket = self.from.namespace.enter(|| -> Result<_> {
            let socket = UdpSocket::bind("[::]:0")?;
            socket.connect(self.target)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        sys::set_path_mtu_discovery(&socket, discovery)?;
        Ok(socket)
    }
}

/// Whether a datagram of `len` bytes comes back.
fn echo(socket: &UdpSocket, len: usize) -> Result<bool> {
    socket.send(&vec![7; len])?;
    Ok(socket.recv(&mut [0; 8_192]).is_ok())
}

/// Exchanges small packets until the fast path carries them, if there is one.
fn warm(lab: &Lab, mode: Mode, mut exchange: impl FnMut() -> Result<()>) -> Result<()> {
    wait_for("the fast path to carry a flow", DEADLINE, || {
        let before = lab.node(0).counters()?.fast(Hook::Egress);
        (0..10).try_for_each(|_| exchange())?;
        let fast = lab.node(0).counters()?.fast(Hook::Egress) - before;
        ensure!(
            mode == Mode::Off || fast >= 8,
            "{fast} of 10 packets were fast"
        );
        Ok(())
    })
}

/// What a socket learns that never sends fragments, and for which `len` bytes are too many: the largest
/// packet it may send.
fn learn(socket: &UdpSocket, len: usize) -> Result<usize> {
    wait_for(
        "a datagram to be refused as too large",
        DEADLINE,
        || match socket.send(&vec![7; len]) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
            other => bail!("sent: {other:?}"),
        },
    )?;
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
    ends: &Ends,
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
    let ends = Ends::start(lab)?;
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
        let ends = Ends::start(lab)?;
        narrow(lab, mode, &ends, || {
            let router = lab.outside6().namespace;
            router.ip_batch("route replace fd00:172:30:1::/64 dev seg1 metric 1 mtu 1400\n")
        })
    });
    assert_eq!(learned, [1330, 1330]);
}

/// The flow that is traced is one the fast path carries.
#[test]
fn traceroute_shows_the_same_hops() {
    let traces = in_both_modes(&nodes(VXLAN), &[], |lab, mode| {
        let ends = Ends::start(lab)?;
        let probe = ends.probe(PathMtuDiscovery::Dont)?;
        warm(lab, mode, || {
            ensure!(echo(&probe, 100)?, "no answer");
            Ok(())
        })?;
        let mut hops = Vec::new();
        for limit in 1..=4 {
            let capture = Capture::start(&ends.from.namespace, POD_INTERFACE)?;
            setsockopt(&probe, sockopt::Ipv6Ttl, &limit)?;
            // An error is the ICMP message, which is read from the capture.
            let reached = matches!(echo(&probe, 100), Ok(true));
            let frames = capture.stop()?;
            let exceeded = frames
                .iter()
                .filter(|frame| frame.direction == Direction::Received)
                .filter_map(|frame| decode_ipv6(&frame.bytes).ok())
                .filter(|packet| packet.ip.next_header == IpNumber::IPV6_ICMP)
                .filter_map(|packet| {
                    let (icmp, _) = Icmpv6Header::from_slice(&packet.payload).ok()?;
                    let exceeded = matches!(icmp.icmp_type, Icmpv6Type::TimeExceeded(_));
                    exceeded.then(|| Ipv6Addr::from(packet.ip.source).to_string())
                });
            hops.push((limit, exceeded.collect::<Vec<_>>(), reached));
        }
        Ok(hops)
    });
    let hop = |limit, from: &[&str], reached| {
        let from = from.iter().map(|&hop| hop.to_owned()).collect::<Vec<_>>();
        (limit, from, reached)
    };
    let expected = vec![
        hop(1, &["fd00:10:5:1::1"], false),
        hop(2, &["fd00:10:5:2::"], false),
        hop(3, &[], true),
        hop(4, &[], true),
    ];
    assert_eq!(traces, [expected.clone(), expected]);
}
