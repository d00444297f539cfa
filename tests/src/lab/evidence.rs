//! What a failed test leaves for its reader: logs, kernel objects, maps and counters of each node.

use std::fmt::Write as _;

use super::{Lab, Node};
use crate::process::tail;

const LOG_LINES: usize = 40;

pub fn collect(lab: &Lab) -> String {
    let mut text = format!("\n=== evidence of lab {} ===\n", lab.id());
    let leases = lab.store().leases().map(|leases| {
        let lines = leases
            .iter()
            .map(|lease| format!("{} {}", lease.subnet_key, lease.value));
        lines.collect::<Vec<_>>().join("\n")
    });
    section(&mut text, "etcd: leases", leases);
    for node in lab.nodes() {
        collect_node(&mut text, node);
    }
    text
}

fn collect_node(text: &mut String, node: &Node) {
    let title = |what: &str| format!("{} ({}): {what}", node.name, node.address);
    let log = std::fs::read_to_string(node.log_file()).map(|log| tail(&log, LOG_LINES));
    section(text, &title("agent log"), log.map_err(Into::into));
    for command in [
        "ip -d link",
        "ip addr",
        "ip route",
        "ip -6 route",
        "ip neigh",
        "bridge fdb",
        "ip -s link",
    ] {
        let mut words = command.split(' ');
        let output = node.cmd(words.next().unwrap_or_default(), words);
        section(text, &title(command), output);
    }
    if !node.runs_agent() {
        return;
    }
    section(text, &title("OVL_ROUTES4"), node.dump_routes());
    section(
        text,
        &title("OVL_STATS"),
        node.counters().map(|counters| counters.to_string()),
    );
    for command in ["status", "routes", "flows", "stats"] {
        section(text, &title(command), node.operator(&[command]));
    }
}

fn section(text: &mut String, title: &str, content: anyhow::Result<String>) {
    let content = content.unwrap_or_else(|error| format!("not available: {error:#}"));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "--- {title}\n{}", content.trim_end());
}
