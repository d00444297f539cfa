//! Leases that vanish for a while, seen from all other nodes: pods of three nodes talk to each other,
//! and no datagram is lost.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use overlay_agent::core::GRACE;
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::{flow::SteadyFlow, udp::Report},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(2);
const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const GHOST_KEY: &str = "10.5.199.0-24";
const GHOST: &str = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;

/// The one with the fast path and the one without must not differ.
const MODES: [&str; 2] = ["--fastpath=strict", "--fastpath=off"];

fn own_key(node: &Node) -> Result<String> {
    let subnet = node.subnet_env()?.subnet()?;
    Ok(format!("{}-{}", subnet.network(), subnet.prefix()))
}

/// Keys and values of all leases.
fn leases(lab: &Lab) -> Result<Vec<(String, String)>> {
    let records = lab.store().leases()?.into_iter();
    Ok(records
        .map(|record| (record.subnet_key, record.value))
        .collect())
}

fn wait_leases(lab: &Lab, expected: &[(String, String)]) -> Result<()> {
    wait_for("all leases to be back", PATIENCE, || {
        for node in lab.nodes() {
            node.check_running()?;
        }
        let now = leases(lab)?;
        ensure!(now == expected, "expected {expected:?}, now {now:?}");
        Ok(())
    })
}

/// Routes, neighbours and forwarding entries of all nodes.
fn kernel_tier(lab: &Lab) -> Result<String> {
    let mut text = String::new();
    for node in lab.nodes() {
        for command in ["ip route", "ip neigh show dev flannel.1", "bridge fdb show"] {
            let mut words = command.split(' ');
            text += &node.cmd(words.next().unwrap_or_default(), words)?;
        }
    }
    Ok(text)
}

/// Waits while each flow sends on for that long.
fn let_flow(flows: &[SteadyFlow], time: Duration) -> Result<()> {
    let before: Vec<_> = flows.iter().map(SteadyFlow::sent).collect();
    let start = Instant::now();
    wait_for("the flows to go on", PATIENCE, || {
        let sent = flows.iter().zip(&before);
        ensure!(
            sent.clone()
                .all(|(flow, before)| flow.sent() > before + 100)
        );
        ensure!(start.elapsed() >= time);
        Ok(())
    })
}

/// Three nodes whose pods talk in a ring, in each mode. Says what was lost, which must be nothing.
fn under_traffic(test: impl Fn(&mut Lab, &[SteadyFlow]) -> Result<()>) {
    for mode in MODES {
        scenario(Lab::builder().nodes(3).config(CONFIG), |lab| {
            lab.start_agents(&[mode])?;
            lab.add_pods(1)?;
            lab.wait_converged()?;
            let pod = |index: usize| lab.node(index % 3).pods()[0].endpoint();
            let flows = (0..3)
                .map(|n| SteadyFlow::start(&pod(n), &pod(n + 1), INTERVAL))
                .collect::<Result<Vec<_>>>()?;
            let_flow(&flows, Duration::ZERO)?;
            if mode == MODES[0] {
                wait_for("fast packets", PATIENCE, || {
                    let counted = lab.node(0).counters()?;
                    ensure!(counted.fast(Hook::Egress) > 100, "counted\n{counted}");
                    Ok(())
                })?;
            }
            test(lab, &flows)?;
            let_flow(&flows, Duration::ZERO)?;
            for flow in flows {
                let report = flow.stop()?;
                let Report { path, sent, lost } = &report.datagrams;
                println!("{mode} {path}: lost {} of {sent} datagrams", lost.len());
                report.datagrams.ensure_lossless()?;
            }
            lab.wait_converged()
        });
    }
}

