//! Tests on other kernels than the running one: Debian's, booted in a virtual machine.
//!
//! docs/adr/0015-real-kernels.md says why it is done this way.

mod fetch;
mod run;
mod vm;

use anyhow::{Context as _, Error, Result, bail};

pub use self::fetch::mirror;
use self::{
    fetch::Kernel,
    run::Reading,
    vm::{Clock, Machine, Task},
};
use crate::{
    process,
    report::Outcome,
    test::programs::{self, Program},
    workspace::Workspace,
};

/// The kernels that Debian has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Version {
    /// Of Debian 11: too old for the programs
    #[value(name = "5.10")]
    V5_10,
    /// Of Debian 12: tc filters
    #[value(name = "6.1")]
    V6_1,
    /// Of Debian 13: tcx
    #[value(name = "6.12")]
    V6_12,
    /// Of Debian's development
    Newest,
}

/// Of a machine that is to be like others.
const CPUS: u32 = 2;

/// What a normal run of the tests boots.
pub const USUAL: [Version; 2] = [Version::V6_1, Version::V6_12];

impl Version {
    pub const fn phase(self) -> &'static str {
        match self {
            Self::V5_10 => "Linux 5.10",
            Self::V6_1 => "Linux 6.1",
            Self::V6_12 => "Linux 6.12",
            Self::Newest => "newest Linux",
        }
    }

    const fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Newest => "sid",
        }
    }
}

/// How much of the tests runs on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A minute: the programs load, attach and forward.
    Smoke,
    /// What fits an emulated machine.
    Lab,
}

impl Extent {
    /// The short selection mostly waits: by a clock of instructions that takes a third less time, and deadlines do not
    /// depend on what else this machine does. The long one needs both CPUs.
    const fn machine(self) -> Machine {
        match self {
            Self::Smoke => Machine {
                clock: Clock::Instructions,
                cpus: 1,
            },
            Self::Lab => Machine {
                clock: Clock::Real,
                cpus: CPUS,
            },
        }
    }

    /// Whether somebody asked for this very kernel, so that it must be had; else it is skipped where it cannot.
    const fn is_asked_for(self) -> bool {
        matches!(self, Self::Lab)
    }
}

/// Tests of one file.
struct Selection {
    file: &'static str,
    /// Of a file with more tests, those whose name contains this text.
    only: Option<&'static str>,
    extent: Extent,
    /// Time limit.
    seconds: u32,
}

/// A filter names no test of a selection.
struct LeftOut;

impl Selection {
    /// The text that names of its tests must contain, with that of a filter, which may be the file's name; an
    /// error if the filter leaves it out. Test programs know no "and".
    fn filter<'a>(&self, filter: Option<&'a str>) -> Result<Option<&'a str>, LeftOut> {
        match (self.only, filter) {
            (only, Some(filter)) if filter == self.file => Ok(only),
            (None, filter) => Ok(filter),
            (only, None) => Ok(only),
            (Some(only), Some(filter)) if filter.contains(only) => Ok(Some(filter)),
            _ => Err(LeftOut),
        }
    }
}

const SELECTIONS: &[Selection] = &[
    Selection {
        file: "kernel_smoke",
        only: None,
        extent: Extent::Smoke,
        seconds: 900,
    },
    Selection {
        file: "kernel_devices",
        only: None,
        extent: Extent::Lab,
        seconds: 1800,
    },
    Selection {
        file: "kernel_backends",
        only: None,
        extent: Extent::Lab,
        seconds: 3600,
    },
    Selection {
        file: "kernel_ipsec",
        only: None,
        extent: Extent::Lab,
        seconds: 900,
    },
    Selection {
        file: "kernel_sctp",
        only: None,
        extent: Extent::Lab,
        seconds: 900,
    },
    Selection {
        file: "kernel_trouble",
        only: None,
        extent: Extent::Lab,
        seconds: 900,
    },
    Selection {
        file: "cni",
        only: Some("netkit"),
        extent: Extent::Lab,
        seconds: 1800,
    },
    Selection {
        file: "udp",
        only: Some("established_flows_are_fast"),
        extent: Extent::Lab,
        seconds: 900,
    },
    Selection {
        file: "service_flows",
        only: Some("ipvs"),
        extent: Extent::Lab,
        seconds: 3600,
    },
];

/// What a run on a kernel needs besides the kernel.
pub struct Run<'a> {
    pub workspace: &'a Workspace,
    pub programs: &'a [Program],
    pub extent: Extent,
    /// Only tests whose name contains this text.
    pub filter: Option<&'a str>,
}

