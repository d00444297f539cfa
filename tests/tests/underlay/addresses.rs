//! Addresses come and go beside the one that a node's tunnels use, virtual ones above all: the node
//! keeps its own, and returns to it.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, Node, agent::Launch, scenario, underlay::NODE_INTERFACE},
    traffic::flow::SteadyFlow,
    wait::wait_for,
};
use serde_json::Value;

/// The agent's periodic look comes every 30 s: what is there by now was noticed when it happened.
const PATIENCE: Duration = Duration::from_secs(10);
const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const FAST: &[&str] = &[];
const OFF: &[&str] = &["--fastpath=off"];
const VIRTUAL: &str = "172.30.0.100";

/// The addresses a node has in its lease and in its device, if they are the same.
fn address_in_use(lab: &Lab, node: &Node, family: UnderlayFamily) -> Result<IpAddr> {
    let subnet = node.subnet_env()?.subnet()?;
    let key = format!("{}-{}", subnet.network(), subnet.prefix());
    let leases = lab.store().leases()?;
    let lease = leases
        .into_iter()
        .find(|lease| lease.subnet_key.starts_with(&key))
        .with_context(|| format!("no lease {key}"))?;
    let value: Value = serde_json::from_str(&lease.value)?;
    let (field, device, local) = match family {
        UnderlayFamily::Ipv4 => ("PublicIP", "flannel.1", "local"),
        UnderlayFamily::Ipv6 => ("PublicIPv6", "flannel-v6.1", "local6"),
    };
    let links = node.cmd("ip", ["-json", "-details", "link", "show", "dev", device])?;
    let links: Value = serde_json::from_str(&links)?;
    let local = &links[0]["linkinfo"]["info_data"][local];
    let public = &value[field];
    ensure!(
        public == local,
        "the lease says {public}, the device {local}"
    );
    Ok(public.as_str().context("no address")?.parse()?)
}

#[derive(Clone, Copy)]
enum UnderlayFamily {
    Ipv4,
    Ipv6,
}

fn wait_for_address(lab: &Lab, node: &Node, family: UnderlayFamily, address: IpAddr) -> Result<()> {
    wait_for(&format!("{} to use {address}", node.name), PATIENCE, || {
        node.check_running()?;
        let found = address_in_use(lab, node, family)?;
        ensure!(found == address, "it uses {found}");
        Ok(())
    })
}

fn ip(node: &Node, arguments: &str) -> Result<()> {
    node.cmd("ip", arguments.split(' ')).map(drop)
}

/// The node's own address as DHCP gives it.
fn own(node: &Node) -> String {
    let lifetimes = "valid_lft 3600 preferred_lft 3600";
    format!("{}/24 dev {NODE_INTERFACE} {lifetimes}", node.address)
}

/// As after a DHCP client's loss: the kernel dropped the default route with the address.
fn give_back(node: &Node) -> Result<()> {
    ip(node, &format!("address add {}", own(node)))?;
    ip(node, "route replace default via 172.30.0.1")
}

fn add_virtual(node: &Node) -> Result<()> {
    ip(
        node,
        &format!("address add {VIRTUAL}/32 dev {NODE_INTERFACE}"),
    )
}

/// Waits until the agent has looked at its interface again: the MTU changes, and it follows.
fn wait_noticed(node: &Node, mtu: u32) -> Result<()> {
    ip(node, &format!("link set {NODE_INTERFACE} mtu {mtu}"))?;
    wait_for("the MTU to follow", PATIENCE, || {
        let env = fs::read_to_string(&node.subnet_file)?;
        let line = format!("FLANNEL_MTU={}\n", mtu - 50);
        ensure!(env.contains(&line), "{env}");
        Ok(())
    })
}

/// Two nodes with addresses that DHCP gave.
fn two_nodes(arguments: &[&str], test: impl FnOnce(&Lab) -> Result<()>) {
    scenario(Lab::builder().nodes(2), |lab| {
        for node in lab.nodes() {
            ip(node, &format!("address change {}", own(node)))?;
        }
        lab.start_agents(arguments)?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        for node in lab.nodes() {
            wait_for_address(lab, node, UnderlayFamily::Ipv4, node.address.into())?;
        }
        test(lab)
    });
}

/// Pods of both nodes reach each other, in every direction.
fn wait_talking(lab: &Lab) -> Result<()> {
    wait_for("pods to talk", PATIENCE, || lab.ping_matrix())
}

fn log_of(node: &Node) -> Result<String> {
    node.with_agent(|agent| Ok(agent.log()))
}

