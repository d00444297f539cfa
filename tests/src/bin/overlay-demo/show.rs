//! Texts and tables for the demo's reader.

use std::{env, fmt::Write as _};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use overlay_tests::{
    lab::{Lab, Node, PairPing, store::PREFIX, underlay},
    netns::RUN_NETNS,
};

pub fn network(lab: &Lab) -> String {
    let node = |node: &Node| format!("{} {}", node.name, node.address);
    let names = |segment| {
        let nodes = lab.nodes().iter().filter(|node| node.segment == segment);
        nodes.map(node).collect::<Vec<_>>().join(", ")
    };
    format!(
        "segment 0: {}  —  router  —  segment 1: {}
state in {}",
        names(0),
        names(1),
        lab.dir().display()
    )
}

pub fn leases(lab: &Lab) -> Result<String> {
    let endpoints = lab.store().endpoints();
    let mut lines = vec![format!(
        "# etcdctl --endpoints={endpoints} get --prefix {PREFIX}/subnets"
    )];
    for lease in lab.store().leases()? {
        lines.extend([
            format!("{PREFIX}/subnets/{}", lease.subnet_key),
            lease.value,
        ]);
    }
    Ok(lines.join("\n"))
}

pub fn pods(lab: &Lab) -> String {
    let mut table = table();
    for node in lab.nodes() {
        let pods = node.pods();
        let pods = pods
            .iter()
            .map(|pod| format!("{}/{} {}", node.name, pod.name, pod.address));
        table.add_row(pods);
    }
    table.to_string()
}

pub fn ping_table(lab: &Lab, pairs: &[PairPing]) -> String {
    let pods = lab.pods();
    let name = |index: usize| format!("{}/{}", pods[index].0.name, pods[index].1.name);
    let mut table = table();
    table.set_header(
        ["from \\ to".to_owned()]
            .into_iter()
            .chain((0..pods.len()).map(name)),
    );
    for from in 0..pods.len() {
        let mut row = vec![name(from)];
        for to in 0..pods.len() {
            let pair = pairs.iter().find(|pair| (pair.from, pair.to) == (from, to));
            row.push(match pair.map(|pair| &pair.round_trip) {
                None => "·".to_owned(),
                Some(Ok(time)) => format!("{:.3}", time.as_secs_f64() * 1e3),
                Some(Err(_)) => "LOST".to_owned(),
            });
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

pub fn route_pin(node: &Node) -> String {
    node.map_pin(overlay_common::maps::ROUTES4)
        .display()
        .to_string()
}

/// `part` of `whole`; of nothing, nothing is fast.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// What `--keep` prints at the end.
pub fn how_to_enter(lab: &Lab) -> Result<String> {
    let node = lab.node(0);
    let agent = overlay_tests::lab::agent::binary()?;
    let (agent, pin_dir) = (agent.display(), node.pin_dir.display());
    let enter = format!("nsenter --net={RUN_NETNS}/{}", node.namespace.name());
    let mut text = format!(
        "The cluster stays up.\n\n\
         Enter a node, and look around:\n  \
           {enter}\n  \
           ip -d link show flannel.1; ip route; bridge fdb show dev flannel.1\n  \
           tcpdump -ni {} udp port 8472\n\n\
         What the agent knows and does:\n",
        underlay::NODE_INTERFACE
    );
    for command in ["status", "routes", "flows", "stats"] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {agent} {command} --pin-dir {pin_dir}");
    }
    let _ = writeln!(text, "  bpftool map dump pinned {}\n", route_pin(node));
    text += "Talk from pod to pod:\n";
    if let (Some(from), Some((peer_node, to))) = (node.pods().first(), lab.pods().last()) {
        let pod = from.namespace.name();
        let _ = writeln!(
            text,
            "  nsenter --net={RUN_NETNS}/{pod} ping {}   # {}/{}",
            to.address, peer_node.name, to.name
        );
    }
    let _ = writeln!(
        text,
        "\nTake an agent away and see that pods keep talking:\n  \
           ip netns pids {}\n\n\
         Logs: {}\nRemove it all: {} --clean",
        node.namespace.name(),
        lab.dir().join("logs").display(),
        env::current_exe()?.display()
    );
    Ok(text)
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}
