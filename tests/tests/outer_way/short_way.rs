//! Packets that netfilter has to see, of new flows and of the host's own, go past the tunnel device as
//! long as the host lets its own tunnel packets pass, and no longer.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    differ::{Mode, in_mode},
    in_both_families,
    lab::{Lab, Node},
    rules::Protocol,
    services::{Server, is_unreachable},
    traffic::Endpoint,
    wait::wait_for,
};

use crate::{
    family::{BOUND, DEADLINE, Header, pods, two_nodes},
    obstacle::set_table,
};

const PORT: u16 = 8080;
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// New flows of each protocol.
const COUNT: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(2);
/// Silence that counts as "dropped".
const SILENCE: Duration = Duration::from_millis(400);

/// Asks once with each protocol, each time by a new flow. Returns how many were answered.
fn ask<A: Header>(from: &Endpoint<A>, target: SocketAddr, patience: Duration) -> Result<usize> {
    let mut answered = 0;
    for protocol in PROTOCOLS {
        answered += usize::from(!is_unreachable(from, protocol, target, patience)?);
    }
    Ok(answered)
}

fn servers<A: Header>(on: &Endpoint<A>) -> Result<Vec<Server>> {
    PROTOCOLS
        .iter()
        .map(|&protocol| Server::start(on, protocol, PORT))
        .collect()
}

/// Packets of the node that went the short way, out and in.
pub fn counted(node: &Node) -> Result<[u64; 2]> {
    let counters = node.counters()?;
    Ok([Hook::Confirm, Hook::Ingress].map(|hook| counters.packets(hook, Outcome::ShortWay)))
}

fn new_flows_go_the_short_way_in_both_directions<A: Header>() {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [client, server] = pods::<A>(lab)?;
        let _servers = servers(&server)?;
        let target = SocketAddr::new(server.address.into(), PORT);
        for from in [&client, &A::host(lab.node(0))] {
            ensure!(ask(from, target, PATIENCE)? == 2, "no answer");
            wait_for("the short way of new flows", DEADLINE, || {
                let before = [counted(lab.node(0))?, counted(lab.node(1))?];
                for _ in 0..COUNT {
                    ensure!(ask(from, target, PATIENCE)? == 2, "no answer");
                }
                let after = [counted(lab.node(0))?, counted(lab.node(1))?];
                // A question has a packet each way, a connection two or more.
                for (before, after) in before.as_flattened().iter().zip(after.as_flattened()) {
                    ensure!(
                        after - before >= COUNT,
                        "packets that went it: {before} and {after}"
                    );
                }
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// What stops tunnel packets: at which node, in which family's table, at which hook.
const STOPS: [(usize, &str, &str); 8] = [
    (0, "inet", "hook output"),
    (0, "inet", "hook postrouting"),
    (0, "ip", "hook output"),
    (0, "netdev", "hook egress device eth0"),
    (1, "inet", "hook input"),
    (1, "inet", "hook prerouting"),
    (1, "ip", "hook input"),
    (1, "netdev", "hook ingress device eth0"),
];

fn what_stops_tunnel_packets_stops_new_flows<A: Header>() {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [client, server] = pods::<A>(lab)?;
        let _servers = servers(&server)?;
        let target = SocketAddr::new(server.address.into(), PORT);
        for place in STOPS {
            let (at, family, hook) = place;
            if family == "ip" && !client.address.into().is_ipv4() {
                continue;
            }
            wait_for("new flows that go the short way", DEADLINE, || {
                let before = counted(lab.node(at))?[at];
                ensure!(ask(&client, target, PATIENCE)? == 2, "no answer");
                let after = counted(lab.node(at))?[at];
                ensure!(after > before, "none went it");
                Ok(())
            })?;
            set_table(lab.node(at), family, hook, true)?;
            let appeared = Instant::now();
            while appeared.elapsed() < BOUND {
                // The flows that keep asking must not keep the way open.
                ask(&client, target, SILENCE / 8)?;
            }
            let answered = ask(&client, target, SILENCE)?;
            set_table(lab.node(at), family, hook, false)?;
            ensure!(answered == 0, "{place:?}: {answered} answers");
            wait_for("answers again", DEADLINE, || {
                let answered = ask(&client, target, SILENCE)?;
                ensure!(answered == 2, "{answered} answers");
                Ok(())
            })
            .with_context(|| format!("after {place:?}"))?;
        }
        Ok(())
    });
}

in_both_families! { addresses:
    new_flows_go_the_short_way_in_both_directions,
    what_stops_tunnel_packets_stops_new_flows,
}
