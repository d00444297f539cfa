//! The network under the node changes: the lease, the device and the peers follow, and pods go on.

use std::{fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    lab::{Lab, Node, agent::Launch, scenario},
    traffic::{flow::SteadyFlow, ping, udp::Report},
    wait::wait_for,
};
use serde_json::Value;

/// The agent's periodic look comes every 30 s: what is there by now was noticed when it happened.
const PATIENCE: Duration = Duration::from_secs(10);
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

fn two_nodes(config: Option<&str>, test: impl FnOnce(&Lab) -> Result<()>) {
    let builder = Lab::builder().nodes(2);
    let builder = match config {
        Some(config) => builder.config(config),
        None => builder,
    };
    scenario(builder, |lab| {
        lab.start_agents(&["--ip-masq"])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        test(lab)
    });
}

/// The key of a node's lease and the public IP it advertises.
fn lease_of(lab: &Lab, node: &Node) -> Result<(String, Ipv4Addr)> {
    let subnet = node.subnet_env()?.subnet()?;
    let key = format!("{}-{}", subnet.network(), subnet.prefix());
    let leases = lab.store().leases()?;
    let lease = leases
        .into_iter()
        .find(|lease| lease.subnet_key == key)
        .with_context(|| format!("no lease {key}"))?;
    let value: Value = serde_json::from_str(&lease.value)?;
    let public_ip = value["PublicIP"].as_str().context("no PublicIP")?;
    Ok((key, public_ip.parse()?))
}

fn change_address(node: &Node, to: Ipv4Addr) -> Result<()> {
    node.cmd("ip", ["address", "flush", "dev", "eth0"])?;
    node.cmd("ip", ["address", "add", &format!("{to}/24"), "dev", "eth0"])?;
    node.cmd("ip", ["route", "add", "default", "via", "172.30.0.1"])
        .map(drop)
}

/// Pods of both nodes reach each other, in every direction.
fn wait_talking(lab: &Lab) -> Result<()> {
    wait_for("pods to talk", PATIENCE, || {
        for node in lab.nodes() {
            node.check_running()?;
        }
        lab.ping_matrix()
    })
}

fn moves_with_the_address(config: Option<&str>) {
    two_nodes(config, |lab| {
        let (node, peer) = (lab.node(0), lab.node(1));
        let (key, before) = lease_of(lab, node)?;
        ensure!(before == node.address, "{before}");
        let leases = lab.store().leases()?.len();

        let moved = Ipv4Addr::new(172, 30, 0, 77);
        change_address(node, moved)?;
        wait_for("the lease with the new address", PATIENCE, || {
            let now = lease_of(lab, node)?;
            ensure!(now == (key.clone(), moved), "{now:?}");
            Ok(())
        })?;
        wait_talking(lab)?;
        ensure!(
            lab.store().leases()?.len() == leases,
            "{:?}",
            lab.store().leases()?
        );
        let entries = peer.cmd("bridge", ["fdb", "show", "dev", "flannel.1"]);
        let routes = peer.cmd("ip", ["route"])?;
        for text in [entries.unwrap_or_default(), routes] {
            ensure!(
                !text.contains(&node.address.to_string()),
                "the peer still has {}:\n{text}",
                node.address
            );
        }
        Ok(())
    });
}

#[test]
fn a_new_underlay_address_is_published_under_the_same_key() {
    moves_with_the_address(None);
}

#[test]
fn a_new_underlay_address_is_published_under_the_same_key_with_host_gw() {
    moves_with_the_address(Some(HOST_GW));
}

#[test]
fn a_restart_at_the_new_address_keeps_the_subnet_that_the_old_address_leased() {
    two_nodes(None, |lab| {
        let node = lab.node(0);
        let (key, _) = lease_of(lab, node)?;
        node.stop_agent()?;
        let moved = Ipv4Addr::new(172, 30, 0, 77);
        change_address(node, moved)?;
        lab.store().delete_lease(&key)?;
        lab.start_agent(node, &["--ip-masq"])?;
        wait_for("the lease with the new address", PATIENCE, || {
            let now = lease_of(lab, node)?;
            ensure!(now == (key.clone(), moved), "{now:?}");
            Ok(())
        })?;
        wait_talking(lab)
    });
}

#[test]
fn the_underlay_follows_the_default_route_to_another_interface() {
    scenario(Lab::builder().nodes(2), |lab| {
        let node = lab.node(0);
        let second = Ipv4Addr::new(172, 30, 0, 77);
        node.namespace.ip_batch(&format!(
            "link add eth1 type veth peer name second netns {}\n\
             address add {second}/32 dev eth1\n\
             link set eth1 up\n",
            lab.underlay().hub().name()
        ))?;
        lab.underlay()
            .hub()
            .ip_batch("link set second master seg0 up\n")?;
        node.launch(&Launch {
            interface: None,
            ..Launch::new(lab.store(), &["--ip-masq"])
        })?;
        node.wait_ready()?;
        lab.bring_up(1)?;
        let (key, before) = lease_of(lab, node)?;
        ensure!(before == node.address, "{before}");

        node.namespace.ip_batch(&format!(
            "route replace 172.30.0.0/24 dev eth1 src {second}\n\
             route replace default via 172.30.0.1 dev eth1\n"
        ))?;
        wait_for("the lease with the other address", PATIENCE, || {
            let now = lease_of(lab, node)?;
            ensure!(now == (key.clone(), second), "{now:?}");
            Ok(())
        })?;
        wait_talking(lab)
    });
}

