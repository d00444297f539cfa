//! Kernels before Linux 6.6, which have no tcx links: the programs are attached as tc filters. The
//! kernel is imitated by failing `BPF_LINK_CREATE`.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use overlay_tests::{
    lab::{Attachment, Lab, Node, agent::Launch, scenario, underlay::NODE_INTERFACE},
    seccomp::BpfDenial,
    traffic::{flow::SteadyFlow, ping},
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(1);
/// Priority of the agent's filters.
const PRIORITY: &str = "pref 8472";

fn start_on_old_kernel(lab: &Lab, node: &Node) -> Result<()> {
    node.launch(&Launch {
        denial: Some(BpfDenial::Links),
        ..Launch::new(lab.store(), &["--datapath=ebpf"])
    })?;
    node.wait_ready()?;
    wait_for("the agent to know its peers", DEADLINE, || {
        node.check_running()?;
        lab.check_converged(node)
    })
}

fn wait_healthy(node: &Node) -> Result<()> {
    wait_for("status to be content", DEADLINE, || {
        node.operator(&["status"]).map(drop)
    })
}

/// The sides of an interface where a filter of the agent's is.
fn filtered_sides(node: &Node, interface: &str) -> Result<Vec<&'static str>> {
    let mut sides = Vec::new();
    for side in ["ingress", "egress"] {
        let filters = node.cmd("tc", ["filter", "show", "dev", interface, side])?;
        let ours = |line: &&str| line.contains(PRIORITY) && line.contains("direct-action");
        match filters.lines().filter(ours).count() {
            0 => {}
            1 => sides.push(side),
            more => anyhow::bail!("{more} filters at {interface} {side}:\n{filters}"),
        }
    }
    Ok(sides)
}

fn has_clsact(node: &Node, interface: &str) -> Result<bool> {
    let qdiscs = node.cmd("tc", ["qdisc", "show", "dev", interface])?;
    Ok(qdiscs.contains("clsact"))
}

/// Files in the directory of links.
fn records(node: &Node) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(node.pin_dir.join("links"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

#[test]
fn pods_talk_fast_by_filters_through_kills_and_restarts_and_then_by_links() {
    scenario(Lab::builder().nodes(2), |lab| {
        let (old, other) = (lab.node(0), lab.node(1));
        lab.start_agent(other, &[])?;
        start_on_old_kernel(lab, old)?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        let [from, to] = [old, other].map(|node| node.pods()[0].endpoint());
        let flow = SteadyFlow::start(&from, &to, INTERVAL)?;
        old.wait_fast()?;
        wait_healthy(old)?;
        let both = vec!["ingress", "egress"];
        let places = ["vetha", "flannel.1", NODE_INTERFACE].map(|place| (place, both.clone()));
        let check = |expected: bool| -> Result<()> {
            for (interface, sides) in &places {
                let found = filtered_sides(old, interface)?;
                let sides = if expected { sides.clone() } else { Vec::new() };
                ensure!(found == sides, "{interface}: {found:?}, not {sides:?}");
            }
            Ok(())
        };
        check(true)?;

        for restarts in 1..=2 {
            old.kill_agent()?;
            old.wait_fast()?;
            start_on_old_kernel(lab, old)?;
            wait_for("the filters to be taken over", DEADLINE, || {
                let log = old.with_agent(|agent| Ok(agent.log()))?;
                ensure!(log.matches("adopted=6").count() == restarts, "{log}");
                Ok(())
            })?;
            wait_healthy(old)?;
            check(true)?;
            old.wait_fast()?;
        }
        flow.stop()?.datagrams.ensure_lossless()?;

        // The kernel is upgraded, in a way: links take the place of filters. Whoever removes a qdisc
        // stops the interface for a moment (`dev_deactivate`).
        let flow = SteadyFlow::start(&from, &to, INTERVAL)?;
        old.kill_agent()?;
        lab.start_agent(old, &[])?;
        wait_for("links instead of filters", DEADLINE, || check(false))?;
        wait_healthy(old)?;
        old.wait_fast()?;
        ensure!(!has_clsact(old, "vetha")?, "a qdisc is left");
        flow.stop().map(drop)
    });
}

#[test]
fn filters_go_with_their_pod_and_with_cleanup_and_those_of_others_stay() {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        start_on_old_kernel(lab, node)?;
        for name in ["a", "b"] {
            let pod = node.add_pod(name, Attachment::Bridge)?;
            ping::once(&pod.endpoint(), node.subnet_env()?.gateway.ip())?;
        }
        // Somebody else's qdisc, and somebody else's filter in ours.
        node.namespace
            .ip_batch("link add tap type veth peer name tapped\n")?;
        node.cmd("tc", ["qdisc", "add", "dev", "tap", "clsact"])?;
        wait_for("filters at both pods", DEADLINE, || {
            for interface in ["vetha", "vethb"] {
                let sides = filtered_sides(node, interface)?;
                ensure!(sides.len() == 2, "{interface}: {sides:?}");
            }
            Ok(())
        })?;
        let filter = "filter add dev vetha egress protocol ip u32 match u32 0 0 action mirred egress \
                      mirror dev tap";
        node.cmd("tc", filter.split_whitespace())?;
        let index = node.namespace.ifindex("vethb")?;
        node.remove_pod("b")?;
        wait_for("the records of a pod to go with it", DEADLINE, || {
            let records = records(node)?;
            let left = records
                .iter()
                .any(|name| name.starts_with(&format!("{index}-")));
            ensure!(!left, "{records:?}");
            Ok(())
        })?;

        node.stop_agent()?;
        node.operator(&["cleanup"])?;
        ensure!(!node.pin_dir.exists(), "pins are left");
        for interface in ["vetha", NODE_INTERFACE] {
            let sides = filtered_sides(node, interface)?;
            ensure!(sides.is_empty(), "{interface}: {sides:?}");
        }
        ensure!(!has_clsact(node, NODE_INTERFACE)?, "our qdisc is left");
        ensure!(has_clsact(node, "tap")?, "somebody's qdisc is gone");
        let filters = node.cmd("tc", ["filter", "show", "dev", "vetha", "egress"])?;
        ensure!(
            filters.contains("mirred"),
            "somebody's filter is gone: {filters}"
        );
        Ok(())
    });
}

#[test]
fn filters_of_others_close_the_short_way_where_they_are_behind_ours() {
    scenario(Lab::builder().nodes(2), |lab| {
        let node = lab.node(0);
        lab.start_agent(lab.node(1), &[])?;
        start_on_old_kernel(lab, node)?;
        let wait_for_the_way = |is_open: bool| {
            wait_for("the short way to be open or closed", DEADLINE, || {
                let status = node.operator(&["status"])?;
                let is_closed = status.contains("a tc filter of others at the tunnel device");
                ensure!(is_closed != is_open, "{status}");
                Ok(())
            })
        };
        let filter = |action: &str, priority: &str| {
            let words = [
                "filter",
                action,
                "dev",
                "flannel.1",
                "egress",
                "pref",
                priority,
            ];
            let what = [
                "protocol", "all", "u32", "match", "u32", "0", "0", "flowid", "1:1",
            ];
            let what: &[_] = if action == "add" { &what } else { &[] };
            node.cmd("tc", [&words, what].concat()).map(drop)
        };
        filter("add", "8473")?;
        wait_for_the_way(false)?;
        // It sees each packet before ours does.
        filter("add", "8471")?;
        filter("del", "8473")?;
        wait_for_the_way(true)
    });
}
