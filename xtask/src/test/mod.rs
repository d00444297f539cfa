//! `cargo xtask test`: everything that must hold, from a bare machine, in one run.

mod lab;
mod other_arch;
mod pace;
pub mod programs;
mod times;

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use self::{lab::Lab, programs::Program};
use crate::{
    arch::Arch,
    build_ebpf, cloud,
    kernel::{self, Extent, Run, Version},
    kubernetes,
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
    /// Run the tests of the Kubernetes store and of the CNI plugin, and nothing else; the first time, build the API
    /// server and the cnitool they need
    #[arg(long, conflicts_with = "kernel")]
    kubernetes: bool,
    /// Build the programs for another architecture and run their unit tests under qemu, and nothing else
    #[arg(long, conflicts_with_all = ["kernel", "kubernetes"])]
    arch: Option<Arch>,
    /// Run the tests of the page of `overlay-agent ui` in headless Chromium, and nothing else; the first time,
    /// install it
    #[arg(long, conflicts_with_all = ["kernel", "kubernetes"])]
    browser: bool,
    /// Run the tests of overlay-cloud and of the backends that need it, and nothing else; the first time, build it, and
    /// install an emulator of AWS
    #[arg(long, conflicts_with_all = ["kernel", "kubernetes", "browser"])]
    cloud: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !process::is_root() {
        bail!("the tests create network namespaces and load BPF programs: run them as root");
    }
    let workspace = Workspace::locate();
    let mut report = Report::start();
    let mut installer = Installer::new(true);
    let filter = args.filter.as_deref();
    let only_kernels = !args.kernel.is_empty();
    prepare(&workspace, &mut installer, &mut report)?;
    if let Some(arch) = args.arch {
        report.phase(arch.name(), || {
            other_arch::run(&workspace, &mut installer, arch, filter)
        });
        return report.finish(filter.is_some());
    }
    if args.kubernetes {
        report.required("kube-apiserver, cnitool", || {
            installer.ensure(&[Group::Kubernetes])?;
            kubernetes::ensure_programs(&workspace)
        })?;
        report.required("helm", || kubernetes::ensure_helm(&workspace))?;
    }
    if args.browser {
        report.required("Chromium", || installer.ensure(&[Group::Browser]))?;
    }
    if args.cloud {
        report.required("moto", || {
            installer.ensure(&[Group::Cloud])?;
            cloud::ensure_moto(&workspace)
        })?;
        report.required("overlay-cloud", || cloud::build(&workspace))?;
        if filter.is_none() {
            report.phase("overlay-cloud's own tests", || {
                cloud::unit_tests(&workspace)
            });
        }
    }
    // A stage is a few test programs.
    let stage: &[&str] = match (args.kubernetes, args.browser, args.cloud) {
        (true, _, _) => &["cni", "kubernetes"],
        (_, true, _) => &["browser"],
        (_, _, true) => &["cloud"],
        _ => &[],
    };
    if filter.is_none() && !only_kernels && stage.is_empty() {
        for (name, check) in lint::checks(&workspace) {
            report.phase(name, || check.run(&workspace));
        }
    }
    let programs = report.required("test programs", || {
        if only_kernels {
            return kernel::build(&workspace, filter);
        }
        if stage.is_empty() {
            return programs::build(&workspace, &["--workspace", "--all-targets"], &[]);
        }
        programs::of_lab(&workspace, stage)
    })?;
    let run = |extent| Run {
        workspace: &workspace,
        programs: &programs,
        extent,
        filter,
    };
    if only_kernels {
        let run = run(Extent::Lab);
        on_kernels(&args.kernel, &run, &mut installer, &mut report);
        return report.finish(filter.is_some());
    }
    if !stage.is_empty() {
        let lab: Vec<_> = programs.iter().collect();
        let wanted = filter.unwrap_or_default();
        report.phase("lab tests", || {
            let lab = Lab::find(&lab, &workspace.lab_logs(), Some(wanted));
            outcome(lab.and_then(|mut lab| {
                let mut outcome = lab.run_together()?;
                outcome.add(lab.run_alone()?);
                Ok(outcome)
            }))
        });
        return report.finish(filter.is_some());
    }
    let (lab, units): (Vec<_>, Vec<_>) = programs
        .iter()
        .partition(|program| program.package == workspace.lab_crate());
    report.phase("unit tests", || unit_tests(&units, filter));
    report.phase("doc tests", || doc_tests(&workspace, filter));
    let mut lab = Lab::find(&lab, &workspace.lab_logs(), filter)?;
    report.phase("lab tests", || outcome(lab.run_together()));
    if lab.has_lonely_ones() {
        report.phase("lab tests, one by one", || outcome(lab.run_alone()));
    }
    // After the lab, whose measurements of time the emulator would disturb at any priority.
    if filter.is_none() {
        let run = run(Extent::Smoke);
        on_kernels(&kernel::USUAL, &run, &mut installer, &mut report);
    }
    report.finish(filter.is_some())
}

