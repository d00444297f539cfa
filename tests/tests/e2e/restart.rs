//! What the agent leaves running when it ends, and what it does with what it finds: forwarding
//! never stops, and nothing of a vanished peer stays.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_tests::{
    lab::{Lab, Node, agent::Launch, scenario, underlay::NODE_INTERFACE},
    traffic::{flow::SteadyFlow, tcp},
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(10);
/// Time between two datagrams of the flow under test.
const INTERVAL: Duration = Duration::from_millis(1);
/// A lease record of a node that is not there.
const GHOST: &str = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
const GHOST_KEY: &str = "10.5.199.0-24";
const GHOST_SUBNET: &str = "10.5.199.0/24";

/// Everything that names the ghost on a node; empty when it is not known there.
fn traces_of_ghost(node: &Node) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    for (command, sign) in [
        ("ip route", "10.5.199."),
        ("ip neigh", "10.5.199."),
        ("bridge fdb", "02:00:00:00:00:99"),
    ] {
        let mut words = command.split(' ');
        let output = node.cmd(words.next().unwrap_or_default(), words)?;
        let lines = output.lines().filter(|line| line.contains(sign));
        traces.extend(lines.map(|line| format!("{command}: {line}")));
    }
    let subnet = GHOST_SUBNET.parse()?;
    if node.mapped_subnets()?.contains(&subnet) {
        traces.push(format!("OVL_ROUTES4: {subnet}"));
    }
    Ok(traces)
}

fn wait_ghost_known(node: &Node) -> Result<()> {
    wait_for(&format!("{} to know the peer", node.name), DEADLINE, || {
        let traces = traces_of_ghost(node)?;
        ensure!(traces.len() == 4, "only {traces:?}");
        Ok(())
    })
}

fn wait_ghost_gone(node: &Node) -> Result<()> {
    wait_for(
        &format!("{} to forget the peer", node.name),
        DEADLINE,
        || {
            node.check_running()?;
            let traces = traces_of_ghost(node)?;
            ensure!(traces.is_empty(), "left: {traces:?}");
            Ok(())
        },
    )
}

/// Waits until the node is healthy, with a table of this capacity and flows in it.
fn wait_flow_table(node: &Node, capacity: u64) -> Result<()> {
    wait_for("flows in a table of the size", DEADLINE, || {
        let status = node.operator_json(&["status"])?;
        let flows = &status["datapath"]["flows"];
        let live = flows["live"].as_u64().unwrap_or(0);
        ensure!(flows["capacity"] == capacity && live > 0, "flows: {flows}");
        Ok(())
    })
}

#[test]
fn a_restart_with_another_flow_table_size_replaces_the_table_and_loses_no_packet() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let flow = SteadyFlow::start(&node.first_pod(), &peer.first_pod(), INTERVAL)?;
        node.wait_fast()?;
        wait_flow_table(node, 131_072)?;
        for size in [8_192, 1_048_576] {
            node.kill_agent()?;
            lab.start_agent(node, &[&format!("--flow-table-size={size}")])?;
            // By the programs that use the table that `status` sees.
            wait_flow_table(node, size)?;
            node.wait_fast()?;
        }
        flow.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn an_upgrade_to_other_map_layouts_under_traffic_loses_no_packet() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let transfer = thread::spawn({
            let (from, to) = (node.first_pod(), peer.first_pod());
            move || tcp::transfer(&from, &to, tcp::Spec::bulk(1 << 30))
        });
        let flow = SteadyFlow::start(&node.first_pod(), &peer.first_pod(), INTERVAL)?;
        for (upgraded, version) in [(node, 1), (peer, 2)] {
            upgraded.wait_fast()?;
            upgraded.kill_agent()?;
            let old = upgraded.leave_pins_of_version(version)?;
            lab.start_agent(upgraded, &[])?;
            wait_for("the other maps alone", DEADLINE, || {
                upgraded.check_running()?;
                ensure!(!old.exists(), "{} is still there", old.display());
                lab.check_converged(upgraded)
            })?;
            upgraded.wait_fast()?;
            let hooks: Vec<_> = upgraded.attached(NODE_INTERFACE)?.into_keys().collect();
            ensure!(hooks == ["confirm", "ingress"], "{hooks:?}");
        }
        flow.stop()?.datagrams.ensure_lossless()?;
        transfer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map(drop)
    });
}

