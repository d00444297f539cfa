//! Pods of three nodes, one of them behind a router, reach each other: ICMP, TCP and UDP, every
//! byte verified, on wires with and without offloads.

use anyhow::{Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Attachment, Lab, Wire, counters::Counters, scenario},
    traffic::{Endpoint, ping, tcp, udp},
};

/// Sizes around everything that is special: the smallest, the usual ones, the largest that fits
/// the pod network (1450 less IP and UDP headers), and such that pods must fragment.
const SIZES: [usize; 10] = [8, 9, 64, 100, 512, 1200, 1400, 1421, 1422, 4000];

fn counters(lab: &Lab) -> Result<Counters> {
    lab.nodes()
        .iter()
        .try_fold(Counters::default(), |sum, node| {
            Ok(sum.plus(&node.counters()?))
        })
}

/// One pod of each node.
fn one_pod_each(lab: &Lab) -> Vec<Endpoint> {
    lab.nodes()
        .iter()
        .map(|node| node.pods()[0].endpoint())
        .collect()
}

/// Every ordered pair of different endpoints.
fn pairs(endpoints: &[Endpoint]) -> impl Iterator<Item = (&Endpoint, &Endpoint)> {
    let from_each = |from| endpoints.iter().map(move |to| (from, to));
    endpoints
        .iter()
        .flat_map(from_each)
        .filter(|(from, to)| from.address != to.address)
}

fn exchange_everything(lab: &Lab) -> Result<()> {
    lab.bring_up(1)?;
    let pods = one_pod_each(lab);
    for (from, to) in pairs(&pods) {
        ping::all(from, to.address, 10)?;
        tcp::transfer(from, to, tcp::Spec::bulk(16 << 20))?;
        tcp::transfer(from, to, tcp::Spec::small_writes(100_000, 100))?;
        udp::echo_each(from, to, &SIZES, 10)?.ensure_lossless()?;
        udp::send_segmented(from, to, 1200, 40, 10)?.ensure_lossless()?;
    }
    let counted = counters(lab)?;
    for hook in [Hook::Egress, Hook::Ingress] {
        ensure!(
            counted.fast(hook) > 1000,
            "the fast path hardly took part; counted:\n{counted}"
        );
    }
    ensure!(
        counted.dropped() == 0,
        "the programs dropped packets:\n{counted}"
    );
    Ok(())
}

#[test]
fn payloads_arrive_unchanged_between_all_nodes() {
    scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
        exchange_everything(lab)
    });
}

#[test]
fn payloads_arrive_unchanged_over_wires_without_offloads() {
    let builder = Lab::builder()
        .nodes(2)
        .routed_nodes(1)
        .wire(Wire::Segmented);
    scenario(builder, |lab| exchange_everything(lab));
}

#[test]
fn every_pod_pings_every_other() {
    scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
        lab.bring_up(2)?;
        lab.ping_matrix()
    });
}

#[test]
fn point_to_point_pods_are_as_fast_as_bridged_ones() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&[])?;
        let ptp = lab.node(0).add_pod("a", Attachment::PointToPoint)?;
        let bridged = lab.node(1).add_pod("a", Attachment::Bridge)?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        let before = lab.node(0).counters()?;
        let (from, to) = (ptp.endpoint(), bridged.endpoint());
        udp::echo_each(&from, &to, &[100], 200)?.ensure_lossless()?;
        let counted = lab.node(0).counters()?.since(&before);
        for hook in [Hook::Egress, Hook::Ingress] {
            ensure!(
                counted.fast(hook) >= 190,
                "of 200 datagrams; counted:\n{counted}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_node_reaches_the_pods_and_vtep_addresses_of_other_nodes() {
    scenario(Lab::builder().nodes(1).routed_nodes(1), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let vtep_address = peer.subnet_env()?.subnet()?.network();
        let own_vtep_address = node.subnet_env()?.subnet()?.network();
        // What the kernel picks as the source towards the pod network.
        let from = Endpoint {
            address: own_vtep_address,
            ..node.endpoint()
        };
        ping::all(&from, vtep_address, 5)?;
        ping::all(&from, peer.pods()[0].address, 5)?;
        Ok(())
    });
}

#[test]
fn the_ttl_falls_by_one_on_each_node_whoever_forwards() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let pods = one_pod_each(lab);
        // The first replies travel through the kernel, the last ones through the fast path.
        for count in [1, 20] {
            let report = ping::all(&pods[0], pods[1].address, count)?;
            ensure!(
                report.ttl == 62,
                "reply {count} arrives with TTL {}",
                report.ttl
            );
        }
        Ok(())
    });
}
