//! A peer that sends from another address than its lease says, because a NAT is between: flannel takes
//! its packets, so the guard must let them pass.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    lab::{Lab, scenario, underlay::NODE_INTERFACE},
    traffic::{tcp, udp},
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(15);

/// The router gives tunnel packets of the second segment its own address on the first.
fn translate_tunnels(lab: &Lab) -> Result<()> {
    let rules = "add table ip nat; \
                 add chain ip nat out { type nat hook postrouting priority 100; }; \
                 add rule ip nat out oifname seg0 udp dport 8472 masquerade";
    lab.underlay().router().run("nft", [rules]).map(drop)
}

/// Pods on both sides of the NAT, the guard at this side; all they say to each other arrives.
fn reach_each_other(arguments: &[&str], is_guarded: bool) {
    scenario(Lab::builder().nodes(1).routed_nodes(1), |lab| {
        translate_tunnels(lab)?;
        lab.start_agents(arguments)?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        let node = lab.node(0);
        if is_guarded {
            wait_for("the guard", DEADLINE, || {
                let guard = node.attached(NODE_INTERFACE)?.get("guard").copied();
                guard.context("not attached")
            })?;
        }
        let before = node.counters()?;
        lab.ping_matrix()?;
        let pods = lab.pods();
        let (near, far) = (pods[0].1.endpoint(), pods[1].1.endpoint());
        udp::echo_each(&near, &far, &[8, 100, 1_400], 100)?.ensure_lossless()?;
        udp::echo_each(&far, &near, &[8, 100, 1_400], 100)?.ensure_lossless()?;
        tcp::transfer(&far, &near, tcp::Spec::bulk(4 << 20))?;
        let counted = node.counters()?.since(&before);
        let dropped = counted.dropped();
        ensure!(dropped == 0, "{dropped} packets were dropped:\n{counted}");
        // Without this the NAT would not be there, and the test about nothing.
        let passed = counted.packets(Hook::Guard, Outcome::UnknownPeer);
        ensure!((passed > 600) == is_guarded, "{passed} packets:\n{counted}");
        Ok(())
    });
}

#[test]
fn a_peer_behind_a_nat_passes_the_native_guard() {
    reach_each_other(&["--xdp=native"], true);
}

#[test]
fn a_peer_behind_a_nat_passes_the_generic_guard_without_the_fast_path() {
    reach_each_other(&["--xdp=generic", "--fastpath=off"], true);
}

#[test]
fn a_peer_behind_a_nat_is_reached_without_the_guard() {
    reach_each_other(&["--xdp=off"], false);
}