#[test]
fn killing_and_restarting_the_agent_under_traffic_loses_no_packet() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let transfer = thread::spawn({
            let (from, to) = (node.first_pod(), peer.first_pod());
            move || tcp::transfer(&from, &to, tcp::Spec::bulk(1 << 30))
        });
        let flow = SteadyFlow::start(&node.first_pod(), &peer.first_pod(), INTERVAL)?;
        node.wait_fast()?;
        let adopted = (node.attached(NODE_INTERFACE)?, node.attached("flannel.1")?);

        for agent in [node, peer, node] {
            agent.kill_agent()?;
            // The fast path works on without the agent.
            agent.wait_fast()?;
            lab.start_agent(agent, &[])?;
            wait_for("the agent to be ready again", DEADLINE, || {
                agent.check_running()?;
                lab.check_converged(agent)
            })?;
            agent.wait_fast()?;
        }

        let now = (node.attached(NODE_INTERFACE)?, node.attached("flannel.1")?);
        ensure!(
            now == adopted,
            "links before {adopted:?}, after {now:?}: not adopted"
        );
        wait_for("enough datagrams to tell a loss", DEADLINE, || {
            ensure!(flow.sent() > 300, "only {}", flow.sent());
            Ok(())
        })?;
        let report = flow.stop()?;
        report.datagrams.ensure_lossless()?;
        let transfer = transfer
            .join()
            .map_err(|_panic| anyhow::anyhow!("panicked"))?;
        transfer
            .context("the transfer that ran meanwhile")
            .map(drop)
    });
}

#[test]
fn a_restart_keeps_the_lease_and_the_vtep_mac() {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, &[])?;
        let before = (
            lab.store().leases()?,
            node.mac("flannel.1")?,
            node.subnet_env()?,
        );
        for kill in [true, false] {
            if kill {
                node.kill_agent()?;
            } else {
                node.stop_agent()?;
            }
            fs::remove_file(&node.subnet_file)?;
            lab.start_agent(node, &[])?;
            let after = (
                lab.store().leases()?,
                node.mac("flannel.1")?,
                node.subnet_env()?,
            );
            ensure!(before == after, "before {before:?}, after {after:?}");
        }
        Ok(())
    });
}

#[test]
fn with_the_programs_detached_the_cluster_is_a_plain_flannel_network() {
    scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
        lab.bring_up(1)?;
        lab.ping_matrix()?;
        for node in lab.nodes() {
            node.kill_agent()?;
            // The pins are all that holds the programs.
            fs::remove_dir_all(&node.pin_dir)?;
        }
        lab.ping_matrix()?;
        let (from, to) = (lab.node(0).first_pod(), lab.node(2).first_pod());
        tcp::transfer(&from, &to, tcp::Spec::bulk(8 << 20)).map(drop)
    });
}

#[test]
fn the_kernel_tier_alone_carries_everything() {
    scenario(Lab::builder().nodes(2), |lab| {
        for node in lab.nodes() {
            node.start_agent(lab.store(), &["--datapath=kernel"])?;
            node.wait_ready()?;
        }
        lab.add_pods(1)?;
        wait_for("pods to talk", DEADLINE, || lab.ping_matrix())?;
        for node in lab.nodes() {
            ensure!(
                !node.pin_dir.join("links").exists(),
                "{} has links",
                node.name
            );
        }
        let (from, to) = (lab.node(0).first_pod(), lab.node(1).first_pod());
        tcp::transfer(&from, &to, tcp::Spec::bulk(8 << 20)).map(drop)
    });
}

