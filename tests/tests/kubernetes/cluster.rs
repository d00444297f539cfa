//! A cluster of our nodes, from Nodes without podCIDRs to whatever happens to its API server.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    kubernetes::{ApiServer, MANIFEST},
    lab::{Lab, Node, ipv6::ping_matrix},
    traffic::{connection::SteadyConnection, flow::SteadyFlow},
    wait::wait_for,
};
use serde_json::{Value, json};

use crate::with_api_server;

/// For whatever a working daemon does at once, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);
/// Also for a pause between attempts.
pub const LONG: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(1);
const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const ACCOUNT: &str = "--as=system:serviceaccount:kube-flannel:flannel";

pub fn wait_said(node: &Node, text: &str) -> Result<()> {
    let name = &node.name;
    wait_for(&format!("{name} to say {text:?}"), LONG, || {
        let log = fs::read_to_string(node.log_file())?;
        ensure!(log.contains(text), "{log}");
        Ok(())
    })
}

pub fn wait_route(node: &Node, subnet: &str, is_wanted: bool) -> Result<()> {
    let what = format!("{} to have a route to {subnet}: {is_wanted}", node.name);
    wait_for(&what, LONG, || {
        let routes = node.cmd("ip", ["route", "show"])?;
        ensure!(routes.contains(subnet) == is_wanted, "{routes}");
        Ok(())
    })
}

/// What flannel writes for a node of the lab.
fn check_annotations(server: &ApiServer, node: &Node) -> Result<()> {
    let mac = node.mac("flannel.1")?;
    for (name, expected) in [
        ("backend-type", "vxlan".to_owned()),
        ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)),
        ("public-ip", node.address.to_string()),
        ("kube-subnet-manager", "true".to_owned()),
    ] {
        let found = server.annotation(&node.name, name)?;
        ensure!(found == expected, "{name} of {} is {found}", node.name);
    }
    Ok(())
}

pub fn wait_annotations(server: &ApiServer, node: &Node) -> Result<()> {
    let what = format!("the annotations of {}", node.name);
    wait_for(&what, LONG, || check_annotations(server, node))
}

fn start(lab: &Lab, server: &ApiServer) -> Result<()> {
    server.create_node("n1", &["10.5.1.0/24"], &json!({}))?;
    server.create_node("n2", &["10.5.2.0/24"], &json!({}))?;
    server.create_node("n3", &[], &json!({}))?;
    // The first one finds its Node by the pod it runs in.
    server.create_pod("agent", "n1")?;
    server.start_agent_of_pod(lab, lab.node(0), "agent")?;
    for node in &lab.nodes()[1..] {
        server.start_agent(lab, node)?;
    }
    wait_said(lab.node(2), "pod cidr not assigned")?;
    let assigned = json!({ "spec": { "podCIDR": "10.5.3.0/24", "podCIDRs": ["10.5.3.0/24"] } });
    server.kubectl(&["patch", "node", "n3", "-p", &assigned.to_string()])?;
    for (node, subnet) in lab
        .nodes()
        .iter()
        .zip(["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"])
    {
        let has = node.wait_ready()?.subnet()?.to_string();
        ensure!(has == subnet, "{} has {has}", node.name);
        check_annotations(server, node)?;
    }
    Ok(())
}

fn wait_condition(server: &ApiServer, name: &str) -> Result<()> {
    wait_for("the condition of a started node", PATIENCE, || {
        let node = server.node(name)?;
        let conditions = node["status"]["conditions"]
            .as_array()
            .context("conditions")?;
        let is_ours = |condition: &&Value| condition["type"] == "NetworkUnavailable";
        let condition = conditions.iter().find(is_ours).context("the condition")?;
        ensure!(
            condition["status"] == "False"
                && condition["reason"] == "FlannelIsUp"
                && condition["message"] == "Flannel is running on this node",
            "{condition}"
        );
        Ok(())
    })
}

/// The agents' account has the rights of flannel's, and no more.
fn check_rights(server: &ApiServer) -> Result<()> {
    for (words, is_allowed) in [
        (&["get", "pods"][..], true),
        (&["list", "pods"], false),
        (&["get", "nodes"], true),
        (&["list", "nodes"], true),
        (&["watch", "nodes"], true),
        (&["patch", "nodes"], false),
        (&["patch", "nodes", "--subresource=status"], true),
        (&["update", "nodes", "--subresource=status"], false),
        (&["get", "secrets"], false),
    ] {
        // It exits with 1 for "no".
        let answer = server.kubectl(&[&["auth", "can-i", ACCOUNT], words].concat());
        ensure!(answer.is_ok() == is_allowed, "{words:?}: {answer:?}");
    }
    Ok(())
}

