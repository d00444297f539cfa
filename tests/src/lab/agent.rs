//! Running the agent under test, and its operator commands.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{node::Node, store::PREFIX, underlay::NODE_INTERFACE};
use crate::{
    netns::checked,
    process::{Daemon, Lifetime},
};

/// Names the agent binary to test instead of the one built beside the test.
pub const AGENT_VARIABLE: &str = "OVERLAY_AGENT";

/// The agent binary.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os(AGENT_VARIABLE) {
        return Ok(path.into());
    }
    // Tests run from target/<profile>/deps, the demo from target/<profile>.
    let current = env::current_exe()?;
    let found = current
        .ancestors()
        .map(|dir| dir.join("overlay-agent"))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no overlay-agent beside {}: run `cargo xtask build`, or set {AGENT_VARIABLE}",
            current.display()
        )
    })
}

/// The arguments a lab gives every agent; `extra` ones come last and win.
pub fn arguments(node: &Node, endpoints: &str, extra: &[&str]) -> Vec<String> {
    let mut arguments = vec![
        format!("--etcd-endpoints={endpoints}"),
        format!("--etcd-prefix={PREFIX}"),
        format!("--iface={NODE_INTERFACE}"),
        format!("--subnet-file={}", node.subnet_file.display()),
        format!("--pin-dir={}", node.pin_dir.display()),
    ];
    arguments.extend(extra.iter().map(|&argument| argument.to_owned()));
    arguments
}

/// Starts the agent in the node's namespace.
pub fn start(node: &Node, arguments: &[String], log: &Path, lifetime: Lifetime) -> Result<Daemon> {
    let mut command = node.namespace.command(path_text(&binary()?)?);
    command.args(arguments);
    Daemon::start(&format!("agent of {}", node.name), command, log, lifetime)
}

/// Runs the agent until it ends by itself: its status and what it wrote.
pub fn run_to_end(
    node: &Node,
    arguments: &[String],
    log: &Path,
    within: Duration,
) -> Result<(ExitStatus, String)> {
    let agent = start(node, arguments, log, Lifetime::Bound)?;
    let status = agent.wait_exit(within)?;
    Ok((status, agent.log()))
}

/// Runs an operator command, such as `status`, against the node's pins.
pub fn operator(node: &Node, words: &[&str]) -> Result<String> {
    let mut command: Command = node.namespace.command(path_text(&binary()?)?);
    command.args(words).arg("--pin-dir").arg(&node.pin_dir);
    checked(&mut command)
}

/// The same with `-o json`.
pub fn operator_json(node: &Node, words: &[&str]) -> Result<Value> {
    let text = operator(node, &[words, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("{words:?} printed: {text}"))
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
