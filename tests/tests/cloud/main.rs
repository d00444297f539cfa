//! Nodes in clouds, whose routes carry what pods send. They need the program that speaks with clouds, and an
//! emulator of AWS: `cargo xtask test --cloud` makes both.

mod aws;
mod gce;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnetwork::Ipv4Network;
use overlay_tests::{
    backends::{Backend, check_traffic, devices, pod_routes},
    cloud::{self, Programs},
    lab::{Builder, Lab, Node, agent::Launch, scenario},
    requirements::announce_skip,
    traffic::flow::SteadyFlow,
    wait::wait_for,
};

/// What an agent may take to notice a change and to have the cloud follow.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until an agent's log has all these texts.
fn wait_said(node: &Node, texts: &[&str]) -> Result<()> {
    wait_for("the problem to be told", PATIENCE, || {
        let log = cloud::log(node)?;
        for text in texts {
            ensure!(log.contains(text), "no `{text}` in\n{log}");
        }
        Ok(())
    })
}

/// Waits until an agent has no complaint.
fn wait_in_sync(node: &Node) -> Result<()> {
    wait_for("the node to be in sync", PATIENCE, || {
        let (code, text) = node.status()?;
        ensure!(code == Some(0), "{code:?} {text}");
        Ok(())
    })
}

/// Runs `test` on a lab, or says that there are no programs for it.
fn with_programs(
    name: &str,
    builder: Builder,
    test: impl FnOnce(&mut Lab, &Programs) -> Result<()>,
) {
    let Some(programs) = cloud::programs() else {
        return announce_skip(
            name,
            "no overlay-cloud and no moto were made here: `cargo xtask test --cloud` does it",
        );
    };
    scenario(builder, |lab| test(lab, &programs));
}

/// Pods of two nodes talk where the lab's router does what the routes of the cloud say, with the backend of this
/// type and with another one after it. `routed` waits for the routes of their subnets.
fn check_pods(
    lab: &Lab,
    launch: &Launch,
    kind: &str,
    routed: impl Fn([Ipv4Network; 2]) -> Result<()>,
) -> Result<()> {
    for node in lab.nodes() {
        node.launch(launch)?;
        node.wait_ready()?;
    }
    let (one, other) = (lab.node(0), lab.node(1));
    let subnets = [one.subnet_env()?.subnet()?, other.subnet_env()?.subnet()?];
    routed(subnets)?;
    for (subnet, node) in subnets.iter().zip(lab.nodes()) {
        let route = format!("route add {subnet} via {}\n", node.address);
        lab.underlay().router().ip_batch(&route)?;
    }
    lab.add_pods(1)?;
    let [from, to] = [one, other].map(Node::first_pod);
    let talk = || -> Result<()> {
        wait_for("pods to talk", PATIENCE, || lab.ping_matrix())?;
        check_traffic(&from, &to, one.subnet_env()?.mtu.min(1400))
    };
    talk()?;

    let flow = SteadyFlow::start(&from, &to, Duration::from_millis(5))?;
    one.kill_agent()?;
    one.launch(launch)?;
    one.wait_ready()?;
    cloud::restart(other, launch)?;
    flow.stop()?.datagrams.ensure_lossless()?;

    for kind in ["vxlan", kind] {
        let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
        lab.store().set_config(&config)?;
        for node in lab.nodes() {
            cloud::restart(node, launch)?;
        }
        wait_for(&format!("both nodes to run {kind}"), PATIENCE, || {
            for (node, peer) in [(one, other), (other, one)] {
                if kind == "vxlan" {
                    Backend::Vxlan.check(node, peer)?;
                } else {
                    let left = [devices(node)?, pod_routes(node)?].concat();
                    ensure!(left.is_empty(), "{left:?}");
                }
            }
            Ok(())
        })?;
        talk().with_context(|| kind.to_owned())?;
        routed(subnets)?;
    }
    Ok(())
}
