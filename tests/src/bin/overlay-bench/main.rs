//! The benchmark as a program: builds every variant, measures them in interleaved rounds, prints
//! tables and writes JSON. `cargo xtask bench` builds and runs it.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use overlay_tests::{
    bench::{
        cross::{self, CrossSample, Tool},
        figure::Metric,
        load, machine,
        report::Report,
        sample::{Sample, Settings},
        site::Site,
        table,
        variant::{self, Overlay},
    },
    requirements::require_root,
};
use serde_json::json;

/// Measurements of one variant and metric in a round, until one is clean.
const ATTEMPTS: usize = 3;

/// Measures every way from pod to pod side by side.
#[derive(Parser)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
struct Args {
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
    /// Compare with iperf3 and sockperf too, which must be installed
    #[arg(long)]
    cross_check: bool,
    /// Only variants whose name contains this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only the kinds of pods: behind a bridge, on a veth that is routed to, on a netkit
    #[arg(long, conflicts_with = "only")]
    pods: bool,
    /// Measure stock flanneld's udp backend, too: its program
    #[arg(long, value_name = "FILE")]
    flanneld: Option<PathBuf>,
    /// Where to write all samples
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What the figures belong to
    #[arg(long, default_value = "unknown")]
    commit: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    require_root();
    let (rounds, seconds) = if args.quick {
        (2, 0.4)
    } else {
        (args.rounds, args.seconds)
    };
    let cpus = std::thread::available_parallelism()?.get();
    let settings = Settings {
        load_program: load_program()?,
        seconds,
        warm_up: 0.3,
        cpu: cpus - 1,
        sender_cpu: 0,
    };
    if let Some(reason) = machine::busy()? {
        if !args.even_if_busy {
            bail!("{reason}: wait until it is idle, or measure with --even-if-busy");
        }
        eprintln!("warning: {reason}");
    }
    let facts = machine::facts();
    // Agents, etcd and whatever else this process starts stay off the measured core.
    load::pin_to(settings.sender_cpu)?;
    let sites = build(&args, settings.cpu)?;
    let report = measure(&sites, rounds, &settings)?;
    println!("{}", table::render(&report));
    let (clean, all) = (report.clean_samples(), report.samples.len());
    println!("{clean} of {all} samples were taken while the machine did nothing else");
    let crossed = if args.cross_check {
        cross_check(&sites, rounds, &settings)
    } else {
        Ok(Vec::new())
    };
    drop(sites);
    if let Ok(samples) = &crossed
        && !samples.is_empty()
    {
        println!("\n{}", cross::render(samples));
    }
    if let Some(path) = &args.json {
        let document = json!({
            "commit": args.commit,
            "rounds": rounds,
            "seconds": seconds,
            "quick": args.quick,
            "machine": facts,
            "report": report.to_json(),
            "cross_check": crossed.as_deref().map(cross::to_json).unwrap_or_default(),
        });
        fs::write(path, format!("{document:#}\n"))
            .with_context(|| format!("write {}", path.display()))?;
    }
    crossed.map(drop)
}

/// The load generator, which is built beside this program.
fn load_program() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("overlay-load");
    if !program.is_file() {
        bail!("{} is missing: run `cargo xtask bench`", program.display());
    }
    Ok(program)
}

fn build(args: &Args, cpu: usize) -> Result<Vec<Site>> {
    let flanneld = args.flanneld.as_deref();
    let mut sites = Vec::new();
    for variant in variant::ALL {
        let is_wanted = if args.pods {
            variant::PODS.contains(&variant)
        } else {
            args.only.is_empty() || args.only.iter().any(|text| variant.name.contains(text))
        };
        if !is_wanted {
            continue;
        }
        if let Some(reason) = variant.missing() {
            eprintln!("{} is left out: {reason}", variant.name);
            continue;
        }
        if variant.overlay == Overlay::StockUdp && flanneld.is_none() {
            println!("{} is skipped: --flanneld names no program", variant.name);
            continue;
        }
        let start = Instant::now();
        let site = Site::build(variant, cpu, flanneld)
            .with_context(|| format!("build {}", variant.name))?;
        eprintln!("{} is up after {:.1?}", variant.name, start.elapsed());
        sites.push(site);
    }
    Ok(sites)
}

fn measure(sites: &[Site], rounds: usize, settings: &Settings) -> Result<Report> {
    let mut samples = Vec::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for metric in Metric::ALL {
            for site in sites.iter().filter(|site| metric.applies_to(site.variant)) {
                let taken = attempts(site, metric, round, settings);
                samples.extend(taken.inspect_err(|_| eprintln!("{}", site.lab.evidence()))?);
            }
        }
    }
    Ok(Report { samples, rounds })
}

fn cross_check(sites: &[Site], rounds: usize, settings: &Settings) -> Result<Vec<CrossSample>> {
    let mut samples = Vec::new();
    for round in 0..rounds {
        eprintln!("cross-check {} of {rounds}", round + 1);
        for tool in Tool::ALL {
            for site in sites.iter().filter(|site| cross::applies_to(site.variant)) {
                samples.push(cross::measure(site, tool, round, settings)?);
            }
        }
    }
    Ok(samples)
}

/// Measures until a sample is clean; those before it are kept for the record.
fn attempts(site: &Site, metric: Metric, round: usize, settings: &Settings) -> Result<Vec<Sample>> {
    let mut samples: Vec<Sample> = Vec::new();
    while samples.len() < ATTEMPTS && !samples.last().is_some_and(Sample::is_clean) {
        samples.push(Sample::take(site, metric, round, settings)?);
    }
    Ok(samples)
}
