//! Backends whose devices not every kernel has: skipped on one that lacks them. `cargo xtask test --kernel
//! VERSION` runs these on kernels that have them.

mod ipip;
mod switch;
mod wireguard;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    backends::{check_traffic, devices, pod_routes},
    lab::{Lab, Node, agent::Launch},
    netns::Namespace,
    requirements::require_root,
    traffic::{Endpoint, flow::SteadyFlow},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(10);

/// Why the kernel has no devices of this kind; `None` if it has. An ipip device needs an address of its own:
/// the module makes one without.
fn lacks(kind: &str) -> Option<String> {
    require_root();
    let thread = format!("{:?}", std::thread::current().id());
    let number: String = thread.chars().filter(char::is_ascii_digit).collect();
    let name = format!("ovl-lacks-{}-{number}", std::process::id());
    let namespace = Namespace::create(&name).expect("a network namespace");
    let made = namespace.ip_batch(&format!("link add x0 type {kind}\n"));
    Namespace::delete(&name).expect("the namespace goes");
    made.err().map(|error| format!("{error:#}"))
}

/// Where the node has its WireGuard key.
fn key_file(lab: &Lab, node: &Node) -> PathBuf {
    lab.dir().join(format!("{}.key", node.name))
}

/// Starts the agent of a node, which has a key of its own. Without programs: an emulated machine takes minutes
/// to load them, and for these backends they do nothing.
fn start(lab: &Lab, node: &Node) -> Result<()> {
    launch(lab, node, &["--datapath=kernel"])
}

fn launch(lab: &Lab, node: &Node, extra: &[&str]) -> Result<()> {
    let variable = format!("WIREGUARD_KEY_FILE={}", key_file(lab, node).display());
    node.launch(&Launch {
        wrapper: vec!["env".to_owned(), variable],
        ..Launch::new(lab.store(), extra)
    })
}

fn started(node: &Node) -> Result<usize> {
    node.with_agent(|agent| Ok(agent.log().matches("INFO node started").count()))
}

/// Ends the agent and starts it again.
fn restart(lab: &Lab, node: &Node, end: Signal) -> Result<()> {
    let before = started(node)?;
    if end == Signal::SIGKILL {
        node.kill_agent()?;
    } else {
        node.stop_agent()?;
    }
    start(lab, node)?;
    wait_for("the agent to be started", PATIENCE, || {
        node.check_running()?;
        let now = started(node)?;
        ensure!(now > before, "started {now} times");
        Ok(())
    })
}

/// Agents and a pod on every node, all of them in touch.
fn bring_up(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        start(lab, node)?;
    }
    for node in lab.nodes() {
        node.wait_ready()?;
    }
    lab.add_pods(1)?;
    wait_for("pods to talk", PATIENCE, || lab.ping_matrix())
}

fn pod(lab: &Lab, node: usize) -> Endpoint {
    lab.node(node).pods()[0].endpoint()
}

/// A device and a flow live through the end of an agent and the start of the next.
fn check_restarts(lab: &Lab, device: &str) -> Result<()> {
    let node = lab.node(0);
    let ifindex = node.namespace.ifindex(device)?;
    let record = |lab: &Lab| -> Result<_> {
        let subnet = node.subnet_env()?.subnet()?.network().to_string();
        let leases = lab.store().leases()?.into_iter();
        let value = leases.filter(|lease| lease.subnet_key.starts_with(&subnet));
        value.map(|lease| lease.value).next().context("a record")
    };
    let before = record(lab)?;
    let flow = SteadyFlow::start(&pod(lab, 0), &pod(lab, 1), INTERVAL)?;
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        restart(lab, node, end)?;
    }
    flow.stop()?.datagrams.ensure_lossless()?;
    ensure!(
        node.namespace.ifindex(device)? == ifindex,
        "{device} is another one"
    );
    let after = record(lab)?;
    ensure!(before == after, "{before} became {after}");
    Ok(())
}