/// Runs tests on other kernels, side by side: an emulated machine does not keep two CPUs busy all the
/// time. A kernel that was not asked for by name is skipped where it cannot be had.
fn on_kernels(versions: &[Version], run: &Run<'_>, installer: &mut Installer, report: &mut Report) {
    let ready = installer.ensure(&[Group::Kernels]);
    let phases = versions.iter().map(|&version| {
        let ready = &ready;
        let body = move || match ready {
            Err(error) => run.unavailable(version, error),
            Ok(()) => run.on(version),
        };
        (version.phase(), body)
    });
    report.side_by_side(phases.collect());
}

fn outcome(result: Result<Outcome>) -> Outcome {
    result.unwrap_or_else(|error| Outcome::broken(format!("{error:#}")))
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

/// The tests inside the crates, and those of the command line.
fn unit_tests(programs: &[&Program], filter: Option<&str>) -> Outcome {
    let mut outcome = Outcome::default();
    for program in programs {
        println!("{}", program.name);
        outcome.add(run_tests(program.command().args(filter)));
    }
    if filter.is_none() && outcome.counts.ran() == 0 {
        outcome.fail("no unit test ran".to_owned());
    }
    outcome
}

fn doc_tests(workspace: &Workspace, filter: Option<&str>) -> Outcome {
    let mut command = process::cargo();
    command
        .current_dir(workspace.root())
        .args(["test", "--no-fail-fast", "--workspace", "--doc"])
        .args(filter);
    run_tests(&mut command)
}

/// Runs tests, shows their output as it comes, and counts.
pub fn run_tests(command: &mut Command) -> Outcome {
    let line = process::display(command);
    println!("{line}");
    let mut parser = Parser::default();
    let finished = process::stream(command, |text| {
        println!("{text}");
        parser.line(text);
    });
    let mut outcome = Outcome::from(parser);
    match finished {
        Err(error) => outcome.fail(format!("{error:#}")),
        // Without a failed test it is a compile error, or a test program that died.
        Ok(false) if outcome.counts.failed == 0 => {
            outcome.fail(format!("`{line}` failed, see its output above"));
        }
        Ok(_) => {}
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Outcome {
        run_tests(command("sh").args(["-c", script]))
    }

    #[test]
    fn a_failed_test_is_counted_once_and_named() {
        let outcome = shell(
            "echo 'test a::b ... FAILED'; \
             echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 101",
        );
        assert_eq!(outcome.counts.failed, 1);
        assert_eq!(outcome.counts.passed, 2);
        assert_eq!(outcome.problems, ["a::b"]);
    }

    #[test]
    fn a_run_that_dies_without_a_result_is_a_failure() {
        let outcome = shell("echo 'running 3 tests'; exit 101");
        assert_eq!(outcome.counts.failed, 1);
        assert!(outcome.problems[0].contains("failed"), "{outcome:?}");
    }

    #[test]
    fn units_without_tests_are_a_failure_unless_they_are_filtered() {
        assert_eq!(unit_tests(&[], None).counts.failed, 1);
        assert_eq!(unit_tests(&[], Some("text")).counts.failed, 0);
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
