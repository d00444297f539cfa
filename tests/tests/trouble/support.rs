//! The commands that judge a node.

use anyhow::{Context as _, Result};
use overlay_tests::lab::Node;
use serde_json::Value;

pub use overlay_tests::lab::agent::judge;

/// The code that a command exits with, what it judges in which way, and all that it says.
pub type Judged = (Option<i32>, Vec<(String, String)>, Value);

/// Runs a line of words on the node.
pub fn run(node: &Node, line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let program = words.next().context("a program")?;
    node.cmd(program, words).map(drop)
}
