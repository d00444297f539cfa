//! The network config is changed in etcd: by a restart of the daemons from one backend to another, by
//! SIGHUP as far as a running node can follow.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::{flow::SteadyFlow, tcp, udp},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(2);
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// As the guides write it.
const DIRECT: &str = r#"{"network":"10.5.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}"#;
const OTHER_VNI: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;

/// The route to the peer, without the parts that are the same in all backends.
fn expected_route(config: &str, peer: &Node) -> Result<String> {
    let subnet = peer.subnet_env()?.subnet()?;
    let (base, address) = (subnet.network(), peer.address);
    Ok(match config {
        VXLAN => format!("{subnet} via {base} dev flannel.1 proto 241 onlink"),
        OTHER_VNI => format!("{subnet} via {base} dev flannel.7 proto 241 onlink"),
        _ => format!("{subnet} via {address} dev eth0 proto 241"),
    })
}

/// Everything on `node` that a backend makes, and nothing of another one.
fn check_backend(node: &Node, peer: &Node, config: &str) -> Result<()> {
    node.check_running()?;
    let route = expected_route(config, peer)?;
    let routes = node.cmd("ip", ["route"])?;
    let to_peer: Vec<&str> = routes
        .lines()
        .filter(|line| {
            line.contains(
                &peer
                    .subnet_env()
                    .map(|env| env.gateway.network().to_string())
                    .unwrap_or_default(),
            )
        })
        .map(str::trim)
        .collect();
    ensure!(to_peer == [route.as_str()], "not `{route}` but {to_peer:?}");

    let links = node.cmd("ip", ["-brief", "link"])?;
    let devices: Vec<&str> = links
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("flannel."))
        .collect();
    let wanted: &[&str] = match config {
        HOST_GW => &[],
        OTHER_VNI => &["flannel.7"],
        _ => &["flannel.1"],
    };
    ensure!(devices == wanted, "{devices:?} instead of {wanted:?}");

    let entries = if wanted.is_empty() {
        String::new()
    } else {
        node.cmd("bridge", ["fdb", "show", "dev", wanted[0]])?
    };
    let tunnelled = usize::from(matches!(config, VXLAN | OTHER_VNI));
    let count = entries
        .lines()
        .filter(|line| line.contains(" dst "))
        .count();
    ensure!(count == tunnelled, "forwarding entries:\n{entries}");

    for (interface, pins) in node.pinned_links()? {
        ensure!(
            links.contains(&interface),
            "{pins:?} are pinned for {interface}, which is gone"
        );
    }
    Ok(())
}

fn wait_backend(lab: &Lab, config: &str) -> Result<()> {
    let [node, peer] = lab.nodes() else {
        anyhow::bail!("not two nodes");
    };
    wait_for(&format!("both nodes to run {config}"), PATIENCE, || {
        check_backend(node, peer, config).with_context(|| node.name.clone())?;
        check_backend(peer, node, config).with_context(|| peer.name.clone())
    })
}

/// Existing pods exchange small and full packets, and some of it goes fast.
fn check_traffic(lab: &Lab) -> Result<()> {
    let (node, peer) = (lab.node(0), lab.node(1));
    wait_for("pods to talk", PATIENCE, || lab.ping_matrix())?;
    tcp::transfer(
        &node.first_pod(),
        &peer.first_pod(),
        tcp::Spec::bulk(4 << 20),
    )?;
    tcp::transfer(
        &peer.first_pod(),
        &node.first_pod(),
        tcp::Spec::small_writes(20_000, 100),
    )?;
    wait_for("fast packets both ways", PATIENCE, || {
        let before = node.counters()?;
        udp::echo_each(&node.first_pod(), &peer.first_pod(), &[100], 20)?;
        let counted = node.counters()?.since(&before);
        for hook in [Hook::Egress, Hook::Ingress] {
            ensure!(counted.fast(hook) >= 10, "counted\n{counted}");
        }
        Ok(())
    })
}

#[test]
fn backends_are_switched_by_a_restart_and_nothing_stale_stays() {
    scenario(Lab::builder().nodes(2).config(HOST_GW), |lab| {
        lab.bring_up(1)?;
        wait_backend(lab, HOST_GW)?;
        check_traffic(lab)?;
        let env = |node: &Node| node.subnet_env().map(|env| env.gateway);
        let before = (env(lab.node(0))?, env(lab.node(1))?);
        for config in [DIRECT, HOST_GW, VXLAN, DIRECT, VXLAN, OTHER_VNI, HOST_GW] {
            lab.store().set_config(config)?;
            for node in lab.nodes() {
                restart(lab, node)?;
            }
            wait_backend(lab, config)?;
            let after = (env(lab.node(0))?, env(lab.node(1))?);
            ensure!(before == after, "{config}: {before:?} became {after:?}");
            check_traffic(lab).with_context(|| config.to_owned())?;
        }
        Ok(())
    });
}

