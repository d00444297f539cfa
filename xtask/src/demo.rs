//! `cargo xtask demo`: from a bare machine to a three-node cluster whose pods talk.

use std::process::Stdio;

use anyhow::Result;

use crate::{
    process,
    ready::{self, Profile},
};

#[derive(clap::Args)]
pub struct Args {
    /// Leave the cluster up and print how to enter a node
    #[arg(long)]
    keep: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let workspace = ready::lab("the demo", &[], Profile::Dev)?;
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
