//! `overlay-agent peers`: it names what keeps nodes from each other, and nothing on a healthy cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    http,
    lab::{DEFAULT_CONFIG, Lab, Node, scenario},
    wait::wait_for,
};
use serde_json::Value;

use crate::support::{Judged, judge, spoil_checksums};

const PROBES: &str = "--peer-probe-port=8473";
/// Three questions without an answer, and those that come before.
const PATIENCE: Duration = Duration::from_secs(40);
const DROP: &str = "-p udp --dport 8472 -j DROP";

/// The states of a node's peers, by their public IPs.
fn states(node: &Node) -> Result<Judged> {
    let (code, said) = judge(node, &["peers"])?;
    let peers = said["peers"].as_array().context("peers")?;
    let text = |peer: &Value, key: &str| peer[key].as_str().unwrap_or_default().to_owned();
    let states = peers
        .iter()
        .map(|peer| (text(peer, "public_ip"), text(peer, "state")));
    Ok((code, states.collect(), said))
}

/// Waits until `node` says this of `peer`.
fn expect(node: &Node, peer: &Node, state: &str) -> Result<()> {
    let wanted = (peer.address.to_string(), state.to_owned());
    wait_for(
        &format!("{} to find {} {state}", node.name, peer.name),
        PATIENCE,
        || {
            let (code, states, said) = states(node)?;
            ensure!(states.contains(&wanted), "{said:#}");
            let is_fine = ["healthy", "no_agent"].contains(&state);
            ensure!(is_fine || code == Some(1), "{code:?} {said:#}");
            Ok(())
        },
    )
}

fn iptables(node: &Node, rule: &str) -> Result<()> {
    node.cmd("iptables", rule.split(' ')).map(drop)
}

/// Agents that ask each other, and are satisfied.
fn start(lab: &Lab) -> Result<()> {
    lab.start_agents(&[PROBES])?;
    lab.wait_converged()?;
    for node in lab.nodes() {
        for peer in lab.nodes().iter().filter(|peer| peer.name != node.name) {
            expect(node, peer, "healthy")?;
        }
    }
    Ok(())
}

#[test]
fn healthy_nodes_of_both_families_find_each_other_healthy_and_stay_so() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
    scenario(
        Lab::builder().nodes(2).routed_nodes(1).config(config),
        |lab| {
            lab.start_agents(&[PROBES, "--healthz-port=2401"])?;
            lab.wait_converged()?;
            let all_answered = |node: &Node| {
                let (code, states, said) = states(node)?;
                ensure!(states.len() == 4 && code == Some(0), "{code:?} {said:#}");
                let mut states = states.iter();
                ensure!(states.all(|(_, state)| state == "healthy"), "{said:#}");
                let peers = said["peers"].as_array().context("peers")?;
                let enough = |peer: &Value| peer["questions"].as_u64() >= Some(4);
                ensure!(peers.iter().all(enough), "{said:#}");
                Ok(())
            };
            for node in lab.nodes() {
                // Large questions come every second time.
                wait_for("four rounds", Duration::from_mins(1), || all_answered(node))?;
                let health = ([127, 0, 0, 1], 2401).into();
                let (_, metrics) = http::get(&node.namespace, health, "/metrics")?;
                let line = "overlay_peer_health{state=\"healthy\"} 4";
                ensure!(metrics.lines().any(|found| found == line), "{metrics}");
                let large = "overlay_peer_probes_total{size=\"large\",result=\"answered\"} ";
                let answered = metrics.lines().find_map(|line| line.strip_prefix(large));
                ensure!(answered.is_some_and(|count| count != "0"), "{metrics}");
            }
            Ok(())
        },
    );
}

#[test]
fn a_firewall_in_one_direction_is_named_on_either_side_and_one_in_both_too() {
    scenario(Lab::builder().nodes(2), |lab| {
        start(lab)?;
        let (one, other) = (lab.node(0), lab.node(1));
        iptables(other, &format!("-A INPUT {DROP}"))?;
        expect(one, other, "one_way")?;
        expect(other, one, "blocked")?;
        iptables(one, &format!("-A INPUT {DROP}"))?;
        expect(one, other, "blocked")?;
        expect(other, one, "blocked")?;
        for node in [one, other] {
            iptables(node, &format!("-D INPUT {DROP}"))?;
        }
        expect(one, other, "healthy")?;
        expect(other, one, "healthy")?;
        node_away(lab, one, other)
    });
}

