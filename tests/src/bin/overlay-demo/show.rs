//! Texts and tables for the demo's reader.

use std::env;

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use overlay_tests::{
    lab::{Lab, Node, PairPing, agent::Launch, store::PREFIX, underlay::NODE_INTERFACE},
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
    let enter = |name: &str| format!("nsenter --net={RUN_NETNS}/{name}");
    let pin_dir = node.pin_dir.display();
    let launch = Launch::new(lab.store(), &[]).command(node)?;
    let agent = launch.get_program().display();
    let arguments = launch
        .get_args()
        .map(|argument| argument.display().to_string());
    let (Some(from), Some((peer_node, to))) = (node.pods().into_iter().next(), lab.pods().pop())
    else {
        bail!("the demo has no pods");
    };
    Ok(format!(
        "The cluster stays up.

Enter a node:
  {node_enter}
There, look around:
  ip -d link show flannel.1; ip route; ip neigh; bridge fdb show dev flannel.1
  {agent} status --pin-dir {pin_dir}      # or routes, flows, stats
  bpftool map dump pinned {routes}
  tcpdump -ni {interface} udp port 8472
Talk from pod to pod, here from {name}/{from_name} to {peer_name}/{to_name}:
  {pod_enter} ping {to_address}
Take the agent of {name} away, see that pods keep talking, and start it again:
  kill -9 $(ip netns pids {namespace})
  {node_enter} \\\n    {agent} {arguments}

Logs:     {logs}
Clean up: {demo} --clean",
        node_enter = enter(node.namespace.name()),
        pod_enter = enter(from.namespace.name()),
        routes = route_pin(node),
        interface = NODE_INTERFACE,
        name = node.name,
        from_name = from.name,
        peer_name = peer_node.name,
        to_name = to.name,
        to_address = to.address,
        namespace = node.namespace.name(),
        arguments = arguments.collect::<Vec<_>>().join(" "),
        logs = lab.dir().join("logs").display(),
        demo = env::current_exe()?.display(),
    ))
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}