fn keep_their_own(arguments: &[&str]) {
    two_nodes(arguments, |lab| {
        let pods: Vec<_> = lab.pods().iter().map(|(_, pod)| pod.endpoint()).collect();
        let flow = SteadyFlow::start(&pods[0], &pods[1], Duration::from_millis(5))?;
        for mtu in [1490, 1480] {
            for node in lab.nodes() {
                add_virtual(node)?;
            }
            for node in lab.nodes() {
                wait_noticed(node, mtu)?;
            }
            for node in lab.nodes() {
                wait_for_address(lab, node, UnderlayFamily::Ipv4, node.address.into())?;
                ip(
                    node,
                    &format!("address del {VIRTUAL}/32 dev {NODE_INTERFACE}"),
                )?;
            }
        }
        flow.stop()?.datagrams.ensure_lossless()?;
        for node in lab.nodes() {
            let log = log_of(node)?;
            ensure!(!log.contains(VIRTUAL), "{log}");
        }
        lab.ping_matrix()
    });
}

#[test]
fn a_virtual_address_on_two_nodes_at_once_is_taken_by_neither() {
    keep_their_own(FAST);
}

#[test]
fn a_virtual_address_on_two_nodes_at_once_is_taken_by_neither_without_the_fast_path() {
    keep_their_own(OFF);
}

fn return_to_their_own(arguments: &[&str]) {
    two_nodes(arguments, |lab| {
        let node = lab.node(0);
        add_virtual(node)?;
        ip(
            node,
            &format!("address del {}/24 dev {NODE_INTERFACE}", node.address),
        )?;
        wait_for("the node to say what it waits for", PATIENCE, || {
            let log = log_of(node)?;
            ensure!(
                log.contains("172.30.0.100 may be a virtual address"),
                "{log}"
            );
            Ok(())
        })?;
        give_back(node)?;
        wait_for("the node to be ready again", PATIENCE, || {
            let log = log_of(node)?;
            ensure!(log.matches("INFO ready").count() == 2, "{log}");
            Ok(())
        })?;
        wait_for_address(lab, node, UnderlayFamily::Ipv4, node.address.into())?;
        wait_talking(lab)?;
        let log = log_of(node)?;
        ensure!(!log.contains("underlay changed"), "{log}");
        Ok(())
    });
}

#[test]
fn while_its_own_address_is_gone_a_node_waits_for_it_beside_a_virtual_one() {
    return_to_their_own(FAST);
}

#[test]
fn while_its_own_address_is_gone_a_node_waits_for_it_beside_a_virtual_one_without_the_fast_path() {
    return_to_their_own(OFF);
}

/// A secondary address, which the kernel promotes when the primary one goes, cannot be told from a new
/// one that DHCP gave.
#[test]
fn a_node_returns_to_its_own_address_from_one_that_stood_in() {
    two_nodes(FAST, |lab| {
        let node = lab.node(0);
        node.namespace.set_sysctl(
            &format!("net/ipv4/conf/{NODE_INTERFACE}/promote_secondaries"),
            "1",
        )?;
        ip(
            node,
            &format!("address add {VIRTUAL}/24 dev {NODE_INTERFACE}"),
        )?;
        ip(
            node,
            &format!("address del {}/24 dev {NODE_INTERFACE}", node.address),
        )?;
        ip(node, "route replace default via 172.30.0.1")?;
        wait_for_address(lab, node, UnderlayFamily::Ipv4, VIRTUAL.parse()?)?;
        wait_talking(lab)?;
        give_back(node)?;
        wait_for_address(lab, node, UnderlayFamily::Ipv4, node.address.into())?;
        wait_talking(lab)
    });
}

#[test]
fn a_start_beside_virtual_and_better_looking_addresses_takes_what_the_node_had() {
    two_nodes(FAST, |lab| {
        let node = lab.node(0);
        let mac = node.mac("flannel.1")?;
        let subnet = node.subnet_env()?.subnet()?;
        add_virtual(node)?;
        // flannel's choice, had it always been there.
        ip(
            node,
            &format!("address add 192.168.9.9/24 dev {NODE_INTERFACE}"),
        )?;
        for is_booted in [false, true] {
            node.stop_agent()?;
            if is_booted {
                ip(node, "link del flannel.1")?;
                fs::remove_file(&node.subnet_file)?;
            }
            lab.start_agent(node, FAST)?;
            wait_for_address(lab, node, UnderlayFamily::Ipv4, node.address.into())?;
            let found = (node.mac("flannel.1")?, node.subnet_env()?.subnet()?);
            ensure!(found == (mac, subnet), "{found:?}");
            wait_talking(lab)?;
        }
        Ok(())
    });
}