fn restart(lab: &Lab, node: &Node) -> Result<()> {
    let starts = |log: String| log.matches("INFO node started").count();
    let before = node.with_agent(|agent| Ok(starts(agent.log())))?;
    node.stop_agent()?;
    lab.start_agent(node, &[])?;
    wait_for("the agent to be started", PATIENCE, || {
        node.check_running()?;
        let now = node.with_agent(|agent| Ok(starts(agent.log())))?;
        ensure!(now > before, "started {now} times");
        Ok(())
    })
}

#[test]
fn a_start_that_was_cut_short_leaves_no_device_to_the_next_backend() {
    scenario(Lab::builder().nodes(1).config(HOST_GW), |lab| {
        let node = lab.node(0);
        let address = node.address;
        // As created, and no further.
        for vni in [1, 9] {
            node.namespace.ip_batch(&format!(
                "link add flannel.{vni} type vxlan id {vni} dev eth0 local {address} dstport 8472\n"
            ))?;
        }
        node.namespace.ip_batch(
            "link add flannel.2 type vxlan id 2 dev eth0 local 172.30.0.99 dstport 8472\n",
        )?;
        lab.start_agent(node, &[])?;
        let links = node.cmd("ip", ["-brief", "link"])?;
        for (name, stays) in [
            ("flannel.1", false),
            ("flannel.9", false),
            ("flannel.2", true),
        ] {
            ensure!(node.has_interface(name) == stays, "{name}:\n{links}");
        }
        Ok(())
    });
}

fn reload(node: &Node) -> Result<String> {
    let said = |log: &str| log.matches("INFO reloaded").count();
    let before = node.with_agent(|agent| Ok(agent.log()))?;
    node.signal_agent(Signal::SIGHUP)?;
    wait_for("the reload", PATIENCE, || {
        node.check_running()?;
        let log = node.with_agent(|agent| Ok(agent.log()))?;
        ensure!(said(&log) > said(&before), "{log}");
        Ok(log[before.len()..].to_owned())
    })
}

#[test]
fn a_reload_switches_direct_routing_under_traffic_without_loss() {
    scenario(Lab::builder().nodes(2).config(VXLAN), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let flow = SteadyFlow::start(&node.first_pod(), &peer.first_pod(), INTERVAL)?;
        let sent = |outcome| -> Result<u64> { Ok(node.counters()?.packets(Hook::Egress, outcome)) };
        for (config, outcome) in [(DIRECT, Outcome::FastDirect), (VXLAN, Outcome::FastTunnel)] {
            lab.store().set_config(config)?;
            for node in lab.nodes() {
                let log = reload(node)?;
                ensure!(
                    log.contains(r#"network config applied keys=["Backend.DirectRouting"]"#),
                    "{log}"
                );
            }
            wait_backend(lab, config)?;
            let before = sent(outcome)?;
            wait_for(&format!("fast packets of {config}"), PATIENCE, || {
                let now = sent(outcome)?;
                ensure!(now >= before + 100, "{before} before, {now} now");
                Ok(())
            })?;
        }
        flow.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn a_reload_says_what_it_applies_and_what_needs_a_restart() {
    scenario(Lab::builder().nodes(2).config(VXLAN), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        for (config, said) in [
            (VXLAN, "INFO the network config is the one in force"),
            (
                OTHER_VNI,
                r#"keys of the network config come into force when the daemon is restarted keys=["Backend.VNI"]"#,
            ),
            (
                HOST_GW,
                r#"keys of the network config come into force when the daemon is restarted keys=["Backend.Type"]"#,
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":"#,
                "ERROR network config not applied, going on with the one in force",
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#,
                r#"network config applied keys=["Backend.MTU"]"#,
            ),
        ] {
            lab.store().set_config(config)?;
            let log = reload(node)?;
            ensure!(log.contains(said), "{config}: no `{said}` in\n{log}");
        }
        check_backend(node, lab.node(1), VXLAN)?;
        let device = node.cmd("ip", ["link", "show", "flannel.1"])?;
        ensure!(device.contains(" mtu 1350 "), "{device}");
        let env = node.subnet_env()?;
        ensure!(env.mtu == 1350, "{env:?}");
        lab.ping_matrix()
    });
}

#[test]
fn a_reload_changes_between_iptables_and_nftables() {
    scenario(Lab::builder().nodes(1).config(VXLAN), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, &["--ip-masq"])?;
        let rules = || -> Result<(bool, bool)> {
            let iptables = node.cmd("iptables", ["-t", "nat", "-S"])?;
            let tables = node.cmd("nft", ["list", "tables"])?;
            Ok((
                iptables.contains("FLANNEL-POSTRTG"),
                tables.contains("flannel-ipv4"),
            ))
        };
        let nftables =
            r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
        for (config, wanted) in [(nftables, (false, true)), (VXLAN, (true, false))] {
            lab.store().set_config(config)?;
            reload(node)?;
            wait_for(&format!("the rules of {config}"), PATIENCE, || {
                let found = rules()?;
                ensure!(found == wanted, "iptables, nftables: {found:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}
