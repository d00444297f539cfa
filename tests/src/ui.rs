//! `overlay-agent ui` on a node, and a node about which it has something to show.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    http,
    lab::{Lab, Node, agent},
    process::{Daemon, Lifetime},
    traffic::{flow::SteadyFlow, udp},
    wait::wait_for,
};

pub const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 8474);
/// A sample of the last hour takes ten seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// Two nodes whose agents know that they reach each other, with a fast flow between their pods; on the first one a
/// packet is dropped and a route repaired.
pub fn eventful(lab: &Lab) -> Result<SteadyFlow> {
    lab.start_agents(&["--peer-probe-port=8473"])?;
    lab.add_pods(1)?;
    lab.wait_converged()?;
    lab.wait_attached()?;
    let (one, other) = (lab.node(0), lab.node(1));
    let gateway = other.subnet_env()?.gateway;
    let route = format!("{}/{}", gateway.network(), gateway.prefix());
    one.cmd("ip", ["route", "del", &route])?;
    let [from, to] = [one, other].map(|node| node.pods()[0].endpoint());
    lab.wait_converged()?;
    let flow = SteadyFlow::start(&from, &to, Duration::from_millis(5))?;
    udp::bind(&from)?.send_to(&[0; 60], (one.address, 8472))?;
    Ok(flow)
}

/// The command, serving.
pub fn serve(lab: &Lab, node: &Node) -> Result<Daemon> {
    let binary = agent::binary()?;
    let mut command = node.namespace.command("unshare");
    // The host's name is none of the lab's.
    let script = "hostname $1 && exec $2 ui --pin-dir $3";
    command
        .args(["--uts", "sh", "-c", script, "sh", &node.name])
        .args([&binary, &node.pin_dir]);
    let log = lab.dir().join("ui.log");
    Daemon::start("overlay-agent ui", command, &log, Lifetime::Bound)
}

/// Waits until what it serves is as `check` wants it.
pub fn wait_for_glance(
    node: &Node,
    server: &Daemon,
    check: impl Fn(&Value) -> Result<()>,
) -> Result<Value> {
    wait_for("the page to know it", PATIENCE, || {
        server.check_running()?;
        let (status, text) = http::get(&node.namespace, ADDRESS.into(), "/glance.json")?;
        ensure!(status == 200, "{status}: {text}");
        let glance = serde_json::from_str(&text)?;
        check(&glance).with_context(|| format!("{glance:#}"))?;
        Ok(glance)
    })
}

/// Whether everything that [`eventful`] made happen is there.
pub fn is_eventful(glance: &Value) -> Result<()> {
    let some = |list: &Value, check: &dyn Fn(&Value) -> bool| {
        list.as_array().is_some_and(|rows| rows.iter().any(check))
    };
    let healthy = |peer: &Value| peer["state"] == "healthy";
    ensure!(some(&glance["peers"]["peers"], &healthy), "no healthy peer");
    let percent = glance["carried"]["from_pods"]["fast_percent"].as_f64();
    ensure!(percent.is_some_and(|percent| percent > 50.0), "not fast");
    let remembered = |sample: &Value| sample["from_pods"]["fast"].as_u64() > Some(0);
    ensure!(
        some(&glance["history"]["samples"], &remembered),
        "no sample"
    );
    let repaired = |event: &Value| event["kind"] == "repair";
    ensure!(some(&glance["history"]["events"], &repaired), "no repair");
    let dropped = |row: &Value| row["kind"] == "drop" && row["outcome"] == "pod_tunnel";
    ensure!(some(&glance["packets"], &dropped), "no drop");
    let seen = |flow: &Value| {
        let rate = |key: &str| flow[key].as_f64().unwrap_or_default();
        flow["protocol"] == "udp"
            && rate("from_pod_bytes_per_second") > 1_000.0
            && rate("to_pod_bytes_per_second") > 1_000.0
    };
    ensure!(some(&glance["flows"]["flows"], &seen), "no flow");
    Ok(())
}