#[test]
fn a_lease_deleted_and_written_again_costs_nobody_a_packet() {
    under_traffic(|lab, flows| {
        let (before, tier) = (leases(lab)?, kernel_tier(lab)?);
        let flushed = |lab: &Lab| -> Result<Vec<_>> {
            let status = |node: &Node| node.operator_json(&["status"]);
            let statuses = lab.nodes().iter().map(status);
            statuses
                .map(|status| Ok(status?["generation"].clone()))
                .collect()
        };
        let generations = flushed(lab)?;
        for lose in [
            |lab: &Lab, key: &str| lab.store().delete_lease(key),
            |lab: &Lab, key: &str| lab.store().revoke_lease(key),
        ] {
            let key = own_key(lab.node(0))?;
            lose(lab, &key)?;
            wait_leases(lab, &before)?;
            // Whoever lets the peer go does so in this time.
            let_flow(flows, GRACE + Duration::from_secs(1))?;
        }
        let now = kernel_tier(lab)?;
        ensure!(now == tier, "before\n{tier}\nnow\n{now}");
        let now = flushed(lab)?;
        ensure!(now == generations, "before {generations:?}, now {now:?}");
        Ok(())
    });
}

/// All nodes are cut off from etcd until all leases have run out, as far as etcd can tell.
fn all_leases_run_out(compacted: bool) {
    under_traffic(|lab, flows| {
        let (before, tier) = (leases(lab)?, kernel_tier(lab)?);
        lab.store().cut_off()?;
        for node in lab.nodes() {
            node.with_agent(|agent| agent.wait_log("etcd is away, forwarding goes on", PATIENCE))?;
        }
        for (key, _) in &before {
            lab.store().delete_lease(key)?;
        }
        let left = leases(lab)?;
        ensure!(left.is_empty(), "{left:?}");
        if compacted {
            lab.store().compact()?;
        }
        // What ends leases restarts etcd as well: the nodes come back to a server that just started.
        lab.store_mut().server().stop(0)?;
        let_flow(flows, GRACE + Duration::from_secs(1))?;
        lab.store_mut().server().restart(0)?;
        lab.store().reconnect()?;
        wait_leases(lab, &before)?;
        let_flow(flows, GRACE + Duration::from_secs(1))?;
        let now = kernel_tier(lab)?;
        ensure!(now == tier, "before\n{tier}\nnow\n{now}");
        Ok(())
    });
}

#[test]
fn a_cluster_whose_leases_all_ran_out_forwards_and_gets_them_back() {
    all_leases_run_out(false);
}

#[test]
fn a_cluster_whose_leases_all_ran_out_unseen_forwards_and_gets_them_back() {
    all_leases_run_out(true);
}

#[test]
fn a_peer_deleted_for_good_is_gone_after_the_grace_and_one_that_is_replaced_at_once() {
    scenario(Lab::builder().nodes(1).config(CONFIG), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, &[])?;
        let route = || node.cmd("ip", ["route", "show", "10.5.199.0/24"]);
        let neighbours = || node.cmd("ip", ["neigh", "show", "dev", "flannel.1"]);
        lab.store().put_lease(GHOST_KEY, GHOST)?;
        wait_for("the peer", PATIENCE, || {
            ensure!(route()?.contains("via"));
            Ok(())
        })?;
        let replaced = Instant::now();
        lab.store().delete_lease(GHOST_KEY)?;
        let other = GHOST.replace(".99", ".98").replace(":99", ":98");
        lab.store().put_lease(GHOST_KEY, &other)?;
        wait_for("the other peer", PATIENCE, || {
            ensure!(neighbours()?.contains("02:00:00:00:00:98"));
            Ok(())
        })?;
        println!("replaced after {:?}", replaced.elapsed());

        let deleted = Instant::now();
        lab.store().delete_lease(GHOST_KEY)?;
        wait_for("the peer to be gone", PATIENCE, || {
            ensure!(route()?.is_empty(), "{}", route()?);
            Ok(())
        })?;
        let stayed = deleted.elapsed();
        println!("gone after {stayed:?}");
        ensure!(stayed >= GRACE, "gone after {stayed:?}");
        let log = node.with_agent(|agent| Ok(agent.log()))?;
        ensure!(log.contains("peer lease gone"), "{log}");
        Ok(())
    });
}