#[test]
fn pods_of_a_kubernetes_cluster_talk_whatever_happens_to_its_nodes_and_its_api_server() {
    let name = "pods_of_a_kubernetes_cluster_talk_whatever_happens_to_its_nodes_and_its_api_server";
    with_api_server(name, Lab::builder().nodes(3), |lab, server| {
        server.kubectl(&["apply", "--dry-run=server", "-f", MANIFEST])?;
        check_rights(server)?;
        start(lab, server)?;
        wait_condition(server, "n1")?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        lab.ping_matrix()?;
        let (n1, n2, n3) = (lab.node(0), lab.node(1), lab.node(2));
        let (from, to) = (n1.pods()[0].endpoint(), n2.pods()[0].endpoint());
        let flow = SteadyFlow::start(&from, &to, INTERVAL)?;
        let connection = SteadyConnection::open(&from, &to, Duration::from_millis(5))?;
        n1.wait_fast()?;

        // Somebody's hand.
        let removed = ["backend-data", "public-ip", "kube-subnet-manager"];
        let removed = removed.map(|name| format!("flannel.alpha.coreos.com/{name}-"));
        let words: Vec<&str> = removed.iter().map(String::as_str).collect();
        server.kubectl(&[&["annotate", "node", "n2"], &words[..]].concat())?;
        wait_annotations(server, n2)?;
        let overwrite = "flannel.alpha.coreos.com/public-ip-overwrite=";
        let own = format!("{overwrite}{}", n2.address);
        server.kubectl(&["annotate", "node", "n2", &own])?;

        // A server that ends, and comes back with other tokens than the agents have in memory.
        server.kill()?;
        wait_said(n1, "no changes from the API server")?;
        server.set_token("second-token")?;
        server.restart()?;
        let ghost = json!({
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}"#,
            "flannel.alpha.coreos.com/public-ip": "172.30.0.99",
        });
        server.create_node("ghost", &["10.5.199.0/24"], &ghost)?;
        wait_route(n1, "10.5.199.0/24", true)?;
        wait_route(n2, "10.5.199.0/24", true)?;
        server.kubectl(&["delete", "node", "ghost"])?;
        wait_route(n1, "10.5.199.0/24", false)?;

        // An agent that ends, and comes back.
        n1.stop_agent()?;
        fs::remove_file(&n1.subnet_file)?;
        server.start_agent(lab, n1)?;
        n1.wait_ready()?;

        // A Node that is deleted, and registered again by its kubelet.
        server.kubectl(&["delete", "node", "n3"])?;
        wait_route(n1, "10.5.3.0/24", false)?;
        server.create_node("n3", &["10.5.3.0/24"], &json!({}))?;
        wait_annotations(server, n3)?;
        wait_condition(server, "n3")?;
        lab.wait_converged()?;
        lab.ping_matrix()?;

        connection.close()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn both_families_of_a_kubernetes_cluster_are_served() {
    let name = "both_families_of_a_kubernetes_cluster_are_served";
    with_api_server(name, Lab::builder().nodes(2).config(DUAL), |lab, server| {
        fs::write(server.net_config(), DUAL)?;
        let cidrs = [
            ["10.5.1.0/24", "fd00:10:5:1::/64"],
            ["10.5.2.0/24", "fd00:10:5:2::/64"],
        ];
        for (node, cidrs) in lab.nodes().iter().zip(&cidrs) {
            server.create_node(&node.name, cidrs, &json!({}))?;
            server.start_agent(lab, node)?;
        }
        for (node, cidrs) in lab.nodes().iter().zip(&cidrs) {
            node.wait_ready6()?;
            let [v4, v6] = [
                node.subnet_env()?.subnet()?.to_string(),
                node.subnet_env6()?.subnet()?.to_string(),
            ];
            ensure!([v4.as_str(), v6.as_str()] == *cidrs, "{v4} {v6}");
            let ip = server.annotation(&node.name, "public-ipv6")?;
            ensure!(ip == node.address6().to_string(), "{ip}");
            let (data, mac) = (
                server.annotation(&node.name, "backend-v6-data")?,
                node.mac("flannel-v6.1")?,
            );
            ensure!(data.contains(&format!(r#""VtepMAC":"{mac}""#)), "{data}");
        }
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_converged6()?;
        let mut pods6 = Vec::new();
        for (node, pod) in lab.pods() {
            pods6.push(node.add_ipv6(&pod)?);
        }
        ping_matrix(&pods6)?;
        lab.ping_matrix()
    });
}
