//! `cargo xtask fuzz`: every fuzz target for some time, and what it has reached.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    prereq::{Group, Installer},
    process::{self, command},
    tool::Tool,
    workspace::Workspace,
};

const TOOL: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
};

/// libFuzzer needs flags that stable compilers do not take.
const TOOLCHAIN: &str = "nightly";

#[derive(clap::Args)]
pub struct Args {
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Run only targets whose name contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Install missing system packages, as root
    #[arg(long)]
    install: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::locate();
    let targets = targets(&workspace.root().join("fuzz/fuzz_targets"))?;
    let is_wanted = |name: &&String| args.filter.as_ref().is_none_or(|text| name.contains(text));
    let targets: Vec<&String> = targets.iter().filter(is_wanted).collect();
    ensure!(!targets.is_empty(), "no fuzz target has such a name");
    let mut installer = Installer::new(args.install);
    installer.ensure(&[Group::HostBuild, Group::Fuzz])?;
    process::output(command("rustup").args(["run", TOOLCHAIN, "rustc", "--version"]))
        .context("install it with `rustup toolchain install nightly`")?;
    // The targets link the agent, which embeds the object.
    crate::build_ebpf::build(&workspace, &mut installer)?;
    let fuzzer = Fuzzer {
        program: TOOL.ensure(&workspace)?,
        workspace: &workspace,
    };
    process::run(&mut fuzzer.command("build"))?;
    println!(
        "{:<20} {:>11} {:>9} {:>15} {:>15} {:>10}",
        "target", "inputs", "per s", "corpus reaches", "in the end", "of edges"
    );
    let mut failed = Vec::new();
    for target in targets {
        let (log, passed) = fuzzer.run(target, args.seconds)?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        if let Some(reached) = Reached::parse(&said).filter(|_| passed) {
            println!("{target:<20} {}", reached.row(args.seconds));
        } else {
            println!("{target:<20} failed: {}", log.display());
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!(
            "{} failed; the inputs are in fuzz/artifacts",
            failed.join(", ")
        );
    }
    Ok(())
}

fn targets(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        names.extend(
            path.file_stem()
                .and_then(|stem| stem.to_str())
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

struct Fuzzer<'a> {
    program: PathBuf,
    workspace: &'a Workspace,
}

impl Fuzzer<'_> {
    fn command(&self, subcommand: &str) -> Command {
        let mut command = command(&self.program);
        command
            .current_dir(self.workspace.root())
            // The cargo that started xtask is not of that toolchain.
            .env_remove("CARGO")
            .env("RUSTUP_TOOLCHAIN", TOOLCHAIN)
            .args([subcommand, "--fuzz-dir", "fuzz", "--target-dir"])
            .arg(self.workspace.fuzz_target());
        command
    }

    /// What it said, and whether no input was bad.
    fn run(&self, target: &str, seconds: u32) -> Result<(PathBuf, bool)> {
        let dir = self.workspace.fuzz_target();
        // New inputs go to the first directory: what is worth keeping is chosen by hand.
        let found = dir.join("found").join(target);
        fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
        let log = dir.join(format!("{target}.log"));
        let file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = self.command("run");
        command
            .arg(target)
            .arg(found)
            .arg(format!("fuzz/corpus/{target}"))
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .stdout(file.try_clone()?)
            .stderr(file);
        let status = command.status().context("cannot start cargo-fuzz")?;
        Ok((log, status.success()))
    }
}

/// What libFuzzer says of a run.
#[derive(Debug, PartialEq, Eq)]
struct Reached {
    inputs: u64,
    /// Edges of the control flow that the corpus reaches, that were reached in the end, and all that
    /// there are in what the target is linked with.
    before: u64,
    after: u64,
    edges: u64,
}

impl Reached {
    fn parse(said: &str) -> Option<Self> {
        let line = |word| said.lines().find(|line| line.contains(word));
        let covered = |line: &str| number_after(line, "cov: ");
        let done = line("\tDONE ")?;
        Some(Self {
            inputs: number_after(done, "#")?,
            before: covered(line("\tINITED ")?)?,
            after: covered(done)?,
            edges: number_after(line(" inline 8-bit counters")?, "(")?,
        })
    }

    fn row(&self, seconds: u32) -> String {
        let rate = self.inputs / u64::from(seconds.max(1));
        let Self {
            inputs,
            before,
            after,
            edges,
        } = self;
        format!("{inputs:>11} {rate:>9} {before:>15} {after:>15} {edges:>10}")
    }
}

fn number_after(line: &str, mark: &str) -> Option<u64> {
    let (_, rest) = line.split_once(mark)?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reached_is_read_from_the_fuzzers_words() {
        let said = "INFO: Seed: 3107\n\
            INFO: Loaded 1 modules   (218773 inline 8-bit counters): 218773 [0x55, 0x66), \n\
            #18\tINITED cov: 1004 ft: 1877 corp: 17/1143b exec/s: 0 rss: 57Mb\n\
            #4096\tpulse  cov: 1020 ft: 1990 corp: 30/2Kb lim: 4096 exec/s: 2048 rss: 60Mb\n\
            #90112\tDONE   cov: 1131 ft: 2500 corp: 99/9Kb lim: 4096 exec/s: 9011 rss: 70Mb\n";
        let reached = Reached {
            inputs: 90112,
            before: 1004,
            after: 1131,
            edges: 218_773,
        };
        assert_eq!(Reached::parse(said), Some(reached));
        let crashed = said.split("#90112").next().unwrap_or_default();
        assert_eq!(Reached::parse(crashed), None);
    }
}
