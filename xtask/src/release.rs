//! `cargo xtask release`: the agent as it is installed, and its debug information in a file of its own.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    build_ebpf,
    prereq::{Group, Installer},
    process::{self, command},
    workspace::Workspace,
};

/// As the release profile, but not stripped.
const PROFILE: &str = "dist";
const PROGRAM: &str = "overlay-agent";
const DEBUG: &str = "overlay-agent.debug";

#[derive(clap::Args)]
pub struct Args {
    /// Install missing system packages, as root
    #[arg(long)]
    install: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::locate();
    let mut installer = Installer::new(args.install);
    installer.ensure(&[Group::HostBuild])?;
    build_ebpf::build_both(&workspace, &mut installer)?;
    process::run(
        process::cargo()
            .current_dir(workspace.root())
            .args(["build", "--locked", "--profile", PROFILE])
            .args(["--package", PROGRAM]),
    )?;
    let built = workspace.root().join("target").join(PROFILE).join(PROGRAM);
    let dir = workspace.root().join("target/package");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let objcopy = || {
        let mut objcopy = command("objcopy");
        objcopy.current_dir(&dir);
        objcopy
    };
    process::run(objcopy().arg("--only-keep-debug").arg(&built).arg(DEBUG))?;
    // The names of functions stay, for backtraces. The link is a file's name and checksum.
    process::run(
        objcopy()
            .args(["--strip-debug", &format!("--add-gnu-debuglink={DEBUG}")])
            .arg(&built)
            .arg(PROGRAM),
    )?;
    for file in [PROGRAM, DEBUG] {
        let path = dir.join(file);
        let size = fs::metadata(&path).with_context(|| format!("no {}", path.display()))?;
        println!("{} ({} kB)", path.display(), size.len() / 1000);
    }
    Ok(())
}