/// The agent's routes.
fn own_routes(node: &Node) -> Result<String> {
    node.cmd("ip", ["route", "show", "proto", "241"])
}

fn wait_routes(node: &Node, before: &str) -> Result<()> {
    wait_for("the routes to be back", PATIENCE, || {
        node.check_running()?;
        let now = own_routes(node)?;
        ensure!(now == before, "before\n{before}now\n{now}");
        Ok(())
    })
}

fn survives_the_underlay_going_down(config: Option<&str>) {
    two_nodes(config, |lab| {
        let node = lab.node(0);
        let routes = own_routes(node)?;
        node.cmd("ip", ["link", "set", "eth0", "down"])?;
        let (pods, target) = (lab.pods(), lab.node(1).address);
        let (_, pod) = &pods[0];
        ensure!(
            ping::once(&pod.endpoint(), pods[1].1.address).is_err(),
            "pods talk over a link that is down"
        );
        node.cmd("ip", ["link", "set", "eth0", "up"])?;
        // As a network manager does: the kernel dropped it with the link.
        node.cmd("ip", ["route", "add", "default", "via", "172.30.0.1"])?;
        wait_routes(node, &routes)?;
        wait_talking(lab)?;
        ping::once(&node.endpoint(), target).map(drop)
    });
}

#[test]
fn after_the_underlay_was_down_all_peers_are_back() {
    survives_the_underlay_going_down(None);
}

#[test]
fn after_the_underlay_was_down_all_peers_are_back_with_host_gw() {
    survives_the_underlay_going_down(Some(HOST_GW));
}

/// While the routes to peers are missing, the default route takes packets to the router, and flows may
/// earn permits for that way: it must not be theirs for longer.
#[test]
fn flows_that_went_astray_while_the_underlay_was_down_are_back_with_the_routes() {
    two_nodes(Some(HOST_GW), |lab| {
        let node = lab.node(0);
        let routes = own_routes(node)?;
        for _ in 0..3 {
            let pods: Vec<_> = lab.pods().iter().map(|(_, pod)| pod.endpoint()).collect();
            let flow = SteadyFlow::start(&pods[0], &pods[1], Duration::from_millis(1))?;
            node.wait_fast()?;
            // The agent learns of it all at once, when the wire works again and the flow is fast as before.
            node.signal_agent(Signal::SIGSTOP)?;
            node.cmd("ip", ["link", "set", "eth0", "down"])?;
            node.cmd("ip", ["link", "set", "eth0", "up"])?;
            node.cmd("ip", ["route", "add", "default", "via", "172.30.0.1"])?;
            node.wait_fast()?;
            node.signal_agent(Signal::SIGCONT)?;
            wait_routes(node, &routes)?;
            // A moment for the flush; then nothing may be lost.
            let back = flow.sent() + 200;
            wait_for("the flow to go on", PATIENCE, || {
                ensure!(flow.sent() > back + 1_000);
                Ok(())
            })?;
            let Report { lost, sent, .. } = flow.stop()?.datagrams;
            let late: Vec<_> = lost.iter().filter(|number| **number > back).collect();
            println!("lost {} of {sent} datagrams", lost.len());
            ensure!(late.is_empty(), "{} after the routes were back", late.len());
        }
        Ok(())
    });
}

#[test]
fn a_smaller_underlay_mtu_reaches_the_device_and_the_subnet_file() {
    two_nodes(None, |lab| {
        let node = lab.node(0);
        node.cmd("ip", ["link", "set", "eth0", "mtu", "1400"])?;
        wait_for("the MTU to follow", PATIENCE, || {
            let device = node.cmd("ip", ["link", "show", "flannel.1"])?;
            ensure!(device.contains(" mtu 1350 "), "{device}");
            let env = fs::read_to_string(&node.subnet_file)?;
            ensure!(env.contains("FLANNEL_MTU=1350\n"), "{env}");
            Ok(())
        })?;
        wait_talking(lab)
    });
}

#[test]
fn a_node_without_an_underlay_address_is_not_ready_until_it_has_one_again() {
    two_nodes(None, |lab| {
        let node = lab.node(0);
        let said = |text: &str, times: usize| {
            let what = format!("`{text}` in the log for the {times}. time");
            wait_for(&what, PATIENCE, || {
                let log = node.with_agent(|agent| Ok(agent.log()))?;
                ensure!(log.matches(text).count() == times, "{log}");
                Ok(log)
            })
        };
        said("INFO ready", 1)?;
        node.cmd("ip", ["address", "flush", "dev", "eth0"])?;
        said("WARN not ready", 1)?;
        let address = format!("{}/24", node.address);
        node.cmd("ip", ["address", "add", &address, "dev", "eth0"])?;
        node.cmd("ip", ["route", "add", "default", "via", "172.30.0.1"])?;
        wait_talking(lab)?;
        let log = said("INFO ready", 2)?;
        ensure!(
            log.matches("underlay: ").count() == 1,
            "said more than once:\n{log}"
        );
        Ok(())
    });
}
