//! An underlay whose packets have no Ethernet headers, as those of a VPN: nothing is fast in either
//! direction, all arrives, and the node says why.

use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, agent::Launch, scenario},
    traffic::{flow::SteadyFlow, tcp, udp},
    tun::TunCable,
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(15);
const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
const TUN: &str = "tun0";
const REASON: &str = "tun0 has no Ethernet headers: nothing is fast";

/// Two nodes with a cable of tun interfaces beside their Ethernet, and agents.
fn bring_up(lab: &Lab, interface: Option<&str>, arguments: &[&str]) -> Result<TunCable> {
    let (a, b) = (&lab.node(0).namespace, &lab.node(1).namespace);
    let cable = TunCable::connect(a, b, TUN)?;
    for (namespace, last) in [(a, 1), (b, 2)] {
        namespace.ip_batch(&format!(
            "addr add 10.99.0.{last}/24 dev {TUN}\n\
             link set {TUN} up\n\
             route replace default dev {TUN}\n"
        ))?;
    }
    for node in lab.nodes() {
        node.launch(&Launch {
            interface: interface.map(str::to_owned),
            ..Launch::new(lab.store(), arguments)
        })?;
    }
    for node in lab.nodes() {
        node.wait_ready()?;
    }
    lab.add_pods(1)?;
    lab.wait_converged()?;
    lab.wait_attached()?;
    Ok(cable)
}

fn exchange(lab: &Lab) -> Result<()> {
    lab.ping_matrix()?;
    let pods = lab.pods();
    let (near, far) = (pods[0].1.endpoint(), pods[1].1.endpoint());
    udp::echo_each(&near, &far, &[8, 100, 1_400], 100)?.ensure_lossless()?;
    tcp::transfer(&near, &far, tcp::Spec::small_writes(50_000, 500))?;
    tcp::transfer(&far, &near, tcp::Spec::bulk(1 << 20)).map(drop)
}

/// How many of a node's packets were fast while `test` ran, out of and into pods.
fn fast_while(node: &Node, test: impl FnOnce() -> Result<()>) -> Result<[u64; 2]> {
    let before = node.counters()?;
    test()?;
    let counted = node.counters()?.since(&before);
    Ok([Hook::Egress, Hook::Ingress].map(|hook| counted.fast(hook)))
}

fn all_arrives_and_nothing_is_fast(config: &str, arguments: &[&str]) {
    scenario(Lab::builder().nodes(2).config(config), |lab| {
        let _cable = bring_up(lab, Some(TUN), arguments)?;
        let node = lab.node(0);
        let fast = fast_while(node, || exchange(lab))?;
        ensure!(fast == [0, 0], "{fast:?} fast packets");
        for node in lab.nodes() {
            let attached = node.attached(TUN)?;
            ensure!(attached.is_empty(), "{attached:?}");
            let status = node.operator(&["status"])?;
            ensure!(status.starts_with("healthy\n"), "{status}");
            ensure!(status.contains(REASON), "{status}");
            let json = node.operator_json(&["status"])?;
            ensure!(json["datapath"]["bare_underlay"] == TUN, "{json}");
            ensure!(json["datapath"]["fastpath"] == "off", "{json}");
            let log = node.with_agent(|agent| Ok(agent.log()))?;
            let warnings = log.matches("the interface has no Ethernet headers").count();
            ensure!(warnings == 1, "{log}");
        }
        Ok(())
    });
}

#[test]
fn over_a_tun_interface_all_arrives_by_the_kernel_tier() {
    all_arrives_and_nothing_is_fast(VXLAN, &["--xdp=generic"]);
}

#[test]
fn over_a_tun_interface_directly_routed_packets_arrive_by_the_kernel_tier() {
    all_arrives_and_nothing_is_fast(DIRECT, &[]);
}

#[test]
fn over_a_tun_interface_all_arrives_without_the_fast_path_too() {
    all_arrives_and_nothing_is_fast(VXLAN, &["--fastpath=off"]);
}

#[test]
fn a_node_that_moves_from_a_tun_interface_to_ethernet_becomes_fast_and_back() {
    scenario(Lab::builder().nodes(2).config(VXLAN), |lab| {
        let _cable = bring_up(lab, None, &[])?;
        let node = lab.node(0);
        let status = node.operator(&["status"])?;
        ensure!(status.contains(REASON), "{status}");
        let fast = fast_while(node, || exchange(lab))?;
        ensure!(fast == [0, 0], "{fast:?} fast packets");

        for node in lab.nodes() {
            node.cmd("ip", ["route", "replace", "default", "via", "172.30.0.1"])?;
        }
        wait_for("pods to talk over Ethernet", DEADLINE, || {
            for node in lab.nodes() {
                ensure!(node.attached("eth0")?.contains_key("ingress"), "no program");
                let status = node.operator(&["status"])?;
                ensure!(!status.contains(REASON), "{status}");
            }
            lab.ping_matrix()
        })?;
        let pods = lab.pods();
        let (near, far) = (pods[0].1.endpoint(), pods[1].1.endpoint());
        let flow = SteadyFlow::start(&near, &far, Duration::from_millis(5))?;
        node.wait_fast()?;
        flow.stop()?.datagrams.ensure_lossless()?;

        for node in lab.nodes() {
            node.cmd("ip", ["route", "replace", "default", "dev", TUN])?;
        }
        wait_for("pods to talk over tun again", DEADLINE, || {
            for node in lab.nodes() {
                let status = node.operator(&["status"])?;
                ensure!(status.contains(REASON), "{status}");
                let attached = node.attached("eth0")?;
                ensure!(attached.is_empty(), "{attached:?}");
            }
            lab.ping_matrix()
        })?;
        let fast = fast_while(node, || exchange(lab))?;
        ensure!(fast == [0, 0], "{fast:?} fast packets");
        Ok(())
    });
}
