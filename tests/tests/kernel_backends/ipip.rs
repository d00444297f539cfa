//! The ipip backend.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    decode::decode_ipv4,
    lab::{Lab, scenario},
    skip,
    traffic::ping,
    wait::wait_for,
};

use crate::{
    PATIENCE, bring_up, check_restarts, check_traffic, devices, lacks, pod, pod_routes, restart,
};

const IPIP: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#;
const DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip","DirectRouting":true}}"#;
/// IP in IP, as the outer header says it.
const PROTOCOL: u8 = 4;

#[test]
fn pods_talk_by_ipip_which_a_restart_and_a_kill_do_not_touch() {
    if let Some(reason) = lacks("ipip local 192.0.2.1") {
        skip!("no ipip devices: {reason}");
    }
    scenario(Lab::builder().nodes(2).config(IPIP), |lab| {
        bring_up(lab)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let mtu = node.subnet_env()?.mtu;
        ensure!(mtu == 1480, "MTU {mtu}");
        check_traffic(&pod(lab, 0), &pod(lab, 1), mtu)?;
        let subnet = peer.subnet_env()?.subnet()?;
        let route = format!(
            "{subnet} via {} dev flannel.ipip proto 241 onlink",
            peer.address
        );
        let routes = pod_routes(node)?;
        ensure!(routes == [route.as_str()], "{routes:?}");
        let base = node.subnet_env()?.subnet()?.network();
        let address = node.cmd("ip", ["-brief", "addr", "show", "flannel.ipip"])?;
        ensure!(address.contains(&format!("{base}/32")), "{address}");

        let capture = node.capture_wire()?;
        ping::once(&pod(lab, 0), pod(lab, 1).address)?;
        let frames = capture.stop()?;
        let outer = frames
            .iter()
            .filter_map(|frame| decode_ipv4(&frame.bytes).ok());
        let outer: Vec<_> = outer
            .filter(|packet| packet.ip.protocol.0 == PROTOCOL)
            .collect();
        ensure!(outer.len() >= 2, "{} packets of IP in IP", outer.len());
        ensure!(outer[0].ip.source == node.address.octets());

        let records = lab.store().leases()?;
        let value = &records[0].value;
        ensure!(value.ends_with(r#""BackendType":"ipip"}"#), "{value}");
        check_restarts(lab, "flannel.ipip")
    });
}

#[test]
fn ipip_is_left_out_where_direct_routing_can_be() {
    if let Some(reason) = lacks("ipip local 192.0.2.1") {
        skip!("no ipip devices: {reason}");
    }
    scenario(
        Lab::builder().nodes(2).routed_nodes(1).config(DIRECT),
        |lab| {
            bring_up(lab)?;
            let far = lab.node(2);
            let routes = pod_routes(lab.node(0))?;
            for node in &lab.nodes()[1..] {
                let (subnet, address) = (node.subnet_env()?.subnet()?, node.address);
                let device = if node.name == far.name {
                    "flannel.ipip"
                } else {
                    "eth0"
                };
                let start = format!("{subnet} via {address} dev {device} ");
                ensure!(
                    routes.iter().any(|route| route.starts_with(&start)),
                    "{routes:?}"
                );
            }
            let mtu = lab.node(0).subnet_env()?.mtu;
            check_traffic(&pod(lab, 0), &pod(lab, 1), mtu)?;
            check_traffic(&pod(lab, 0), &pod(lab, 2), mtu)
        },
    );
}

#[test]
fn an_ipip_device_of_another_address_is_made_again_and_a_deleted_one_as_well() {
    if let Some(reason) = lacks("ipip local 192.0.2.1") {
        skip!("no ipip devices: {reason}");
    }
    scenario(Lab::builder().nodes(2).config(IPIP), |lab| {
        bring_up(lab)?;
        let node = lab.node(0);
        node.stop_agent()?;
        node.namespace.ip_batch(
            "link del flannel.ipip\n\
             link add flannel.ipip type ipip local 192.0.2.99\n",
        )?;
        crate::start(lab, node)?;
        let heal = |what: &str| -> Result<()> {
            wait_for(what, PATIENCE, || {
                let details = node.cmd("ip", ["-d", "link", "show", "flannel.ipip"])?;
                ensure!(
                    details.contains(&format!("local {}", node.address)),
                    "{details}"
                );
                lab.ping_matrix()
            })
        };
        heal("the wrong device to be replaced")?;
        node.namespace.ip_batch("link del flannel.ipip\n")?;
        heal("the device to come back")?;
        ensure!(devices(node)? == ["flannel.ipip"]);
        restart(lab, node, Signal::SIGTERM)?;
        lab.ping_matrix()
    });
}