/// A node whose flags name a secondary address, however.
fn hold_what_is_named(interface: Option<&str>, argument: Option<String>) {
    scenario(Lab::builder().nodes(2), |lab| {
        let (node, peer) = (lab.node(0), lab.node(1));
        let add = format!("address add {VIRTUAL}/32 dev {NODE_INTERFACE}");
        ip(node, &add)?;
        let launch = Launch {
            interface: interface.map(str::to_owned),
            extra: argument.into_iter().collect(),
            ..Launch::new(lab.store(), &[])
        };
        node.launch(&launch)?;
        node.wait_ready()?;
        lab.start_agent(peer, &[])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        let named = VIRTUAL.parse()?;
        wait_for_address(lab, node, UnderlayFamily::Ipv4, named)?;
        lab.ping_matrix()?;

        ip(
            node,
            &format!("address add 172.30.0.101/24 dev {NODE_INTERFACE}"),
        )?;
        wait_noticed(node, 1490)?;
        wait_for_address(lab, node, UnderlayFamily::Ipv4, named)?;

        ip(
            node,
            &format!("address del {VIRTUAL}/32 dev {NODE_INTERFACE}"),
        )?;
        wait_noticed_or_missing(node)?;
        ip(node, &add)?;
        wait_for_address(lab, node, UnderlayFamily::Ipv4, named)?;
        wait_talking(lab)
    });
}

/// With the address that `--iface` names the interface is gone; else the agent goes on without it.
fn wait_noticed_or_missing(node: &Node) -> Result<()> {
    wait_for("the loss to be noticed", PATIENCE, || {
        let log = log_of(node)?;
        let noticed = log.contains("WARN not ready") || log.contains("underlay changed");
        ensure!(noticed, "{log}");
        Ok(())
    })
}

#[test]
fn the_address_that_iface_names_is_held() {
    hold_what_is_named(Some(VIRTUAL), None);
}

#[test]
fn the_address_that_public_ip_names_is_the_tunnels_own_and_held() {
    let public_ip = || Some(format!("--public-ip={VIRTUAL}"));
    hold_what_is_named(None, public_ip());
    hold_what_is_named(Some(NODE_INTERFACE), public_ip());
}

#[test]
fn ipv6_nodes_keep_their_own_address_beside_virtual_ones_too() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agents6(&[])?;
        lab.add_pods(1)?;
        for node in lab.nodes() {
            let own = address_in_use(lab, node, UnderlayFamily::Ipv6)?;
            let subnet = format!("{own}/64 dev {NODE_INTERFACE} nodad");
            add_virtual(node)?;
            ip(
                node,
                &format!("address add fd00:172:30::100/128 dev {NODE_INTERFACE}"),
            )?;
            wait_noticed6(node, 1490)?;
            for (family, address) in [
                (UnderlayFamily::Ipv4, node.address.into()),
                (UnderlayFamily::Ipv6, own),
            ] {
                wait_for_address(lab, node, family, address)?;
            }
            ip(node, &format!("address del {own}/64 dev {NODE_INTERFACE}"))?;
            wait_for("the node to say what it waits for", PATIENCE, || {
                let log = log_of(node)?;
                ensure!(log.contains("fd00:172:30::100"), "{log}");
                Ok(())
            })?;
            ip(node, &format!("address add {subnet}"))?;
            wait_for_address(lab, node, UnderlayFamily::Ipv6, own)?;
            let log = log_of(node)?;
            ensure!(log.matches("underlay changed").count() == 2, "{log}");
        }
        wait_talking(lab)
    });
}

/// As [`wait_noticed`]; IPv6 takes more of the MTU.
fn wait_noticed6(node: &Node, mtu: u32) -> Result<()> {
    ip(node, &format!("link set {NODE_INTERFACE} mtu {mtu}"))?;
    wait_for("the MTU to follow", PATIENCE, || {
        let env = fs::read_to_string(&node.subnet_file)?;
        let line = format!("FLANNEL_MTU={}\n", mtu - 70);
        ensure!(env.contains(&line), "{env}");
        Ok(())
    })
}

#[test]
fn what_one_family_has_lost_does_not_hold_up_the_other() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agents6(&[])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        let node = lab.node(0);
        let own = address_in_use(lab, node, UnderlayFamily::Ipv6)?;
        ip(node, &format!("address del {own}/64 dev {NODE_INTERFACE}"))?;
        wait_for("the loss to be noticed", PATIENCE, || {
            let log = log_of(node)?;
            ensure!(log.contains("WARN not ready"), "{log}");
            Ok(())
        })?;
        ip(
            node,
            &format!("address del {}/24 dev {NODE_INTERFACE}", node.address),
        )?;
        ip(
            node,
            &format!("address add 172.30.0.77/24 dev {NODE_INTERFACE}"),
        )?;
        ip(node, "route add default via 172.30.0.1")?;
        wait_for_address(lab, node, UnderlayFamily::Ipv4, "172.30.0.77".parse()?)?;
        wait_talking(lab)?;
        let log = log_of(node)?;
        ensure!(log.matches("INFO ready").count() == 1, "{log}");
        ip(
            node,
            &format!("address add {own}/64 dev {NODE_INTERFACE} nodad"),
        )?;
        wait_for("the node to be ready again", PATIENCE, || {
            let log = log_of(node)?;
            ensure!(log.matches("INFO ready").count() == 2, "{log}");
            Ok(())
        })
    });
}
