//! `cargo xtask lint`: formatting and clippy, as `cargo xtask test` runs them.

use std::{env, process::Command};

use anyhow::Result;

use crate::{process, workspace::Workspace};

pub fn run() -> Result<()> {
    for (_, mut command) in commands(&Workspace::locate()) {
        println!("{}", process::display(&command));
        process::run(&mut command)?;
    }
    Ok(())
}

/// The checks by name, in the order they run, cheapest first.
pub fn commands(workspace: &Workspace) -> [(&'static str, Command); 6] {
    let cargo = |arguments: &[&str]| {
        let mut command = process::cargo();
        command.current_dir(workspace.root()).args(arguments);
        command
    };
    [
        ("formatting", cargo(&["fmt", "--all", "--check"])),
        // The BPF crate is a workspace of its own.
        (
            "formatting, BPF",
            cargo(&[
                "fmt",
                "--check",
                "--manifest-path",
                "overlay-ebpf/Cargo.toml",
            ]),
        ),
        (
            "formatting, fuzz targets",
            cargo(&["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"]),
        ),
        (
            "clippy",
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        ),
        ("clippy, BPF", bpf_clippy(workspace, &[])),
        (
            "clippy, BPF that logs",
            bpf_clippy(workspace, &["--features", "log"]),
        ),
    ]
}

/// The BPF crate as the host's compiler sees it: whichever builds it for BPF may have no clippy.
fn bpf_clippy(workspace: &Workspace, features: &[&str]) -> Command {
    let arch = env::consts::ARCH;
    let mut command = process::cargo();
    command
        .current_dir(workspace.ebpf_crate())
        .env("CARGO_TARGET_DIR", workspace.root().join("target/bpf-lint"))
        // The panic handler is the crate's own, so nothing may unwind.
        .env(
            "RUSTFLAGS",
            format!("--cfg=bpf_target_arch=\"{arch}\" -Cpanic=abort"),
        )
        .arg("clippy")
        .args(features)
        .args(["--", "-D", "warnings"]);
    command
}
