//! `cargo xtask release`: the programs as they are installed, and the debug information of each in a file of its own.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    build_ebpf,
    prereq::{Group, Installer},
    process::{self, command},
    workspace::Workspace,
};

/// As the release profile, but not stripped.
const PROFILE: &str = "dist";
pub const PROGRAM: &str = "overlay-agent";
pub const PLUGIN: &str = "overlay-cni";

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
    build(&workspace, &mut installer).map(drop)
}

/// Builds the programs, and returns the directory they are in.
pub fn build(workspace: &Workspace, installer: &mut Installer) -> Result<PathBuf> {
    build_ebpf::build_both(workspace, installer)?;
    process::run(cargo(workspace).args(["--package", PROGRAM, "--package", PLUGIN]))?;
    let built = workspace.root().join("target").join(PROFILE);
    let dir = workspace.root().join("target/package");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for program in [PROGRAM, PLUGIN] {
        strip(&built.join(program), &dir, program)?;
    }
    Ok(dir)
}

/// Parts a program in what is installed and its debug information, and says how large they are.
fn strip(built: &Path, dir: &Path, program: &str) -> Result<()> {
    let objcopy = || {
        let mut objcopy = command("objcopy");
        objcopy.current_dir(dir);
        objcopy
    };
    let debug = format!("{program}.debug");
    process::run(objcopy().arg("--only-keep-debug").arg(built).arg(&debug))?;
    // The names of functions stay, for backtraces. The link is a file's name and checksum.
    process::run(
        objcopy()
            .args(["--strip-debug", &format!("--add-gnu-debuglink={debug}")])
            .arg(built)
            .arg(program),
    )?;
    for file in [program, &debug] {
        let path = dir.join(file);
        let size = fs::metadata(&path).with_context(|| format!("no {}", path.display()))?;
        println!("{} ({} kB)", path.display(), size.len() / 1000);
    }
    Ok(())
}

/// A build of the release. No path of this machine gets into what it builds, so that
/// the same sources make the same program wherever they lie.
fn cargo(workspace: &Workspace) -> Command {
    let root = workspace.root().display();
    let mut flags = format!("--remap-path-prefix={root}=/overlay");
    if let Some(home) = cargo_home() {
        let _ = write!(flags, " --remap-path-prefix={}=/cargo", home.display());
    }
    let mut cargo = process::cargo();
    cargo
        .current_dir(workspace.root())
        .env("RUSTFLAGS", flags)
        .args(["build", "--locked", "--profile", PROFILE]);
    cargo
}

fn cargo_home() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home)
}
