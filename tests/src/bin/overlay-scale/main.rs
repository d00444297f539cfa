//! The benchmark of the control plane as a program: clusters of several sizes, in which an agent
//! starts, follows single leases, storms and steady changes, and restarts. `cargo xtask bench scale`
//! builds and runs it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, value_parser};
use overlay_tests::{
    bench::machine,
    requirements::require_root,
    scale::{
        churn, event, idle,
        report::{Scale, render},
        restart, simulation,
        start::{Program, Site},
    },
};
use serde_json::json;

/// Measures what many leases cost.
#[derive(Parser)]
struct Args {
    /// Leases in etcd
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10, 1_000, 10_000], value_parser = value_parser!(u32).range(1..))]
    sizes: Vec<u32>,
    /// Starts of each size
    #[arg(long, default_value_t = 3)]
    starts: u32,
    /// Single leases written in each size
    #[arg(long, default_value_t = 200)]
    events: u32,
    /// Leases of a storm
    #[arg(long, default_value_t = 1_000)]
    storm: u32,
    /// How long leases keep changing
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    churn: u64,
    /// How long an agent is left alone, asks its peers, and is read by Prometheus
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    idle: u64,
    /// Do not restart an agent under traffic
    #[arg(long)]
    no_restart: bool,
    /// Leases of the simulations, which need no kernel
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000], value_parser = value_parser!(u32).range(1..))]
    simulate: Vec<u32>,
    /// Measure stock flanneld beside the agent: its program
    #[arg(long, value_name = "PATH")]
    flanneld: Option<PathBuf>,
    /// Measure although the machine is busy
    #[arg(long)]
    even_if_busy: bool,
    /// Where to write everything
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What the figures belong to
    #[arg(long, default_value = "unknown")]
    commit: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    require_root();
    let busy = machine::busy()?;
    if let Some(reason) = &busy {
        if !args.even_if_busy {
            bail!("{reason}: wait until it is idle, or measure with --even-if-busy");
        }
        eprintln!("warning: {reason}");
    }
    let flanneld = args.flanneld.clone().map(Program::Flanneld);
    let rows = args.simulate.iter().map(|leases| simulation::run(*leases));
    let rows: Vec<_> = rows.collect::<Result<_>>()?;
    let mut all = Vec::new();
    for &size in &args.sizes {
        for program in [Program::Agent].into_iter().chain(flanneld.clone()) {
            let scale = measure(&args, &program, size);
            all.push(scale.with_context(|| format!("{program} with {size} leases"))?);
        }
    }
    println!("{}{}", render(&all), simulation::render(&rows));
    if let Some(path) = &args.json {
        let document = json!({
            "commit": args.commit,
            "machine": machine::facts(),
            "busy": busy,
            "simulation": rows.iter().map(|row| row.to_json()).collect::<Vec<_>>(),
            "scale": all.iter().map(Scale::to_json).collect::<Vec<_>>(),
        });
        fs::write(path, format!("{document:#}\n"))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn measure(args: &Args, program: &Program, size: u32) -> Result<Scale> {
    eprintln!("{program} with {size} leases");
    let mut starts = Vec::new();
    for _ in 1..args.starts {
        starts.push(Site::start(program, size)?.1);
    }
    let (running, start) = Site::start(program, size)?;
    starts.push(start);
    let events = (args.events > 0)
        .then(|| event::singly(&running, args.events))
        .transpose()?;
    let storm = (args.storm > 0)
        .then(|| event::storm(&running, args.storm))
        .transpose()?;
    let churn = (args.churn > 0)
        .then(|| churn::run(&running, Duration::from_secs(args.churn)))
        .transpose()?;
    drop(running);
    let restart = (*program == Program::Agent && !args.no_restart)
        .then(|| restart::run(size))
        .transpose()?;
    let idle = (*program == Program::Agent && args.idle > 0)
        .then(|| idle::run(size, Duration::from_secs(args.idle)))
        .transpose()?;
    Ok(Scale {
        program: program.to_string(),
        size,
        starts,
        events,
        storm,
        churn,
        restart,
        idle,
    })
}
