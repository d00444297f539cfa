//! `cargo xtask chaos`: random damage to clusters, one seed after the other.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use overlay_tests::{
    chaos::{self, Plan},
    requirements::require_root,
};

/// Damages clusters whose pods talk, and says what it cost and what was not mended.
#[derive(Debug, Parser)]
#[command(name = "overlay-chaos")]
struct Args {
    /// The first seed; the next one follows
    #[arg(long)]
    seed: u64,
    /// For how long new seeds are begun; one always is
    #[arg(long)]
    minutes: u64,
    /// Steps for each seed
    #[arg(long, default_value_t = chaos::STEPS)]
    steps: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    require_root();
    let until = Instant::now() + Duration::from_mins(args.minutes);
    let mut failed = Vec::new();
    let mut seed = args.seed;
    loop {
        let plan = Plan::new(seed, args.steps);
        if let Err(error) = chaos::run(&plan) {
            eprintln!("error: {error:#}");
            failed.push(seed);
        }
        seed += 1;
        if Instant::now() >= until {
            break;
        }
    }
    println!("{} seeds from {}", seed - args.seed, args.seed);
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    for seed in failed {
        println!(
            "failed: cargo xtask chaos --seed {seed} --minutes 0 --steps {}",
            args.steps
        );
    }
    ExitCode::FAILURE
}
