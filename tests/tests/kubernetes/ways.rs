//! The ways in that go by Kubernetes: the commands of their pages, typed by an administrator. There are no kubelets:
//! the test starts in each node what the DaemonSet would have one start.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    kubernetes::{Account, ApiServer},
    lab::{Lab, Node},
    page::{self, Hosts, Machine},
    traffic::flow::SteadyFlow,
};
use serde_json::{Value, json};

use crate::{
    chart::{flannels_daemon_set, install_flannels},
    cluster::wait_annotations,
    stock::annotations,
    with_api_server,
};

const SUBNETS: [&str; 2] = ["10.5.1.0/24", "10.5.2.0/24"];

/// A host from which the cluster is administered.
fn administrator(lab: &Lab, server: &ApiServer, name: &str) -> Result<Hosts> {
    // The server's folder is where a node has flannel's.
    let config = fs::read_to_string(server.admin_config())?;
    let dir = server.dir().to_str().context("UTF-8")?;
    fs::write(
        server.dir().join("page.json"),
        config.replace(dir, "/run/flannel"),
    )?;
    let mut host = Machine::start(lab.underlay().router(), server.dir())?;
    host.run("export HOME=/mnt KUBECONFIG=/run/flannel/page.json")?;
    Ok(Hosts::from([(name.to_owned(), host)]))
}

/// Starts what the DaemonSet has in its pods, on one node.
fn start_pod(lab: &Lab, server: &ApiServer, node: &Node, account: &Account) -> Result<()> {
    let words = [
        "-n",
        "kube-flannel",
        "get",
        "daemonset",
        "kube-flannel-ds",
        "-o",
        "json",
    ];
    let daemons: Value = serde_json::from_str(&server.kubectl(&words)?)?;
    let container = &daemons["spec"]["template"]["spec"]["containers"][0];
    ensure!(
        container["command"] == json!(["/usr/bin/overlay-agent"]),
        "{container}"
    );
    let flags = container["args"].as_array().into_iter().flatten();
    ensure!(
        flags.into_iter().any(|flag| flag == "--kube-subnet-mgr"),
        "{container}"
    );
    server.start_agent_with(lab, node, account)?;
    node.wait_ready()?;
    wait_annotations(server, node)
}

/// Two nodes of stock flannel, as far as their peers and the API server can tell.
fn stock_cluster(lab: &Lab, server: &ApiServer) -> Result<()> {
    for (node, subnet) in lab.nodes().iter().zip(SUBNETS) {
        lab.start_stock(node, subnet)?;
        server.create_node(&node.name, &[subnet], &annotations(lab, subnet)?)?;
    }
    let network = json!({ "Network": "10.5.0.0/16", "Backend": { "Type": "vxlan" } });
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "kube-flannel-cfg", "namespace": "kube-flannel" },
        "data": { "net-conf.json": network.to_string() },
    });
    install_flannels(lab, server, &[flannels_daemon_set(), config])?;
    lab.add_pods(1)?;
    lab.wait_converged()?;
    lab.ping_matrix()
}

#[test]
fn a_cluster_of_kube_flannel_goes_over_under_traffic_as_its_page_says() {
    let name = "a_cluster_of_kube_flannel_goes_over_under_traffic_as_its_page_says";
    with_api_server(name, Lab::builder().nodes(2), |lab, server| {
        stock_cluster(lab, server)?;
        let (from, to) = (&lab.node(0).pods()[0], &lab.node(1).pods()[0]);
        let flow = SteadyFlow::start(&from.endpoint(), &to.endpoint(), Duration::from_millis(1))?;
        let account = Account::mount(server, SystemTime::now() + Duration::from_hours(1))?;
        let mut hosts = administrator(lab, server, "admin")?;
        page::follow("from-kube-flannel.md", &mut hosts, |step| {
            if step.command.starts_with("kubectl apply -f") {
                for node in lab.nodes() {
                    // The agent takes the place of the stand-in for flanneld.
                    fs::remove_file(&node.subnet_file)?;
                    start_pod(lab, server, node, &account)?;
                }
            }
            Ok(())
        })?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        lab.node(0).wait_fast()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}

/// Objects that others than kube-flannel do not have. A namespace does not go without a controller.
fn delete_flannels(server: &ApiServer) -> Result<()> {
    for object in ["configmap/kube-flannel-cfg", "daemonset/kube-flannel-ds"] {
        server.kubectl(&["-n", "kube-flannel", "delete", object])?;
    }
    Ok(())
}

#[test]
fn a_new_cluster_gets_in_as_its_page_says() {
    let name = "a_new_cluster_gets_in_as_its_page_says";
    with_api_server(name, Lab::builder().nodes(2), |lab, server| {
        delete_flannels(server)?;
        for (node, subnet) in lab.nodes().iter().zip(SUBNETS) {
            server.create_node(&node.name, &[subnet], &json!({}))?;
        }
        let account = Account::mount(server, SystemTime::now() + Duration::from_hours(1))?;
        let mut hosts = administrator(lab, server, "admin")?;
        page::follow("kubernetes.md", &mut hosts, |step| {
            if step.command.starts_with("kubectl apply -f") {
                for node in lab.nodes() {
                    start_pod(lab, server, node, &account)?;
                }
            }
            Ok(())
        })?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        lab.ping_matrix()?;
        let (one, two) = (lab.node(0), lab.node(1));
        let [from, to] = [one, two].map(|node| node.pods()[0].endpoint());
        one.wait_fast_echoes(&from, two, &to)
    });
}

#[test]
fn the_manifest_for_k3s_is_taken_as_its_page_says() {
    let name = "the_manifest_for_k3s_is_taken_as_its_page_says";
    with_api_server(name, Lab::builder().nodes(1), |lab, server| {
        delete_flannels(server)?;
        let mut hosts = administrator(lab, server, "server")?;
        page::follow("from-k3s.md", &mut hosts, |_| Ok(()))
    });
}
