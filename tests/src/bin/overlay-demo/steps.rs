//! What the demo does once the nodes are there.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::Frame,
    decode::{decode_ipv4, decode_vxlan, is_udp_to},
    lab::{Lab, Node, Pod, counters::Counters},
    process::tail,
    traffic::{ping, tcp},
};

use crate::{Progress, show};

/// Bytes of each transfer.
const TRANSFER: u64 = 256 << 20;
/// Share of packets that must take the fast path.
const FAST_SHARE: f64 = 0.99;
const VXLAN_PORT: u16 = 8472;

pub fn run(lab: &Lab, progress: &mut Progress) -> Result<()> {
    progress.step("Starting the agents: each leases a subnet in etcd");
    lab.start_agents(&[])?;
    Progress::note(&show::leases(lab)?);

    progress.step("Starting two pods on each node");
    lab.add_pods(2)?;
    Progress::note(&show::pods(lab));

    progress.step("Waiting until every node knows every other");
    lab.wait_converged()?;

    let first = lab.node(0);
    progress.step("The route map of n1, as bpftool sees it");
    Progress::note(&format!(
        "# bpftool map dump pinned {}",
        show::route_pin(first)
    ));
    Progress::note(&first.dump_routes()?);

    progress.step("Every pod pings every other (round trips in ms)");
    let pairs = lab.ping_pairs();
    Progress::note(&show::ping_table(lab, &pairs));
    // Fails with the pairs that had no answer, and measures nothing else.
    for pair in pairs {
        pair.round_trip
            .with_context(|| format!("{}: no answer", pair.path))?;
    }

    progress.step("Direct or tunnelled: what crosses n1's wire while it pings");
    for peer in &lab.nodes()[1..] {
        Progress::note(&path_to(first, peer)?);
    }

    let before = counters(lab)?;
    progress.step("TCP transfers, every byte verified");
    for peer in &lab.nodes()[1..] {
        let (from, to) = (first_pod(first)?, first_pod(peer)?);
        let report = tcp::transfer(
            &from.endpoint(),
            &to.endpoint(),
            tcp::Spec::upload(TRANSFER),
        )?;
        Progress::note(&format!(
            "{}/{} → {}/{}: {} MiB in {:.2} s, {:.1} Gbit/s",
            first.name,
            from.name,
            peer.name,
            to.name,
            report.bytes >> 20,
            report.elapsed.as_secs_f64(),
            report.gigabits_per_second()
        ));
    }

    progress.step("The share of these packets that took the fast path");
    let counted = counters(lab)?.since(&before);
    for hook in [Hook::Egress, Hook::Ingress] {
        let (fast, all) = (counted.fast(hook), counted.overlay(hook));
        let share = show::share(fast, all);
        Progress::note(&format!(
            "{:<8} {fast} of {all} packets, {:.2} %",
            hook.name(),
            share * 100.0
        ));
        ensure!(
            share >= FAST_SHARE,
            "at the {} hooks only {:.2} % of the packets were fast; counted:\n{counted}",
            hook.name(),
            share * 100.0
        );
    }
    let stats = first.operator(&["stats"])?;
    Progress::note("# overlay-agent stats | tail -2   (on n1, first packets included)");
    Progress::note(&tail(&stats, 2));
    Ok(())
}

/// Pings a pod on `peer` and tells from the captured frames how the packets travelled.
fn path_to(node: &Node, peer: &Node) -> Result<String> {
    let (from, to) = (first_pod(node)?, first_pod(peer)?);
    let capture = node.capture_wire()?;
    ping::all(&from.endpoint(), to.address, 5)?;
    let frames = capture.stop()?;
    let ways: BTreeSet<&str> = frames
        .iter()
        .filter_map(|frame| way(frame, from.address, to.address))
        .collect();
    let ways: Vec<_> = ways.into_iter().collect();
    ensure!(
        ways.len() == 1,
        "packets to {} travelled these ways: {ways:?}",
        peer.name
    );
    let hops = if node.segment == peer.segment {
        "on-link"
    } else {
        "behind the router"
    };
    Ok(format!(
        "{} → {} ({}, {hops}): {}",
        node.name,
        peer.name,
        peer.address,
        ways.join(", ")
    ))
}

fn way(frame: &Frame, from: Ipv4Addr, to: Ipv4Addr) -> Option<&'static str> {
    let is_ours = |source: [u8; 4], destination: [u8; 4]| {
        (source, destination) == (from.octets(), to.octets())
    };
    if is_udp_to(&frame.bytes, VXLAN_PORT) {
        let packet = decode_vxlan(&frame.bytes).ok()?;
        let inner = packet.inner.ip;
        return is_ours(inner.source, inner.destination).then_some("tunnelled in vxlan");
    }
    let packet = decode_ipv4(&frame.bytes).ok()?;
    is_ours(packet.ip.source, packet.ip.destination).then_some("direct, without encapsulation")
}

fn counters(lab: &Lab) -> Result<Counters> {
    lab.nodes()
        .iter()
        .try_fold(Counters::default(), |sum, node| {
            Ok(sum.plus(&node.counters()?))
        })
}

fn first_pod(node: &Node) -> Result<Pod> {
    node.pods()
        .into_iter()
        .next()
        .with_context(|| format!("no pod on {}", node.name))
}