/// A node that is gone altogether.
fn node_away(lab: &Lab, one: &Node, other: &Node) -> Result<()> {
    lab.underlay()
        .hub()
        .run("ip", ["link", "set", &other.name, "down"])?;
    expect(one, other, "unreachable")
}

#[test]
fn a_switch_that_takes_small_packets_only_is_named() {
    scenario(Lab::builder().nodes(2), |lab| {
        start(lab)?;
        let (one, other) = (lab.node(0), lab.node(1));
        lab.underlay()
            .hub()
            .run("ip", ["link", "set", &other.name, "mtu", "1400"])?;
        expect(one, other, "path_mtu")
    });
}

#[test]
fn what_spoils_checksums_is_named_on_either_side_and_by_every_node_that_is_asked() {
    scenario(Lab::builder().nodes(3), |lab| {
        start(lab)?;
        let (one, other, third) = (lab.node(0), lab.node(1), lab.node(2));
        let (code, said) = mesh(third)?;
        ensure!(code == Some(0), "{said:#}");
        ensure!(
            said["mesh"]["ways"] == 6 && said["mesh"]["in_trouble"] == 0,
            "{said:#}"
        );
        spoil_checksums(lab, one, other)?;
        expect(one, other, "checksum")?;
        expect(other, one, "checksum")?;
        expect(one, third, "healthy")?;
        let (code, said) = mesh(third)?;
        ensure!(code == Some(1), "{said:#}");
        let subnet = |node: &Node| Ok::<_, anyhow::Error>(node.subnet_env()?.subnet()?.to_string());
        for (from, to) in [(one, other), (other, one)] {
            let pair =
                serde_json::json!({"from": subnet(from)?, "to": subnet(to)?, "state": "checksum"});
            let told = said["mesh"]["troubles"].as_array().context("troubles")?;
            ensure!(told.contains(&pair), "no {pair} in {said:#}");
        }
        Ok(())
    });
}

/// What `check --mesh` says, asked on `node`.
fn mesh(node: &Node) -> Result<(Option<i32>, Value)> {
    let file = node.subnet_file_flag();
    judge(node, &["check", "--mesh", &file])
}

#[test]
fn stock_nodes_and_agents_that_stopped_are_no_trouble() {
    scenario(Lab::builder().nodes(3), |lab| {
        lab.start_stock(lab.node(2), "10.5.200.0/24")?;
        lab.start_agents(&[PROBES])?;
        lab.wait_converged()?;
        let (one, other, stock) = (lab.node(0), lab.node(1), lab.node(2));
        expect(one, stock, "no_agent")?;
        expect(one, other, "healthy")?;
        other.stop_agent()?;
        expect(one, other, "no_agent")?;
        let (code, _, said) = states(one)?;
        ensure!(code == Some(0), "{said:#}");
        // The commands ask the agent, and there is none.
        let (code, said) = judge(other, &["peers"])?;
        ensure!(code == Some(2) && said["health"] == "unknown", "{said:#}");
        Ok(())
    });
}

#[test]
fn leases_with_one_address_are_named() {
    scenario(Lab::builder().nodes(2), |lab| {
        start(lab)?;
        let (one, other) = (lab.node(0), lab.node(1));
        let record = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}}}"#,
            other.address
        );
        lab.store().put_lease("10.5.250.0-24", &record)?;
        expect(one, other, "duplicate")?;
        expect(one, other, "healthy")
    });
}

#[test]
fn nothing_is_asked_where_it_is_switched_off_or_where_there_is_no_end_to_ask() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&[])?;
        let (code, said) = judge(lab.node(0), &["peers"])?;
        ensure!(
            code == Some(2) && said["peers"] == serde_json::json!([]),
            "{said:#}"
        );
        Ok(())
    });
    let config = DEFAULT_CONFIG.replace("vxlan", "host-gw");
    scenario(Lab::builder().nodes(1).config(&config), |lab| {
        lab.start_agents(&[PROBES])?;
        wait_for("the reason", PATIENCE, || {
            let (code, said) = judge(lab.node(0), &["peers"])?;
            let reason = said["reason"].as_str().unwrap_or_default();
            ensure!(code == Some(2) && reason.contains("no device"), "{said:#}");
            Ok(())
        })
    });
}
