//! `cargo xtask bench`: from a bare machine to the tables of docs/performance.md.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    build_ebpf,
    prereq::{Group, Installer},
    process, test,
    workspace::Workspace,
};

#[derive(clap::Args)]
pub struct Args {
    /// Interleaved rounds
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of one measurement
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Two rounds of short measurements: shows that everything works, is no result
    #[arg(long)]
    quick: bool,
    /// Measure although the machine is busy; what it disturbed does not count
    #[arg(long)]
    even_if_busy: bool,
    /// Compare with iperf3 and sockperf too, which are installed if missing
    #[arg(long)]
    cross_check: bool,
    /// Only variants whose name contains this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Where to write all samples
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    if !process::is_root() {
        bail!("the benchmark creates network namespaces and loads BPF programs: run it as root");
    }
    let workspace = Workspace::locate();
    let mut installer = Installer::new(true);
    let mut groups = vec![Group::HostBuild, Group::Lab];
    if args.cross_check {
        groups.push(Group::CrossCheck);
    }
    installer.ensure(&groups)?;
    test::mount_bpffs()?;
    build_ebpf::build(&workspace, &mut installer)?;
    println!("Building the agent and the benchmark");
    process::run(
        process::cargo()
            .current_dir(workspace.root())
            .args(["build", "--release", "--package", "overlay-agent"])
            .args(["--package", "overlay-tests", "--bins"]),
    )?;
    let program = workspace.root().join("target/release/overlay-bench");
    let mut bench = process::command(program);
    bench
        .args(["--rounds", &args.rounds.to_string()])
        .args(["--seconds", &args.seconds.to_string()])
        .args(["--commit", &commit(&workspace)?]);
    if args.quick {
        bench.arg("--quick");
    }
    if args.even_if_busy {
        bench.arg("--even-if-busy");
    }
    if args.cross_check {
        bench.arg("--cross-check");
    }
    for text in &args.only {
        bench.args(["--only", text]);
    }
    if let Some(path) = &args.json {
        bench.arg("--json").arg(path);
    }
    process::run(&mut bench)
}

/// What the working tree is, as `git describe` names it; `-dirty` when it has other changes.
fn commit(workspace: &Workspace) -> Result<String> {
    let text = process::output(process::command("git").current_dir(workspace.root()).args([
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]))?;
    Ok(text.trim().to_owned())
}
