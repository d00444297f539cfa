//! overlay-cloud, which is a workspace of its own, and moto, which emulates AWS for its tests.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    arch::Arch,
    process::{self, command},
    report::Outcome,
    test,
    workspace::Workspace,
};

pub const PROGRAM: &str = "overlay-cloud";
/// With what its server needs.
const MOTO: &str = "moto[ec2,server]==5.2.5";

fn manifest(workspace: &Workspace) -> PathBuf {
    workspace.root().join("overlay-cloud/Cargo.toml")
}

/// Cargo on the crate, whose target directory is none of the other workspace's.
fn cargo(workspace: &Workspace, subcommand: &str) -> Command {
    let mut cargo = process::cargo();
    cargo
        .current_dir(workspace.root())
        .env("CARGO_TARGET_DIR", workspace.cloud())
        .args([subcommand, "--locked", "--manifest-path"])
        .arg(manifest(workspace));
    cargo
}

/// Builds overlay-cloud. The first time takes minutes: the clouds' libraries are large.
pub fn build(workspace: &Workspace) -> Result<()> {
    process::run(&mut cargo(workspace, "build"))
}

/// Builds it to be installed, and returns where it is.
pub fn release(workspace: &Workspace, arch: Option<Arch>) -> Result<PathBuf> {
    let mut cargo = cargo(workspace, "build");
    cargo
        .arg("--release")
        .env("CARGO_ENCODED_RUSTFLAGS", workspace.remaps().join("\x1f"));
    let built = Arch::build_for(arch, &mut cargo, workspace.cloud());
    process::run(&mut cargo)?;
    Ok(built.join("release").join(PROGRAM))
}

/// clippy, and the tests inside the crate.
pub fn unit_tests(workspace: &Workspace) -> Outcome {
    let mut clippy = cargo(workspace, "clippy");
    clippy.args(["--all-targets", "--", "-D", "warnings"]);
    if let Err(error) = process::run(&mut clippy) {
        return Outcome::broken(format!("{error:#}"));
    }
    test::run_tests(&mut cargo(workspace, "test"))
}

/// Installs moto in a Python of its own, unless it is there.
pub fn ensure_moto(workspace: &Workspace) -> Result<()> {
    let dir = workspace.cloud().join("moto");
    let python = dir.join("bin/python");
    let is_there = |python: &PathBuf| {
        process::output(command(python).args(["-c", "import moto.server, boto3"])).is_ok()
    };
    if is_there(&python) {
        return Ok(());
    }
    println!("moto: not here yet; installing {MOTO}");
    process::run(command("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    process::run(command(&python).args(["-m", "pip", "install", "--quiet", MOTO]))
}
