//! Programs of Kubernetes and its runtimes that tests talk to: of Debian 12, built once and kept.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    kernel,
    process::{self, command},
    workspace::Workspace,
};

const API_SERVER: &str = concat!(include_str!("fetch.sh"), include_str!("build.sh"));
const CNITOOL: &str = concat!(include_str!("fetch.sh"), include_str!("cnitool.sh"));

/// Builds the API server and cnitool unless they are there.
pub fn ensure_programs(workspace: &Workspace) -> Result<()> {
    ensure(&workspace.kube_apiserver(), API_SERVER)?;
    ensure(&workspace.cnitool(), CNITOOL)
}

fn ensure(program: &Path, script: &str) -> Result<()> {
    if program.exists() {
        return Ok(());
    }
    let dir = program.parent().context("a path in target")?;
    let work = dir.join("build");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    println!(
        "Building {} from Debian's source package",
        program.display()
    );
    let file = work.join("build.sh");
    fs::write(&file, script)?;
    let mut build = command("bash");
    build.arg(&file).arg(&work).arg(program);
    process::run(build.arg(kernel::mirror()?))?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}
