//! `cargo xtask test`: everything that must hold, from a bare machine, in one run.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    build_ebpf,
    libtest::{Counts, Parser},
    lint,
    prereq::{Group, Installer},
    process::{self, command},
    stats,
    workspace::Workspace,
};

const BPFFS: &str = "/sys/fs/bpf";

#[derive(clap::Args)]
pub struct Args {
    /// Run only tests whose name contains this text, and leave out formatting and clippy
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

/// How one phase went.
#[derive(Debug, Default)]
struct Outcome {
    counts: Counts,
    /// Failed tests, or what else went wrong.
    problems: Vec<String>,
}

/// Everything that ran, for the summary.
struct Report {
    started: Instant,
    phases: Vec<(&'static str, Duration, Outcome)>,
}

pub fn run(args: &Args) -> Result<()> {
    if !process::is_root() {
        bail!("the tests create network namespaces and load BPF programs: run them as root");
    }
    let workspace = Workspace::locate();
    let mut report = Report {
        started: Instant::now(),
        phases: Vec::new(),
    };
    prepare(&workspace, &mut report)?;
    if args.filter.is_none() {
        for (name, mut command) in lint::commands(&workspace) {
            report.phase(name, || plain(&mut command));
        }
    }
    for phase in test_phases(&workspace, args.filter.as_deref()) {
        report.phase(phase.name, || test(phase));
    }
    report.finish(args.filter.is_some())
}

/// What the tests cannot run without: its failure ends the run.
fn prepare(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let mut installer = Installer::new(true);
    report.required("prerequisites", || {
        installer.ensure(&[Group::HostBuild, Group::Lab])?;
        mount_bpffs()
    })?;
    report.required("BPF object", || {
        let object = build_ebpf::build_both(workspace, &mut installer)?;
        stats::print(&object, &workspace.bpf_budget())
    })?;
    report.required("agent", || {
        process::run(process::cargo().current_dir(workspace.root()).args([
            "build",
            "--package",
            "overlay-agent",
        ]))
    })
}

/// Mounts the BPF file system where the agent pins by default, unless it is mounted.
pub fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    if is_mounted(&mounts, BPFFS, "bpf") {
        return Ok(());
    }
    println!("Mounting the BPF file system on {BPFFS}");
    process::run(command("mount").args(["-t", "bpf", "bpf", BPFFS]))
}

fn is_mounted(mounts: &str, target: &str, kind: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(target) && fields.next() == Some(kind)
    })
}

/// One `cargo test`.
struct TestPhase {
    name: &'static str,
    command: Command,
    /// Whether an empty run is a mistake rather than a crate without such tests.
    must_run: bool,
}

fn test_phases(workspace: &Workspace, filter: Option<&str>) -> [TestPhase; 3] {
    let cargo_test = |arguments: &[&str]| {
        let mut command = process::cargo();
        command
            .current_dir(workspace.root())
            .args(["test", "--no-fail-fast"])
            .args(arguments)
            .args(filter);
        command
    };
    let must_run = filter.is_none();
    [
        TestPhase {
            name: "unit tests",
            command: cargo_test(&["--workspace", "--exclude", "overlay-tests", "--all-targets"]),
            must_run,
        },
        TestPhase {
            name: "doc tests",
            command: cargo_test(&["--workspace", "--doc"]),
            must_run: false,
        },
        TestPhase {
            name: "lab tests",
            command: cargo_test(&["--package", "overlay-tests", "--all-targets"]),
            must_run,
        },
    ]
}

fn plain(command: &mut Command) -> Outcome {
    println!("{}", process::display(command));
    match process::run(command) {
        Ok(()) => Outcome::default(),
        Err(error) => Outcome::broken(format!("{error:#}")),
    }
}

/// Runs the tests, shows their output as it comes, and counts.
fn test(mut phase: TestPhase) -> Outcome {
    let line = process::display(&phase.command);
    println!("{line}");
    let mut parser = Parser::default();
    let finished = stream(&mut phase.command, |text| parser.line(text));
    let mut outcome = Outcome {
        counts: parser.counts,
        problems: parser.failures,
    };
    match finished {
        Err(error) => outcome.fail(format!("{error:#}")),
        // Without a failed test it is a compile error, or a test binary that died.
        Ok(false) if outcome.counts.failed == 0 => {
            outcome.fail(format!("`{line}` failed, see its output above"));
        }
        Ok(true) if phase.must_run && outcome.counts.ran() == 0 => {
            outcome.fail(format!("`{line}` ran no test"));
        }
        Ok(_) => {}
    }
    outcome
}

