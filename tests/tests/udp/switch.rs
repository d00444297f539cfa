//! From and to other backends, by config and restart: the subnets stay, and nothing of the other backend does.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    backends::{Backend, every_switch},
    lab::{Lab, Node, scenario},
    traffic::tcp,
    wait::wait_for,
};

use super::{counted, fast::cabled, wait_pings};

const PATIENCE: Duration = Duration::from_secs(20);

/// The node runs it, and its forwarder if it has one.
fn check(node: &Node, peer: &Node, backend: Backend) -> Result<()> {
    node.check_running()?;
    backend.check(node, peer)?;
    ensure!(counted(node).is_ok() == (backend == Backend::Udp));
    Ok(())
}

fn check_traffic(lab: &Lab, backend: Backend) -> Result<()> {
    wait_pings(lab)?;
    let (node, peer) = (lab.node(0), lab.node(1));
    let [from, to] = [node, peer].map(Node::first_pod);
    tcp::transfer(&from, &to, tcp::Spec::bulk(1 << 20))?;
    if backend.is_fast() {
        node.wait_fast_echoes(&from, peer, &to)?;
    }
    Ok(())
}

#[test]
fn each_backend_gives_way_to_each_other_by_a_restart_and_nothing_stale_stays() {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let gateways =
            || -> Result<_> { Ok((node.subnet_env()?.gateway, peer.subnet_env()?.gateway)) };
        let before = gateways()?;
        let all = [
            Backend::Udp,
            Backend::Vxlan,
            Backend::HostGw,
            Backend::Extension,
        ];
        for backend in every_switch(&all).into_iter().skip(1) {
            lab.store().set_config(&backend.config())?;
            for node in lab.nodes() {
                node.stop_agent()?;
                lab.start_agent(node, &[])?;
            }
            wait_for(&format!("both nodes to run {backend}"), PATIENCE, || {
                check(node, peer, backend).with_context(|| node.name.clone())?;
                check(peer, node, backend).with_context(|| peer.name.clone())
            })?;
            ensure!(gateways()? == before, "{backend}");
            check_traffic(lab, backend).with_context(|| backend.to_string())?;
        }
        Ok(())
    });
}
