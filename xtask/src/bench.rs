//! `cargo xtask bench`: from a bare machine to the tables of docs/performance.md, and `bench scale` to
//! those of docs/performance/scale.md.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{
    kernel::{self, Version},
    plot,
    prereq::Group,
    process,
    ready::{self, Profile},
    workspace::Workspace,
};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    packets: Packets,
}

#[derive(clap::Subcommand)]
enum What {
    /// What many leases cost: starts, single events, storms, steady changes, restarts
    Scale(Scale),
    /// What a packet costs by the kind of pod: behind a bridge, on a veth that is routed to, on a netkit
    Pods(Pods),
}

/// What a packet costs.
#[derive(clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
struct Packets {
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
    /// Measure stock flanneld's udp backend, too: its program
    #[arg(long, value_name = "FILE")]
    flanneld: Option<PathBuf>,
    /// Where to write all samples
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the charts of docs/performance of what was measured
    #[arg(long)]
    plot: bool,
    /// Measure nothing: draw the charts of what an earlier run wrote with --json
    #[arg(long, value_name = "FILE")]
    plot_from: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Pods {
    /// In a virtual machine with this Debian kernel, whose clock counts instructions: a nanosecond is one of them
    #[arg(long, value_name = "VERSION")]
    kernel: Option<Version>,
    /// Interleaved rounds
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of one measurement
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
}

/// What leases cost. Everything else is handed on to `overlay-scale`.
#[derive(clap::Args)]
struct Scale {
    /// Options of `overlay-scale`, such as --sizes, --churn, --flanneld PATH, --json FILE
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        None => run_packets(&args.packets),
        Some(What::Scale(scale)) => run_scale(scale),
        Some(What::Pods(pods)) => run_pods(pods),
    }
}

fn run_scale(scale: &Scale) -> Result<()> {
    let workspace = prepare(&[])?;
    let program = workspace.root().join("target/release/overlay-scale");
    let mut bench = process::command(program);
    bench
        .args(["--commit", &commit(&workspace)?])
        .args(&scale.options);
    process::run(&mut bench)
}

fn run_pods(args: &Pods) -> Result<()> {
    let kernels = [Group::Kernels];
    let workspace = prepare(if args.kernel.is_some() { &kernels } else { &[] })?;
    let program = workspace.root().join("target/release/overlay-bench");
    let program = program.to_str().context("a path that is not UTF-8")?;
    let (rounds, seconds) = (args.rounds.to_string(), args.seconds.to_string());
    let options = ["--pods", "--rounds", &rounds, "--seconds", &seconds];
    let Some(version) = args.kernel else {
        return process::run(process::command(program).args(options));
    };
    // What else the machine does takes no instructions of the virtual one.
    let words = [program, "--even-if-busy"].into_iter().chain(options);
    kernel::show(&workspace, version, words.map(str::to_owned).collect())
}

fn prepare(groups: &[Group]) -> Result<Workspace> {
    ready::lab("the benchmark", groups, Profile::Release)
}

/// Where charts go.
fn charts(workspace: &Workspace) -> PathBuf {
    workspace.root().join("docs/performance")
}

fn run_packets(args: &Packets) -> Result<()> {
    if let Some(from) = &args.plot_from {
        return plot::draw(from, &charts(&Workspace::locate()));
    }
    let cross_check = [Group::CrossCheck];
    let workspace = prepare(if args.cross_check { &cross_check } else { &[] })?;
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
    if let Some(path) = &args.flanneld {
        bench.arg("--flanneld").arg(path);
    }
    let samples = workspace.root().join("target/bench.json");
    let json = args.json.clone().or(args.plot.then_some(samples));
    if let Some(path) = &json {
        bench.arg("--json").arg(path);
    }
    process::run(&mut bench)?;
    match json {
        Some(path) if args.plot => plot::draw(&path, &charts(&workspace)),
        _ => Ok(()),
    }
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