/// Copies standard output line by line while reading it; returns whether the command succeeded.
fn stream(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", process::display(command)))?;
    let output = child.stdout.take().context("the child has no output")?;
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .context("cannot read the tests' output")?
        > 0
    {
        let line = String::from_utf8_lossy(&bytes);
        print!("{line}");
        each(line.trim_end());
        bytes.clear();
    }
    let status = child.wait().context("cannot wait for the tests")?;
    Ok(status.success())
}

impl Outcome {
    fn broken(problem: String) -> Self {
        let mut outcome = Self::default();
        outcome.fail(problem);
        outcome
    }

    /// A failure that no test stands for counts as one, so that the summary never reads as a
    /// success.
    fn fail(&mut self, problem: String) {
        self.counts.failed += 1;
        self.problems.push(problem);
    }
}

impl Report {
    fn phase(&mut self, name: &'static str, body: impl FnOnce() -> Outcome) {
        println!(
            "\n==> {name} (at {:.0} s)",
            self.started.elapsed().as_secs_f32()
        );
        let started = Instant::now();
        let outcome = body();
        self.phases.push((name, started.elapsed(), outcome));
    }

    /// A phase whose failure leaves nothing to run.
    fn required(&mut self, name: &'static str, body: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        self.phase(name, || {
            result = body();
            Outcome::default()
        });
        result.with_context(|| format!("{name}: cannot go on"))
    }

    fn finish(self, filtered: bool) -> Result<()> {
        let mut total = Counts::default();
        println!("\n==> summary");
        for (name, elapsed, outcome) in &self.phases {
            total += outcome.counts;
            println!(
                "{} {name:<15} {:>6.1} s  {}",
                if outcome.problems.is_empty() {
                    "ok    "
                } else {
                    "FAILED"
                },
                elapsed.as_secs_f32(),
                if outcome.counts == Counts::default() {
                    String::new()
                } else {
                    outcome.counts.to_string()
                }
            );
            for problem in &outcome.problems {
                println!("         {problem}");
            }
        }
        println!("total {:.0} s", self.started.elapsed().as_secs_f32());
        println!("{total}");
        if total.failed > 0 {
            bail!("{} failed", total.failed);
        }
        if total.ran() == 0 {
            let hint = if filtered {
                "; does the filter match a name?"
            } else {
                ""
            };
            bail!("no test ran{hint}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, must_run: bool) -> TestPhase {
        let mut command = command("sh");
        command.args(["-c", script]);
        TestPhase {
            name: "shell",
            command,
            must_run,
        }
    }

    #[test]
    fn a_failed_test_is_counted_once_and_named() {
        let outcome = test(shell(
            "echo 'test a::b ... FAILED'; \
             echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 101",
            true,
        ));
        assert_eq!(outcome.counts.failed, 1);
        assert_eq!(outcome.counts.passed, 2);
        assert_eq!(outcome.problems, ["a::b"]);
    }

    #[test]
    fn a_run_that_dies_without_a_result_is_a_failure() {
        let outcome = test(shell("echo 'running 3 tests'; exit 101", true));
        assert_eq!(outcome.counts.failed, 1);
        assert!(outcome.problems[0].contains("failed"), "{outcome:?}");
    }

    #[test]
    fn a_run_without_tests_is_a_failure_where_tests_are_expected() {
        let empty = "echo 'test result: ok. 0 passed; 0 failed; 0 ignored'";
        assert_eq!(test(shell(empty, true)).counts.failed, 1);
        assert_eq!(test(shell(empty, false)).counts.failed, 0);
    }

    #[test]
    fn nothing_run_at_all_is_not_a_success() {
        let report = Report {
            started: Instant::now(),
            phases: Vec::new(),
        };
        assert!(report.finish(true).is_err());
    }

    #[test]
    fn bpffs_counts_as_mounted_only_at_its_own_place() {
        let mounts = "sysfs /sys sysfs rw 0 0\nbpf /tmp/x bpf rw 0 0\n";
        assert!(!is_mounted(mounts, BPFFS, "bpf"));
        assert!(is_mounted(
            "bpf /sys/fs/bpf bpf rw,nosuid 0 0\n",
            BPFFS,
            "bpf"
        ));
    }
}
