//! The credentials of a pod, and an API server that answers late or has forgotten.

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    kubernetes::{Account, ApiServer},
    lab::{Lab, Node},
    traffic::flow::SteadyFlow,
};
use serde_json::json;

use crate::{
    cluster::{wait_annotations, wait_route, wait_said},
    with_api_server,
};

pub const GHOST: &str = "10.5.199.0/24";

/// The end of a token that is good for the whole test.
fn late() -> SystemTime {
    SystemTime::now() + Duration::from_hours(1)
}

fn flow(lab: &Lab) -> Result<SteadyFlow> {
    lab.add_pods(1)?;
    lab.wait_converged()?;
    lab.wait_attached()?;
    let (from, to) = (&lab.node(0).pods()[0], &lab.node(1).pods()[0]);
    let flow = SteadyFlow::start(&from.endpoint(), &to.endpoint(), Duration::from_millis(1))?;
    lab.node(0).wait_fast()?;
    Ok(flow)
}

pub fn create_ghost(server: &ApiServer) -> Result<()> {
    let annotations = json!({
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}"#,
        "flannel.alpha.coreos.com/public-ip": "172.30.0.99",
    });
    server.create_node("ghost", &[GHOST], &annotations)
}

fn take_annotation(server: &ApiServer, node: &Node) -> Result<()> {
    let name = "flannel.alpha.coreos.com/backend-data-";
    server
        .kubectl(&["annotate", "node", &node.name, name])
        .map(drop)
}

#[test]
fn an_agent_in_a_pod_goes_by_the_token_that_its_kubelet_keeps_fresh() {
    let name = "an_agent_in_a_pod_goes_by_the_token_that_its_kubelet_keeps_fresh";
    with_api_server(name, Lab::builder().nodes(2), |lab, server| {
        let (n1, n2) = (lab.node(0), lab.node(1));
        server.create_node("n1", &["10.5.1.0/24"], &json!({}))?;
        server.create_node("n2", &["10.5.2.0/24"], &json!({}))?;
        let account = Account::mount(server, SystemTime::now())?;
        server.start_agent_with(lab, n1, &account)?;
        server.start_agent(lab, n2)?;
        for node in [n1, n2] {
            node.wait_ready()?;
            wait_annotations(server, node)?;
        }
        let flow = flow(lab)?;

        // Replaced in time, as kubelets do it.
        let first = account.token()?;
        account.renew(server, SystemTime::now() + Duration::from_mins(1))?;
        let second = account.token()?;
        server.wait_refused(&first)?;
        take_annotation(server, n1)?;
        wait_annotations(server, n1)?;

        // A kubelet that is late: there is only what has run out, and a server that knows nobody.
        account.renew(server, SystemTime::now() - Duration::from_mins(2))?;
        server.wait_refused(&second)?;
        server.kill()?;
        server.restart()?;
        wait_said(n1, "Unauthorized (401)")?;
        create_ghost(server)?;
        wait_route(n2, GHOST, true)?;
        wait_route(n1, GHOST, false)?;
        account.renew(server, late())?;
        wait_route(n1, GHOST, true)?;
        take_annotation(server, n1)?;
        wait_annotations(server, n1)?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn an_api_server_that_answers_late_or_has_forgotten_costs_nobody_a_packet() {
    let name = "an_api_server_that_answers_late_or_has_forgotten_costs_nobody_a_packet";
    with_api_server(name, Lab::builder().nodes(2), |lab, server| {
        let (n1, n2) = (lab.node(0), lab.node(1));
        for (node, subnet) in [(n1, "10.5.1.0/24"), (n2, "10.5.2.0/24")] {
            server.create_node(&node.name, &[subnet], &json!({}))?;
            server.start_agent(lab, node)?;
            node.wait_ready()?;
        }
        let flow = flow(lab)?;

        // An agent starts while nothing is answered, and waits.
        n2.stop_agent()?;
        server.freeze()?;
        server.start_agent(lab, n2)?;
        wait_said(n2, "cannot read the leases, trying on")?;
        server.thaw()?;
        n2.wait_ready()?;
        lab.wait_attached()?;

        // A Node goes while one agent hears nothing, and the server no longer knows that it went.
        create_ghost(server)?;
        wait_route(n1, GHOST, true)?;
        n1.with_agent(|agent| agent.signal(Signal::SIGSTOP))?;
        server.kill()?;
        lab.store().put_lease("10.9.9.0-24", "{}")?;
        server.restart()?;
        server.kubectl(&["delete", "node", "ghost"])?;
        wait_route(n2, GHOST, false)?;
        n1.with_agent(|agent| agent.signal(Signal::SIGCONT))?;
        wait_said(n1, "the Nodes are listed again")?;
        wait_route(n1, GHOST, false)?;
        ensure!(n1.cmd("ip", ["route"])?.contains("10.5.2.0/24"));
        flow.stop()?.datagrams.ensure_lossless()
    });
}
