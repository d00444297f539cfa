//! The API server that the tests of the Kubernetes store talk to: Debian 12's, built once and kept.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    kernel,
    process::{self, command},
    workspace::Workspace,
};

const BUILD: &str = include_str!("build.sh");

/// Builds the API server unless it is there.
pub fn ensure_server(workspace: &Workspace) -> Result<()> {
    let program = workspace.kube_apiserver();
    if program.exists() {
        return Ok(());
    }
    let dir = program.parent().context("a path in target")?;
    let work = dir.join("build");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    println!("Building kube-apiserver from Debian's source package, which takes minutes");
    let script = work.join("build.sh");
    fs::write(&script, BUILD)?;
    let mut build = command("bash");
    build.arg(&script).args([&work, &program]);
    process::run(build.arg(kernel::mirror()?))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}
