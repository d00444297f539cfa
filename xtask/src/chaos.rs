//! `cargo xtask chaos`: from a bare machine to clusters that are damaged at random, one seed after the
//! other.

use anyhow::Result;

use crate::{
    process,
    ready::{self, Profile},
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
    let workspace = ready::lab("chaos", &[], Profile::Dev)?;
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
