//! A node with stock flanneld and one of ours in one Kubernetes cluster.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    kubernetes::ApiServer,
    lab::Lab,
    traffic::{flow::SteadyFlow, tcp},
};
use serde_json::{Value, json};

use crate::with_api_server;

/// The annotations that stock flanneld writes for the lease of a stand-in.
pub fn annotations(lab: &Lab, subnet: &str) -> Result<Value> {
    let leases = lab.store().leases()?;
    let key = subnet.replace('/', "-");
    let lease = leases.iter().find(|lease| lease.subnet_key == key);
    let lease = lease.context("no lease of the stand-in")?;
    let value: Value = serde_json::from_str(&lease.value)?;
    let (vni, mac) = (
        &value["BackendData"]["VNI"],
        &value["BackendData"]["VtepMAC"],
    );
    Ok(json!({
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":{vni},"VtepMAC":{mac}}}"#),
        "flannel.alpha.coreos.com/public-ip": value["PublicIP"],
    }))
}

/// Tells the stand-in, which reads etcd, what stock flanneld would read of a Node.
fn tell_stock(lab: &Lab, server: &ApiServer, name: &str, key: &str) -> Result<()> {
    let data = server.annotation(name, "backend-data")?;
    let backend = server.annotation(name, "backend-type")?;
    let ip = server.annotation(name, "public-ip")?;
    let value = format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{backend}","BackendData":{data}}}"#
    );
    lab.store().put_lease(key, &value)
}

#[test]
fn a_stock_node_of_a_kubernetes_cluster_is_a_peer_and_changes_hands_under_traffic() {
    let name = "a_stock_node_of_a_kubernetes_cluster_is_a_peer_and_changes_hands_under_traffic";
    with_api_server(name, Lab::builder().nodes(2), |lab, server| {
        let (n1, n2) = (lab.node(0), lab.node(1));
        lab.start_stock(n2, "10.5.2.0/24")?;
        server.create_node("n2", &["10.5.2.0/24"], &annotations(lab, "10.5.2.0/24")?)?;
        server.create_node("n1", &["10.5.1.0/24"], &json!({}))?;
        server.start_agent(lab, n1)?;
        n1.wait_ready()?;
        tell_stock(lab, server, "n1", "10.5.1.0-24")?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        let (from, to) = (n1.pods()[0].endpoint(), n2.pods()[0].endpoint());
        tcp::transfer(&from, &to, tcp::Spec::bulk(1_000_000))?;

        let before = server.annotation("n2", "backend-data")?;
        let flow = SteadyFlow::start(&from, &to, Duration::from_millis(1))?;
        fs::remove_file(&n2.subnet_file)?;
        server.start_agent(lab, n2)?;
        n2.wait_ready()?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        n1.wait_fast()?;
        let after = server.annotation("n2", "backend-data")?;
        ensure!(before == after, "{before} became {after}");
        n2.stop_agent()?;
        lab.start_stock(n2, "10.5.2.0/24")?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}
