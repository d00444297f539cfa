//! What precedes everything that runs a lab: packages, programs, and the agent with the lab's own programs.

use anyhow::{Result, bail};

use crate::{
    build_ebpf,
    prereq::{Group, Installer},
    process, test,
    workspace::Workspace,
};

/// Whether the agent is built as it is deployed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// Installs what is missing and builds everything, for `what`, as in "the demo". `groups`: what it needs beside a
/// lab.
pub fn lab(what: &str, groups: &[Group], profile: Profile) -> Result<Workspace> {
    if !process::is_root() {
        bail!("{what} creates network namespaces and loads BPF programs: run it as root");
    }
    let workspace = Workspace::locate();
    let mut installer = Installer::new(true);
    installer.ensure(&[&[Group::HostBuild, Group::Lab], groups].concat())?;
    test::mount_bpffs()?;
    build_ebpf::build(&workspace, &mut installer)?;
    println!("Building the agent and {what}");
    let mut build = process::cargo();
    build
        .current_dir(workspace.root())
        .args(["build", "--package", "overlay-agent"])
        .args(["--package", "overlay-tests", "--bins"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    process::run(&mut build)?;
    Ok(workspace)
}
