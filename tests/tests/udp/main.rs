//! The udp backend: pod packets in UDP datagrams between TUN devices, as a stock flannel node has them.

mod fast;
mod fast_guard;
mod guard;
mod host;
mod peer;
mod restart;
mod switch;
mod told;
mod traffic;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, Node},
    wait::wait_for,
};

/// As the guides write it.
const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;
const PORT: u16 = 8285;
const DEVICE: &str = "flannel0";
const DEADLINE: Duration = Duration::from_secs(15);

/// What the forwarder of a node has counted.
fn counted(node: &Node) -> Result<BTreeMap<String, u64>> {
    let json = node.operator_json(&["stats", "--all"])?;
    let counts = json["forwarder"]
        .as_array()
        .context("no forwarder answers")?;
    let count = |count: &serde_json::Value| {
        let event = count["event"].as_str()?.to_owned();
        Some((event, count["packets"].as_u64()?))
    };
    Ok(counts.iter().filter_map(count).collect())
}

/// Waits until so many packets more than `before` came to this.
fn wait_counted(
    node: &Node,
    before: &BTreeMap<String, u64>,
    event: &str,
    packets: u64,
) -> Result<()> {
    wait_for(&format!("{packets} of {event}"), DEADLINE, || {
        let now = counted(node)?;
        let more = now[event] - before[event];
        ensure!(more == packets, "{more}; now {now:?}");
        Ok(())
    })
}

fn ifindex(node: &Node) -> Result<u32> {
    node.namespace.ifindex(DEVICE)
}

fn wait_pings(lab: &Lab) -> Result<()> {
    wait_for("pods to reach each other", DEADLINE, || lab.ping_matrix())
}
