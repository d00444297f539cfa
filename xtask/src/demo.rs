//! `cargo xtask demo`: from a bare machine to a three-node cluster whose pods talk.

use std::process::Stdio;

use anyhow::{Result, bail};

use crate::{
    build_ebpf,
    prereq::{Group, Installer},
    process, test,
    workspace::Workspace,
};

#[derive(clap::Args)]
pub struct Args {
    /// Leave the cluster up and print how to enter a node
    #[arg(long)]
    keep: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !process::is_root() {
        bail!("the demo creates network namespaces and loads BPF programs: run it as root");
    }
    let workspace = Workspace::locate();
    let mut installer = Installer::new(true);
    installer.ensure(&[Group::HostBuild, Group::Lab])?;
    test::mount_bpffs()?;
    build_ebpf::build(&workspace, &mut installer)?;
    println!("Building the agent and the demo");
    process::run(
        process::cargo()
            .current_dir(workspace.root())
            .args(["build", "--package", "overlay-agent"])
            .args(["--package", "overlay-tests", "--bins"]),
    )?;
    let mut demo = process::cargo();
    demo.current_dir(workspace.root())
        .args(["run", "--quiet", "--package", "overlay-tests"])
        .args(["--bin", "overlay-demo", "--"])
        .stdin(Stdio::inherit());
    if args.keep {
        demo.arg("--keep");
    }
    process::run(&mut demo)
}
