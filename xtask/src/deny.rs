//! `cargo deny`: where the crates of each workspace come from, under which licences, whether one is
//! there twice, and what is known against them. `deny.toml` has the rules.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    process::{self, command},
    report::Outcome,
    tool::Tool,
    workspace::Workspace,
};

const TOOL: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
};

/// Each has a lock file.
const MANIFESTS: [&str; 4] = [
    "Cargo.toml",
    "overlay-cloud/Cargo.toml",
    "overlay-ebpf/Cargo.toml",
    "fuzz/Cargo.toml",
];

/// An exception is for one workspace, and the others do not meet it.
const OF_OTHERS: [&str; 4] = [
    "license-exception-not-encountered",
    "license-not-encountered",
    "unmatched-skip",
    "unnecessary-skip",
];

/// Licences, duplicates and sources.
pub fn crates(workspace: &Workspace) -> Outcome {
    with_tool(workspace, |program| {
        for manifest in MANIFESTS {
            let mut check = check(workspace, program, manifest);
            check.args(["-D", "warnings"]);
            check.args(OF_OTHERS.iter().flat_map(|lint| ["-A", lint]));
            process::run(check.args(["licenses", "bans", "sources"]))?;
        }
        Ok(Outcome::default())
    })
}

/// Known faults, where their database can be fetched.
pub fn advisories(workspace: &Workspace) -> Outcome {
    with_tool(workspace, |program| {
        let mut fetch = command(program);
        fetch.current_dir(workspace.root()).args(["fetch", "db"]);
        if let Err(error) = process::output(&mut fetch) {
            let reason = format!("the database of advisories cannot be fetched: {error:#}");
            println!("{reason}");
            return Ok(Outcome::skipped(reason));
        }
        for manifest in MANIFESTS {
            let mut check = check(workspace, program, manifest);
            process::run(check.args(["--disable-fetch", "advisories"]))?;
        }
        Ok(Outcome::default())
    })
}

fn with_tool(workspace: &Workspace, body: impl FnOnce(&Path) -> Result<Outcome>) -> Outcome {
    let outcome = TOOL.ensure(workspace).and_then(|program| body(&program));
    outcome.unwrap_or_else(|error| Outcome::broken(format!("{error:#}")))
}

fn check(workspace: &Workspace, program: &Path, manifest: &str) -> Command {
    let mut check = command(program);
    check
        .current_dir(workspace.root())
        .args(["--locked", "--manifest-path", manifest])
        .args(["--config", "deny.toml", "check"]);
    check
}
