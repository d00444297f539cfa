//! The commands that judge a node.

use std::process::Command;

use anyhow::{Context as _, Result};
use overlay_tests::lab::{Node, agent};
use serde_json::Value;

/// The code that a command exits with, what it judges in which way, and all that it says.
pub type Judged = (Option<i32>, Vec<(String, String)>, Value);

/// Runs an operator command with `-o json`, whatever it finds: the code it exits with and what it prints.
pub fn judge(node: &Node, words: &[&str]) -> Result<(Option<i32>, Value)> {
    let binary = agent::binary()?;
    let program = binary.to_str().context("a path in UTF-8")?;
    let mut command: Command = node.namespace.command(program);
    command.args(words).arg("--pin-dir").arg(&node.pin_dir);
    let output = command.args(["-o", "json"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let said = serde_json::from_str(&text);
    let said = said.with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("{words:?} on {} printed: {text}{error}", node.name)
    })?;
    Ok((output.status.code(), said))
}

/// Runs a line of words on the node.
pub fn run(node: &Node, line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let program = words.next().context("a program")?;
    node.cmd(program, words).map(drop)
}