#[test]
fn nothing_of_a_vanished_peer_stays() {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, &[])?;
        lab.store().put_lease(GHOST_KEY, GHOST)?;
        wait_ghost_known(node)?;
        lab.store().delete_lease(GHOST_KEY)?;
        wait_ghost_gone(node)
    });
}

#[test]
fn a_peer_that_vanished_while_the_agent_was_down_is_swept_at_start() {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, &[])?;
        lab.store().put_lease(GHOST_KEY, GHOST)?;
        wait_ghost_known(node)?;
        node.kill_agent()?;
        lab.store().delete_lease(GHOST_KEY)?;
        ensure!(
            traces_of_ghost(node)?.len() == 4,
            "the end of the agent changed the node"
        );
        lab.start_agent(node, &[])?;
        wait_ghost_gone(node)
    });
}

#[test]
fn routes_of_others_survive_the_sweep() {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, &[])?;
        node.cmd("ip", ["route", "add", "10.5.77.0/24", "via", "172.30.0.1"])?;
        node.cmd(
            "ip",
            ["route", "add", "192.168.7.0/24", "via", "172.30.0.1"],
        )?;
        node.kill_agent()?;
        lab.start_agent(node, &[])?;
        lab.store().put_lease(GHOST_KEY, GHOST)?;
        wait_ghost_known(node)?;
        let routes = node.cmd("ip", ["route"])?;
        for foreign in ["10.5.77.0/24 via", "192.168.7.0/24 via"] {
            ensure!(routes.contains(foreign), "{foreign} is gone:\n{routes}");
        }
        Ok(())
    });
}

#[test]
fn leases_that_change_while_etcd_is_unreachable_are_learned_afterwards() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        lab.store().put_lease(GHOST_KEY, GHOST)?;
        wait_ghost_known(lab.node(0))?;
        // n1 hears nothing; etcd restarts, forgets the past, and the world changes meanwhile.
        let address = lab.node(0).address.to_string();
        lab.underlay()
            .router()
            .run("ip", ["route", "add", "blackhole", &address])?;
        let etcd = lab.store_mut().server();
        etcd.kill(0)?;
        etcd.restart(0)?;
        lab.store().delete_lease(GHOST_KEY)?;
        let late = GHOST.replace(".99", ".98").replace(":99", ":98");
        lab.store().put_lease("10.5.198.0-24", &late)?;
        lab.store().compact()?;
        lab.underlay()
            .router()
            .run("ip", ["route", "delete", "blackhole", &address])?;
        let node = lab.node(0);
        wait_for("the late peer to be known", Duration::from_secs(30), || {
            node.check_running()?;
            let mapped = node.mapped_subnets()?;
            ensure!(
                mapped.contains(&"10.5.198.0/24".parse()?),
                "only {mapped:?}"
            );
            Ok(())
        })?;
        wait_ghost_gone(node)?;
        lab.ping_matrix()
    });
}

#[test]
fn forwarding_goes_on_while_etcd_is_down() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let flow = SteadyFlow::start(&lab.node(0).first_pod(), &lab.node(1).first_pod(), INTERVAL)?;
        lab.node(0).wait_fast()?;
        lab.store_mut().server().kill(0)?;
        thread::sleep(Duration::from_secs(3));
        for node in lab.nodes() {
            node.check_running()?;
        }
        lab.ping_matrix()?;
        lab.store_mut().server().restart(0)?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused() {
    scenario(Lab::builder().nodes(1), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, &[])?;
        let (status, log) = node.run_to_end(&Launch::new(lab.store(), &[]), DEADLINE)?;
        ensure!(!status.success(), "the second agent ended with {status}");
        let pin_dir = node.pin_dir.display().to_string();
        if !log.contains(&pin_dir) {
            bail!("the message does not name {pin_dir}:\n{log}");
        }
        node.check_running()
    });
}