impl Run<'_> {
    /// Fetches the kernel, unless it is there, boots it and runs the tests.
    pub fn on(&self, version: Version) -> Outcome {
        let dir = self.workspace.kernels().join(version.suite());
        let kernel = match fetch::fetch(version.suite(), &dir) {
            Ok(kernel) => kernel,
            Err(error) => return self.unavailable(version, &error),
        };
        self.boot(&kernel)
            .unwrap_or_else(|error| Outcome::broken(format!("{error:#}")))
    }

    /// The outcome for a kernel that cannot be had here.
    pub fn unavailable(&self, version: Version, error: &Error) -> Outcome {
        let reason = format!("{} cannot be had: {error:#}", version.phase());
        println!("{reason}");
        if self.extent.is_asked_for() {
            Outcome::broken(reason)
        } else {
            Outcome::skipped(reason)
        }
    }

    fn boot(&self, kernel: &Kernel) -> Result<Outcome> {
        let out = self.workspace.kernels().join("runs").join(&kernel.release);
        let tasks = tasks(self.programs, self.extent, self.filter)?;
        let mut command = vm::prepare(kernel, &tasks, self.extent.machine(), &out)?;
        println!(
            "Booting {}; its logs are in {}",
            kernel.release,
            out.display()
        );
        let mut reading = Reading::new(self.filter.is_none());
        process::stream(&mut command, |line| {
            println!("{}: {line}", kernel.release);
            reading.line(line);
        })?;
        Ok(reading.outcome(&vm::last_words(&out)))
    }
}

/// Runs a program on a kernel, by a clock that counts its instructions, and shows what it prints.
pub fn show(workspace: &Workspace, version: Version, words: Vec<String>) -> Result<()> {
    let dir = workspace.kernels().join(version.suite());
    let kernel = fetch::fetch(version.suite(), &dir)?;
    let out = workspace.kernels().join("runs").join("shown");
    let task = Task {
        seconds: SHOWN_SECONDS,
        words,
    };
    let machine = Machine {
        clock: Clock::Instructions,
        cpus: CPUS,
    };
    let mut command = vm::prepare(&kernel, &[task], machine, &out)?;
    let mut status = None;
    process::stream(&mut command, |line| match vm::ended(line) {
        Some((ended, _)) => status = Some(ended.to_owned()),
        None if line != vm::END => println!("{line}"),
        None => {}
    })?;
    match status.as_deref() {
        Some("0") => Ok(()),
        Some(status) => bail!("it ended with status {status}"),
        None => bail!(
            "the virtual machine ended early; its console ends\n{}",
            vm::last_words(&out)
        ),
    }
}

/// By this machine's clock, too, by which it takes ten times as long or more.
const SHOWN_SECONDS: u32 = 7200;

/// Those of a run, with the texts that names of their tests must contain.
fn selections(extent: Extent, filter: Option<&str>) -> Vec<(&'static Selection, Option<&str>)> {
    let is_named = |selection: &Selection| filter == Some(selection.file);
    let named = SELECTIONS.iter().any(is_named);
    let of_extent = |selection: &&Selection| {
        (extent == Extent::Lab || selection.extent == Extent::Smoke)
            && (!named || is_named(selection))
    };
    let of_extent = SELECTIONS.iter().filter(of_extent);
    of_extent
        .filter_map(|selection| Some((selection, selection.filter(filter).ok()?)))
        .collect()
}

/// Builds the test programs of a run of the lab's extent, and what they start.
pub fn build(workspace: &Workspace, filter: Option<&str>) -> Result<Vec<Program>> {
    let selections = selections(Extent::Lab, filter).into_iter();
    let files: Vec<_> = selections.map(|(selection, _)| selection.file).collect();
    programs::build_some(workspace, &files)
}

fn tasks(programs: &[Program], extent: Extent, filter: Option<&str>) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for (selection, text) in selections(extent, filter) {
        let program = programs::find(programs, selection.file)?;
        // It takes seconds to start there, for nothing if it has no such test.
        if filter.is_some() && program.tests(text)?.is_empty() {
            continue;
        }
        let path = program.path.to_str().context("a path that is not UTF-8")?;
        let words = [path, "--color=never", "--nocapture", "--test-threads=2"];
        tasks.push(Task {
            seconds: selection.seconds,
            words: words.into_iter().chain(text).map(str::to_owned).collect(),
        });
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_picks_of_the_tests_that_a_selection_has() {
        let selection = |only| Selection {
            file: "file",
            only,
            extent: Extent::Lab,
            seconds: 1,
        };
        let picked = |only, filter| selection(only).filter(filter).ok();
        assert_eq!(picked(None, None), Some(None));
        assert_eq!(picked(None, Some("a")), Some(Some("a")));
        assert_eq!(picked(Some("ipvs"), None), Some(Some("ipvs")));
        assert_eq!(
            picked(Some("ipvs"), Some("with_ipvs")),
            Some(Some("with_ipvs"))
        );
        assert_eq!(picked(Some("ipvs"), Some("outcome")), None);
        assert_eq!(picked(None, Some("file")), Some(None));
        assert_eq!(picked(Some("ipvs"), Some("file")), Some(Some("ipvs")));
    }

    #[test]
    fn a_filter_that_names_a_file_picks_no_other() {
        let files = |extent, filter| {
            let picked = selections(extent, filter).into_iter();
            picked
                .map(|(selection, _)| selection.file)
                .collect::<Vec<_>>()
        };
        assert_eq!(files(Extent::Lab, Some("kernel_sctp")), ["kernel_sctp"]);
        assert_eq!(files(Extent::Lab, None).len(), SELECTIONS.len());
        assert_eq!(files(Extent::Smoke, None), ["kernel_smoke"]);
    }
}
