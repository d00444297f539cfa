//! `cargo xtask lint`: formatting, clippy and the crates that are used, as `cargo xtask test` checks them.

use std::{env, process::Command};

use anyhow::{Result, bail};

use crate::{deny, process, report::Outcome, workspace::Workspace};

/// One check.
pub enum Check {
    Command(Command),
    Crates(fn(&Workspace) -> Outcome),
}

impl Check {
    pub fn run(self, workspace: &Workspace) -> Outcome {
        let mut command = match self {
            Self::Command(command) => command,
            Self::Crates(check) => return check(workspace),
        };
        println!("{}", process::display(&command));
        match process::run(&mut command) {
            Ok(()) => Outcome::default(),
            Err(error) => Outcome::broken(format!("{error:#}")),
        }
    }
}

pub fn run() -> Result<()> {
    let workspace = Workspace::locate();
    for (name, check) in checks(&workspace) {
        let outcome = check.run(&workspace);
        if !outcome.problems.is_empty() {
            bail!("{name}: {}", outcome.problems.join("\n"));
        }
    }
    Ok(())
}

/// The checks by name, in the order they run, cheapest first.
pub fn checks(workspace: &Workspace) -> [(&'static str, Check); 9] {
    let cargo = |arguments: &[&str]| {
        let mut command = process::cargo();
        command.current_dir(workspace.root()).args(arguments);
        Check::Command(command)
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
            "formatting, overlay-cloud",
            cargo(&[
                "fmt",
                "--check",
                "--manifest-path",
                "overlay-cloud/Cargo.toml",
            ]),
        ),
        ("licences, sources, duplicates", Check::Crates(deny::crates)),
        ("advisories", Check::Crates(deny::advisories)),
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
        ("clippy, BPF", Check::Command(bpf_clippy(workspace, &[]))),
        (
            "clippy, BPF that logs",
            Check::Command(bpf_clippy(workspace, &["--features", "log"])),
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
