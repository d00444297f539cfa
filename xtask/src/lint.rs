//! `cargo xtask lint`: formatting and clippy, as `cargo xtask test` runs them.

use std::process::Command;

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
pub fn commands(workspace: &Workspace) -> [(&'static str, Command); 4] {
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
    ]
}
