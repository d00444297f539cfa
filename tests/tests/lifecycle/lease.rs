//! What becomes of a running node when its lease or etcd goes away: pods notice nothing, and the same
//! lease comes back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    http,
    lab::{Lab, Node, scenario},
    traffic::{flow::SteadyFlow, udp::Report},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(2);
const HEALTH: [&str; 1] = ["--healthz-port=2401"];
const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const GHOST: &str = r#"{"PublicIP":"172.30.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;

/// Keys and values of all leases.
fn leases(lab: &Lab) -> Result<Vec<(String, String)>> {
    let records = lab.store().leases()?.into_iter();
    Ok(records
        .map(|record| (record.subnet_key, record.value))
        .collect())
}

fn own_key(node: &Node) -> Result<String> {
    let subnet = node.subnet_env()?.subnet()?;
    Ok(format!("{}-{}", subnet.network(), subnet.prefix()))
}

fn readyz(node: &Node) -> Result<(u16, String)> {
    http::get(&node.namespace, ([127, 0, 0, 1], 2401).into(), "/readyz")
}

fn wait_ready(node: &Node) -> Result<()> {
    wait_for(&format!("{} to be ready", node.name), PATIENCE, || {
        node.check_running()?;
        let answer = readyz(node)?;
        ensure!(
            answer == (200, "flanneld is ready".to_owned()),
            "{answer:?}"
        );
        Ok(())
    })
}

/// What the pods of the other node may notice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noticed {
    Nothing,
    /// A lease that another node claims is that node's for all peers, until the claim is gone.
    Gap,
}

/// Longer than a claim lasts here, on a machine that is busy with other tests.
const LONGEST_GAP: Duration = Duration::from_secs(5);

/// Two nodes whose pods talk to each other all the time; both nodes are ready at the end.
fn under_traffic(noticed: Noticed, test: impl FnOnce(&mut Lab) -> Result<()>) {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.start_agents(&HEALTH)?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.nodes().iter().try_for_each(wait_ready)?;
        let flow = SteadyFlow::start(&lab.node(0).first_pod(), &lab.node(1).first_pod(), INTERVAL)?;
        wait_for("fast packets", PATIENCE, || {
            let counted = lab.node(0).counters()?;
            ensure!(counted.fast(Hook::Egress) > 100, "counted\n{counted}");
            Ok(())
        })?;
        test(lab)?;
        lab.nodes().iter().try_for_each(wait_ready)?;
        wait_for("pods to talk", PATIENCE, || lab.ping_matrix())?;
        let report = flow.stop()?;
        ensure!(report.datagrams.sent > 100, "{report:?}");
        let Report { sent, lost, .. } = &report.datagrams;
        println!("lost {} of {sent} datagrams", lost.len());
        if noticed == Noticed::Nothing {
            return report.datagrams.ensure_lossless();
        }
        ensure!(report.longest_gap < LONGEST_GAP, "{report:?}");
        Ok(())
    });
}

/// Loses the lease, and waits until the same one is there again. The node itself goes on forwarding.
fn comes_back_after(lose: impl FnOnce(&Lab, &str) -> Result<()>) {
    under_traffic(Noticed::Nothing, |lab| {
        let node = lab.node(0);
        let (key, before) = (own_key(node)?, leases(lab)?);
        let tier = || node.cmd("ip", ["route", "show", "proto", "241"]);
        let routes = tier()?;
        lose(lab, &key)?;
        wait_for("the lease to be back", PATIENCE, || {
            node.check_running()?;
            let now = leases(lab)?;
            ensure!(now == before, "before {before:?}, now {now:?}");
            let left = lab.store().lease_ttl(&key)?.context("a lease-less key")?;
            ensure!(left > 86_000, "{left} seconds left");
            Ok(())
        })?;
        ensure!(tier()? == routes, "before\n{routes}now\n{}", tier()?);
        node.with_agent(|agent| {
            agent.wait_log(
                "own lease was deleted or ran out; forwarding goes on",
                PATIENCE,
            )
        })?;
        lab.wait_converged()
    });
}

#[test]
fn a_deleted_lease_is_written_again_under_the_same_key_while_pods_talk() {
    comes_back_after(|lab, key| lab.store().delete_lease(key));
}

