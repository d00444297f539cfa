//! Running the agent under test, and its operator commands.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    node::Node,
    store::{PREFIX, Store},
    underlay::NODE_INTERFACE,
};
use crate::{
    netns::checked,
    process::{Daemon, Lifetime},
    seccomp::{BpfDenial, deny_bpf},
};

/// Names the agent binary to test instead of the one built beside the test.
pub const AGENT_VARIABLE: &str = "OVERLAY_AGENT";

/// The agent binary.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os(AGENT_VARIABLE) {
        return Ok(path.into());
    }
    built("overlay-agent").with_context(|| format!("or set {AGENT_VARIABLE}"))
}

/// A program of the workspace, built beside the test.
pub fn built(name: &str) -> Result<PathBuf> {
    // Tests run from target/<profile>/deps, the demo from target/<profile>.
    let current = env::current_exe()?;
    let found = current
        .ancestors()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no {name} beside {}: run `cargo build -p {name}`",
            current.display()
        )
    })
}

/// How to run an agent: the lab's arguments, and what a test changes.
#[derive(Clone, Debug)]
pub struct Launch {
    pub endpoints: String,
    pub prefix: String,
    /// `--iface`; `None` leaves the choice to the agent.
    pub interface: Option<String>,
    /// Come last.
    pub extra: Vec<String>,
    /// Imitates a kernel that refuses BPF.
    pub denial: Option<BpfDenial>,
    /// A program, such as `setpriv` with its options, that runs the agent.
    pub wrapper: Vec<String>,
}

impl Launch {
    pub fn new(store: &Store, extra: &[&str]) -> Self {
        Self {
            endpoints: store.endpoints(),
            prefix: PREFIX.to_owned(),
            interface: Some(NODE_INTERFACE.to_owned()),
            extra: extra.iter().map(|&argument| argument.to_owned()).collect(),
            denial: None,
            wrapper: Vec::new(),
        }
    }

    /// The command that runs the agent in the node's namespace.
    pub fn command(&self, node: &Node) -> Result<Command> {
        let binary = binary()?;
        let mut words = self
            .wrapper
            .iter()
            .map(OsStr::new)
            .chain([binary.as_os_str()]);
        let program = words
            .next()
            .and_then(OsStr::to_str)
            .context("a program in UTF-8")?;
        let mut command = node.namespace.command(program);
        command
            .args(words)
            .arg(format!("--etcd-endpoints={}", self.endpoints))
            .arg(format!("--etcd-prefix={}", self.prefix))
            .args(self.interface.iter().map(|name| format!("--iface={name}")))
            .arg(node.subnet_file_flag())
            .arg(format!("--pin-dir={}", node.pin_dir.display()))
            // Tests that count or capture packets want none but their own.
            .arg("--peer-probe-port=0")
            .args(&self.extra);
        if let Some(denial) = self.denial {
            deny_bpf(&mut command, denial);
        }
        Ok(command)
    }

    /// Starts the agent.
    pub fn start(&self, node: &Node, log: &Path, lifetime: Lifetime) -> Result<Daemon> {
        Daemon::start(
            &format!("agent of {}", node.name),
            self.command(node)?,
            log,
            lifetime,
        )
    }
}

/// An operator command, such as `status`, against the node's pins; to be run on the node.
fn command(node: &Node, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(words).arg("--pin-dir").arg(&node.pin_dir);
    Ok(command)
}

/// Runs an operator command.
pub fn operator(node: &Node, words: &[&str]) -> Result<String> {
    let mut command = command(node, words)?;
    node.enter(|| checked(&mut command))
}

/// What `status` says, whatever it finds, and the code it exits with.
pub fn status(node: &Node) -> Result<(Option<i32>, String)> {
    let mut command = command(node, &["status"])?;
    let output = node.enter(|| command.output());
    let output = output.context("start overlay-agent status")?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

/// As [`operator`], with `-o json`.
pub fn operator_json(node: &Node, words: &[&str]) -> Result<Value> {
    let text = operator(node, &[words, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("{words:?} printed: {text}"))
}

/// What an operator command says with `-o json`, whatever it finds, and the code it exits with.
pub fn judge(node: &Node, words: &[&str]) -> Result<(Option<i32>, Value)> {
    let mut command = command(node, words)?;
    command.args(["-o", "json"]);
    let output = node.enter(|| command.output())?;
    let text = String::from_utf8(output.stdout)?;
    let said = serde_json::from_str(&text).with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("{words:?} on {} printed: {text}{error}", node.name)
    })?;
    Ok((output.status.code(), said))
}
