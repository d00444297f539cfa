//! `cargo xtask chaos`: from a bare machine to clusters that are damaged at random, one seed after the
//! other.

use anyhow::{Result, bail};

use crate::{
    build_ebpf,
    prereq::{Group, Installer},
    process, test,
    workspace::Workspace,
};

#[derive(clap::Args)]
pub struct Args {
    /// The first seed; the next one follows
    #[arg(long)]
    seed: u64,
    /// For how long new seeds are begun; one always is
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Steps for each seed, instead of about a minute's
    #[arg(long)]
    steps: Option<usize>,
}

pub fn run(args: &Args) -> Result<()> {
    if !process::is_root() {
        bail!("chaos creates network namespaces and loads BPF programs: run it as root");
    }
    let workspace = Workspace::locate();
    let mut installer = Installer::new(true);
    installer.ensure(&[Group::HostBuild, Group::Lab])?;
    test::mount_bpffs()?;
    build_ebpf::build(&workspace, &mut installer)?;
    println!("Building the agent and the chaos");
    process::run(
        process::cargo()
            .current_dir(workspace.root())
            .args(["build", "--package", "overlay-agent"])
            .args(["--package", "overlay-tests", "--bins"]),
    )?;
    let mut chaos = process::command(workspace.root().join("target/debug/overlay-chaos"));
    chaos
        .current_dir(workspace.root())
        .args(["--seed", &args.seed.to_string()])
        .args(["--minutes", &args.minutes.to_string()]);
    if let Some(steps) = args.steps {
        chaos.args(["--steps", &steps.to_string()]);
    }
    process::run(&mut chaos)
}
