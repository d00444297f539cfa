//! What stops tunnel packets behind the tunnel device stops those of fast flows.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    differ::{Mode, in_both_modes},
    in_both_families,
    lab::{Lab, Node},
    rules::Protocol,
    services::{Connection, Server, is_unreachable},
    traffic::Endpoint,
};

use crate::family::{BOUND, Header, pods, sent, two_nodes, warm};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const PORT: u16 = 8080;
/// Silence that counts as "dropped".
const SILENCE: Duration = Duration::from_millis(400);

/// What stands behind the tunnel device of the first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// A policy that wants what goes to the other node encrypted. There is no state to do it with.
    Ipsec,
    /// A rule of iptables in OUTPUT.
    Output,
    /// A rule of nftables in the postrouting hook.
    Postrouting,
    /// The same in front of the underlay interface. Redirected packets do not meet it.
    Egress,
}

const OBSTACLES: [Obstacle; 4] = [
    Obstacle::Ipsec,
    Obstacle::Output,
    Obstacle::Postrouting,
    Obstacle::Egress,
];

impl Obstacle {
    fn set<A: Header>(self, node: &Node, peer: A, present: bool) -> Result<()> {
        let (from, to) = (A::host(node).address.to_string(), peer.to_string());
        match self {
            Self::Ipsec => {
                let action = if present { "add" } else { "delete" };
                let selector = [
                    "xfrm", "policy", action, "src", &from, "dst", &to, "dir", "out",
                ];
                let template = [
                    "tmpl",
                    "src",
                    &from,
                    "dst",
                    &to,
                    "proto",
                    "esp",
                    "mode",
                    "transport",
                    "level",
                    "required",
                ];
                let template: &[&str] = if present { &template } else { &[] };
                node.cmd("ip", [&selector[..], template].concat()).map(drop)
            }
            Self::Output => {
                let action = if present { "-I" } else { "-D" };
                let rule = [
                    action, "OUTPUT", "-p", "udp", "--dport", "8472", "-j", "DROP",
                ];
                node.cmd(A::IPTABLES, rule).map(drop)
            }
            Self::Postrouting => set_table(node, "inet", "hook postrouting", present),
            Self::Egress => set_table(node, "netdev", "hook egress device eth0", present),
        }
    }
}

/// A table that drops tunnel packets at the hook.
pub fn set_table(node: &Node, family: &str, hook: &str, present: bool) -> Result<()> {
    let command = if present {
        format!(
            "table {family} obstacle {{ chain drops {{ type filter {hook} priority 0; \
             udp dport 8472 drop; }}; }}"
        )
    } else {
        format!("delete table {family} obstacle")
    };
    node.cmd("nft", [command.as_str()]).map(drop)
}

/// What passes an obstacle.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    obstacle: Obstacle,
    /// Tunnel packets in clear that the first node sent.
    tunnel_packets: usize,
    /// Connections that went on, and new ones.
    connections: usize,
}

fn open<A: Header>(client: &Endpoint<A>, target: SocketAddr) -> Result<Vec<Connection>> {
    PROTOCOLS
        .iter()
        .map(|&protocol| Connection::open(client, protocol, target, 0))
        .collect()
}

/// Uses connections that were cut until they are as before.
fn resume(lab: &Lab, mode: Mode, connections: &mut [Connection]) -> Result<()> {
    for connection in &mut *connections {
        connection.recover()?;
    }
    warm(lab, mode, connections)
}

fn passes<A: Header>(lab: &Lab, mode: Mode) -> Result<Vec<Passed>> {
    let [client, server] = pods::<A>(lab)?;
    let (node, peer) = (lab.node(0), A::host(lab.node(1)).address);
    let target = SocketAddr::new(server.address.into(), PORT);
    let servers = PROTOCOLS.map(|protocol| Server::start(&server, protocol, PORT));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let mut passed = Vec::new();
    for obstacle in OBSTACLES {
        let mut connections = open(&client, target)?;
        warm(lab, mode, &mut connections)?;
        obstacle.set(node, peer, true)?;
        let appeared = Instant::now();
        thread::sleep((appeared + BOUND).saturating_duration_since(Instant::now()));
        let wire = node.capture_wire()?;
        let mut count = 0;
        for connection in &mut connections {
            count += usize::from(!connection.is_cut(SILENCE)?);
        }
        for protocol in PROTOCOLS {
            count += usize::from(!is_unreachable(&client, protocol, target, SILENCE)?);
        }
        passed.push(Passed {
            obstacle,
            tunnel_packets: sent::<A>(&wire.stop()?).len(),
            connections: count,
        });
        obstacle.set(node, peer, false)?;
        resume(lab, mode, &mut connections)
            .and_then(|()| warm(lab, mode, &mut open(&client, target)?))
            .with_context(|| format!("after {obstacle:?} was taken away"))?;
    }
    drop(servers);
    Ok(passed)
}

fn what_stops_tunnel_packets_stops_fast_flows<A: Header>() -> Result<()> {
    let [fast, off] = in_both_modes(&two_nodes(), &[], passes::<A>);
    let nothing: Vec<Passed> = OBSTACLES
        .map(|obstacle| Passed {
            obstacle,
            tunnel_packets: 0,
            connections: 0,
        })
        .into();
    ensure!(
        fast == nothing && off == nothing,
        "with the fast path {fast:?}, without {off:?}"
    );
    Ok(())
}

in_both_families! { addresses:
    what_stops_tunnel_packets_stops_fast_flows,
}

/// An optional policy without a state lets packets pass in clear: flows are as fast as ever.
#[test]
fn an_ipsec_policy_that_asks_for_nothing_keeps_nothing_from_being_fast() {
    let check = |lab: &Lab, mode: Mode| -> Result<()> {
        let [client, server] = pods::<Ipv4Addr>(lab)?;
        let target = SocketAddr::new(server.address.into(), PORT);
        let servers = PROTOCOLS.map(|protocol| Server::start(&server, protocol, PORT));
        let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let node = lab.node(0);
        let (from, to) = (node.address.to_string(), lab.node(1).address.to_string());
        let policy = [
            "xfrm",
            "policy",
            "add",
            "src",
            &from,
            "dst",
            &to,
            "dir",
            "out",
            "tmpl",
            "src",
            &from,
            "dst",
            &to,
            "proto",
            "esp",
            "mode",
            "transport",
            "level",
            "use",
        ];
        node.cmd("ip", policy)?;
        warm(lab, mode, &mut open(&client, target)?)
    };
    in_both_modes(&two_nodes(), &[], check);
}
