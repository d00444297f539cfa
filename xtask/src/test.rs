//! `cargo xtask test`: everything that must hold, from a bare machine, in one run.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    build_ebpf,
    kernel::{self, Extent, Run, Version},
    libtest::Parser,
    lint,
    prereq::{Group, Installer},
    process::{self, command},
    report::{Outcome, Report},
    stats,
    workspace::Workspace,
};

const BPFFS: &str = "/sys/fs/bpf";

#[derive(clap::Args)]
pub struct Args {
    /// Run only tests whose name contains this text, and leave out formatting and clippy
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run tests on this Debian kernel in a virtual machine, and nothing else; may be repeated
    #[arg(long, value_name = "VERSION")]
    kernel: Vec<Version>,
}

pub fn run(args: &Args) -> Result<()> {
    if !process::is_root() {
        bail!("the tests create network namespaces and load BPF programs: run them as root");
    }
    let workspace = Workspace::locate();
    let mut report = Report::start();
    let mut installer = Installer::new(true);
    prepare(&workspace, &mut installer, &mut report)?;
    let filter = args.filter.as_deref();
    if !args.kernel.is_empty() {
        let kernels = (args.kernel.as_slice(), Extent::Lab);
        on_kernels(&workspace, &mut installer, &mut report, kernels, filter);
        return report.finish(filter.is_some());
    }
    if filter.is_none() {
        for (name, mut command) in lint::commands(&workspace) {
            report.phase(name, || plain(&mut command));
        }
    }
    for phase in test_phases(&workspace, filter) {
        report.phase(phase.name, || test(phase));
    }
    // After the lab, whose measurements of time the emulator would disturb.
    if filter.is_none() {
        let kernels = (kernel::USUAL.as_slice(), Extent::Smoke);
        on_kernels(&workspace, &mut installer, &mut report, kernels, None);
    }
    report.finish(filter.is_some())
}

/// Runs tests on other kernels, one after the other. A kernel that was not asked for by name is
/// skipped where it cannot be had.
fn on_kernels(
    workspace: &Workspace,
    installer: &mut Installer,
    report: &mut Report,
    (versions, extent): (&[Version], Extent),
    filter: Option<&str>,
) {
    let required = extent == Extent::Lab;
    let ready = installer.ensure(&[Group::Kernels]);
    let built = kernel::build(workspace);
    for &version in versions {
        report.phase(version.phase(), || match (&ready, &built) {
            (_, Err(error)) => Outcome::broken(format!("{error:#}")),
            (Err(error), _) => kernel::unavailable(version, error, required),
            (Ok(()), Ok(programs)) => Run {
                workspace,
                programs,
                extent,
                filter,
                required,
            }
            .on(version),
        });
    }
}

/// What the tests cannot run without: its failure ends the run.
fn prepare(workspace: &Workspace, installer: &mut Installer, report: &mut Report) -> Result<()> {
    report.required("prerequisites", || {
        installer.ensure(&[Group::HostBuild, Group::Lab])?;
        mount_bpffs()
    })?;
    report.required("BPF object", || {
        let object = build_ebpf::build_both(workspace, installer)?;
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
    let finished = process::stream(&mut phase.command, |text| parser.line(text));
    let mut outcome = Outcome::from(parser);
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
