//! `cargo xtask demo`: three nodes, two pods each, and what the overlay does for them, shown step
//! by step. Two nodes share a segment, the third is behind a router.

mod show;
mod steps;

use std::{
    env, fs,
    io::{Write as _, stdout},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use overlay_tests::{
    lab::{self, Builder, Lab},
    requirements::require_root,
};

/// Name of the lab that `--keep` leaves.
const KEPT_NAME: &str = "demo";

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

/// Three overlay nodes on this machine, shown at work.
#[derive(Debug, Parser)]
#[command(name = "overlay-demo")]
struct Args {
    /// Leave the cluster up and print how to enter it
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove what `--keep` left, with everything that runs in it
    #[arg(long)]
    clean: bool,
}

/// The lab to remove when the demo is interrupted.
static CURRENT: Mutex<Option<String>> = Mutex::new(None);

/// Prints the steps as they happen and knows which one failed.
struct Progress {
    start: Instant,
    step: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    require_root();
    let result = if args.clean {
        clean()
    } else {
        demonstrate(args.keep)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn clean() -> Result<()> {
    let message = if lab::remove(KEPT_NAME)? {
        "The demo is removed."
    } else {
        "There is no demo."
    };
    println!("{message}");
    Ok(())
}

fn demonstrate(keep: bool) -> Result<()> {
    remove_on_interrupt()?;
    let mut progress = Progress {
        start: Instant::now(),
        step: String::new(),
    };
    let mut builder = Lab::builder().nodes(2).routed_nodes(1).config(CONFIG);
    if keep {
        lab::remove(KEPT_NAME)?;
        builder = builder.kept_as(KEPT_NAME);
    }
    let lab = build(builder, &mut progress)?;
    if let Err(error) = steps::run(&lab, &mut progress) {
        let file = env::temp_dir().join(format!("overlay-demo-{}.txt", lab.id()));
        fs::write(&file, lab.evidence()).with_context(|| format!("write {}", file.display()))?;
        bail!(
            "{}\nThe state of all nodes: {}",
            progress.failure(&error),
            file.display()
        );
    }
    if keep {
        println!("\n{}", show::how_to_enter(&lab)?);
    } else {
        progress.step("Removing the cluster");
        drop(lab);
    }
    println!("\nDone in {:.0} s.", progress.start.elapsed().as_secs_f32());
    Ok(())
}

fn build(builder: Builder, progress: &mut Progress) -> Result<Lab> {
    progress.step("Building three nodes, a router and an etcd");
    let lab = builder
        .build()
        .with_context(|| format!("FAILED at: {}", progress.step))?;
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(lab.id().to_owned());
    Progress::note(&show::network(&lab));
    Ok(lab)
}

/// Removes the lab on Ctrl-C. Signals are taken by a thread of their own, before any other exists.
fn remove_on_interrupt() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("\n{signal}: removing the cluster");
        let current = CURRENT
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Err(error)) = current.map(|id| lab::remove(&id)) {
            eprintln!("{error:#}");
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

impl Progress {
    fn step(&mut self, what: &str) {
        what.clone_into(&mut self.step);
        println!("\n[{:4.1} s] {what}", self.start.elapsed().as_secs_f32());
        // Progress must be visible when the output is a pipe, too.
        let _ = stdout().flush();
    }

    fn failure(&self, error: &anyhow::Error) -> String {
        format!("FAILED at: {}\n{error:#}", self.step)
    }

    fn note(text: &str) {
        for line in text.trim_end().lines() {
            println!("         {line}");
        }
    }
}
