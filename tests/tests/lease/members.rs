//! An etcd of three members, each on a machine of its own, under agents whose pods talk to each other
//! all the time: whatever becomes of members, no datagram is lost, no lease changes, and news arrive
//! as long as a majority is there.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, scenario, store::member_address},
    traffic::flow::SteadyFlow,
    wait::wait_for,
};

/// An election takes a second or two, a request to a member without a leader up to its deadline, and
/// a peer that vanished during a long outage stays for 90 seconds.
const PATIENCE: Duration = Duration::from_secs(150);
const INTERVAL: Duration = Duration::from_millis(2);
const AWAY: &str = "etcd is away, forwarding goes on";
const BACK: &str = "connected to etcd";

fn leases(lab: &Lab) -> Result<Vec<(String, String)>> {
    let records = lab.store().leases()?.into_iter();
    Ok(records
        .map(|record| (record.subnet_key, record.value))
        .collect())
}

/// How often an agent has said something.
fn said(node: &Node, text: &str) -> Result<usize> {
    node.with_agent(|agent| Ok(agent.log().matches(text).count()))
}

fn wait_said(node: &Node, text: &str, more_than: usize) -> Result<()> {
    let what = format!("{} to say {text:?} once more", node.name);
    wait_for(&what, PATIENCE, || {
        node.check_running()?;
        let times = said(node, text)?;
        ensure!(times > more_than, "said {times} times");
        Ok(())
    })
}

/// A lease that appears in etcd becomes a route of these nodes, and one that vanishes does not stay.
fn news_arrive<'a>(lab: &'a Lab, nodes: impl Fn(&'a Lab) -> Vec<&'a Node>, n: u8) -> Result<()> {
    let value = format!(
        r#"{{"PublicIP":"172.30.0.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02}"}}}}"#
    );
    let (key, route) = (format!("10.5.{n}.0-24"), format!("10.5.{n}.0/24 "));
    wait_for("a lease to be written", PATIENCE, || {
        lab.store().put_lease(&key, &value)
    })?;
    for (wanted, what) in [(true, "come"), (false, "go")] {
        wait_for(&format!("the route to {what}"), PATIENCE, || {
            for node in nodes(lab) {
                node.check_running()?;
                let routes = node.cmd("ip", ["route"])?;
                ensure!(
                    routes.contains(&route) == wanted,
                    "{}:\n{routes}",
                    node.name
                );
            }
            Ok(())
        })?;
        // Members that choose a leader again answer nobody meanwhile.
        wait_for("a lease to be deleted", PATIENCE, || {
            lab.store().delete_lease(&key)
        })?;
    }
    Ok(())
}

/// Nodes choose none of the subnets that [`news_arrive`] writes.
const CONFIG: &str =
    r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0","Backend":{"Type":"vxlan"}}"#;

/// Two nodes whose pods talk, until and after what happens to the members. The leases are the same.
fn under_traffic(test: impl FnOnce(&mut Lab) -> Result<()>) {
    let builder = Lab::builder().nodes(2).config(CONFIG).etcd_members(3);
    scenario(builder, |lab| {
        lab.bring_up(1)?;
        let pod = |lab: &Lab, node: usize| lab.node(node).pods()[0].endpoint();
        let flow = SteadyFlow::start(&pod(lab, 0), &pod(lab, 1), INTERVAL)?;
        wait_for("fast packets", PATIENCE, || {
            let counted = lab.node(0).counters()?;
            ensure!(counted.fast(Hook::Egress) > 100, "counted\n{counted}");
            Ok(())
        })?;
        let before = leases(lab)?;
        ensure!(before.len() == 2, "{before:?}");
        test(lab)?;
        news_arrive(lab, |lab| lab.nodes().iter().collect(), 90)?;
        let after = leases(lab)?;
        ensure!(after == before, "before {before:?}, now {after:?}");
        lab.wait_converged()?;
        let report = flow.stop()?;
        println!(
            "lost {} of {} datagrams",
            report.datagrams.lost.len(),
            report.datagrams.sent
        );
        report.datagrams.ensure_lossless()
    });
}

#[test]
fn a_killed_leader_is_followed_by_another_and_nobody_notices() {
    under_traffic(|lab| {
        let server = lab.store_mut().server();
        let leader = server.leader()?;
        server.kill(leader)?;
        wait_for("another leader", PATIENCE, || {
            let next = lab.store_mut().server().leader()?;
            ensure!(next != leader, "it is dead");
            Ok(())
        })?;
        news_arrive(lab, |lab| lab.nodes().iter().collect(), 91)?;
        lab.store_mut().server().restart(leader)
    });
}

/// All agents use the first member, which loses the others.
#[test]
fn agents_leave_a_member_that_is_cut_off_from_the_others() {
    under_traffic(|lab| {
        lab.store_mut().server().ask_only(Some(1));
        let others = [member_address(1), member_address(2)];
        lab.store().isolate(0, &others)?;
        news_arrive(lab, |lab| lab.nodes().iter().collect(), 92)?;
        for node in lab.nodes() {
            ensure!(
                said(node, BACK)? > 1,
                "{} has not gone elsewhere",
                node.name
            );
        }
        lab.store().rejoin(0)?;
        lab.store_mut().server().ask_only(None);
        Ok(())
    });
}

/// The first node reaches no member but the first, which reaches no other.
#[test]
fn an_agent_cut_off_together_with_a_member_goes_on_and_learns_the_news_afterwards() {
    under_traffic(|lab| {
        let node: Ipv4Addr = lab.node(0).address;
        lab.store_mut().server().ask_only(Some(1));
        lab.store()
            .isolate(0, &[member_address(1), member_address(2)])?;
        for member in [1, 2] {
            lab.store().isolate(member, &[member_address(0), node])?;
        }
        let before = said(lab.node(0), BACK)?;
        wait_said(lab.node(0), AWAY, 0)?;
        // The others go on.
        news_arrive(lab, |lab| vec![lab.node(1)], 93)?;
        lab.ping_matrix()?;
        for member in 0..3 {
            lab.store().rejoin(member)?;
        }
        lab.store_mut().server().ask_only(None);
        wait_said(lab.node(0), BACK, before)
    });
}

#[test]
fn a_lost_majority_stops_the_news_and_nothing_else() {
    under_traffic(|lab| {
        let before = [said(lab.node(0), BACK)?, said(lab.node(1), BACK)?];
        let server = lab.store_mut().server();
        let leader = server.leader()?;
        let second = (leader + 1) % 3;
        server.kill(leader)?;
        server.kill(second)?;
        for node in lab.nodes() {
            wait_said(node, AWAY, 0)?;
        }
        lab.ping_matrix()?;
        // One comes back with its data, which makes a majority.
        let server = lab.store_mut().server();
        server.restart(second)?;
        for (node, before) in lab.nodes().iter().zip(before) {
            wait_said(node, BACK, before)?;
        }
        lab.store_mut().server().restart(leader)
    });
}