#[test]
fn a_revoked_lease_is_written_again_under_the_same_key_while_pods_talk() {
    comes_back_after(|lab, key| lab.store().revoke_lease(key));
}

#[test]
fn a_claimed_subnet_makes_the_node_not_ready_until_the_claim_is_gone() {
    under_traffic(Noticed::Gap, |lab| {
        let node = lab.node(0);
        let (key, before) = (own_key(node)?, leases(lab)?);
        lab.store().put_lease(&key, GHOST)?;
        wait_for("the node not to be ready", PATIENCE, || {
            let (status, body) = readyz(node)?;
            let wanted = "flanneld is not ready yet\n\
                          lease: the subnet of this node is claimed by 172.30.0.99";
            ensure!((status, body.as_str()) == (503, wanted), "{status} {body}");
            Ok(())
        })?;
        lab.store().delete_lease(&key)?;
        wait_ready(node)?;
        wait_for("the lease to be back", PATIENCE, || {
            let now = leases(lab)?;
            ensure!(now == before, "before {before:?}, now {now:?}");
            Ok(())
        })
    });
}

#[test]
fn nothing_changes_while_etcd_is_away_and_news_arrive_when_it_is_back() {
    under_traffic(Noticed::Nothing, |lab| {
        let state = |lab: &Lab| -> Result<String> {
            let mut text = String::new();
            for node in lab.nodes() {
                for command in ["ip route", "ip neigh show dev flannel.1", "bridge fdb show"] {
                    let mut words = command.split(' ');
                    text += &node.cmd(words.next().unwrap_or_default(), words)?;
                }
            }
            Ok(text)
        };
        let before = state(lab)?;
        lab.store_mut().server().stop(0)?;
        for node in lab.nodes() {
            node.with_agent(|agent| agent.wait_log("etcd is away, forwarding goes on", PATIENCE))?;
            let (status, body) = readyz(node)?;
            ensure!(status == 200, "{status} {body}");
        }
        lab.ping_matrix()?;
        let during = state(lab)?;
        ensure!(during == before, "before\n{before}\nduring\n{during}");
        lab.store_mut().server().restart(0)?;
        lab.store().put_lease("10.5.199.0-24", GHOST)?;
        wait_for("the nodes to learn of a new peer", PATIENCE, || {
            for node in lab.nodes() {
                node.check_running()?;
                let routes = node.cmd("ip", ["route"])?;
                ensure!(
                    routes.contains("10.5.199.0/24 "),
                    "{}:\n{routes}",
                    node.name
                );
            }
            Ok(())
        })
    });
}

#[test]
fn an_agent_that_starts_while_etcd_is_away_costs_nobody_a_packet() {
    under_traffic(Noticed::Nothing, |lab| {
        lab.store_mut().server().stop(0)?;
        let node = lab.node(0);
        node.kill_agent()?;
        node.start_agent(lab.store(), &HEALTH)?;
        wait_for("the agent to wait", PATIENCE, || {
            node.check_running()?;
            let (status, body) = readyz(node)?;
            ensure!(status == 503, "{status} {body}");
            Ok(())
        })?;
        // What an earlier agent pinned forwards meanwhile.
        node.wait_fast()?;
        node.check_running()?;
        lab.store_mut().server().restart(0)
    });
}

#[test]
fn an_etcd_that_lost_its_data_gets_the_leases_back() {
    under_traffic(Noticed::Nothing, |lab| {
        let before = leases(lab)?;
        let server = lab.store_mut().server();
        server.stop(0)?;
        server.wipe(0)?;
        server.restart(0)?;
        wait_for("both leases to be back", PATIENCE, || {
            for node in lab.nodes() {
                node.check_running()?;
            }
            let now = leases(lab)?;
            ensure!(now == before, "before {before:?}, now {now:?}");
            Ok(())
        })?;
        // Who comes first finds the other's lease missing; who comes second may find all in order.
        wait_for("a node to tell of the loss", PATIENCE, || {
            let tells = |node: &Node| node.with_agent(|agent| Ok(agent.log()));
            let logs = lab.nodes().iter().map(tells).collect::<Result<Vec<_>>>()?;
            ensure!(
                logs.iter().any(|log| log.contains("etcd lost its data")),
                "{logs:?}"
            );
            Ok(())
        })?;
        lab.store().set_config(CONFIG)?;
        lab.wait_converged()
    });
}
