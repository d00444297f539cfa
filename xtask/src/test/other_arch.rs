//! The unit tests of the programs for another architecture, each system call translated by qemu.

use anyhow::Result;

use super::{
    Outcome,
    programs::{self, Program},
};
use crate::{
    arch::Arch,
    prereq::{Group, Installer},
    process::{self, command},
    workspace::Workspace,
};

/// Whatever is in these and has no need of a real kernel underneath.
const PACKAGES: [&str; 3] = ["overlay-common", "overlay-agent", "overlay-cni"];

/// Tests of what qemu has no translation for, by the beginnings of their names, and what that is.
const UNTRANSLATED: &[(&str, &str)] = &[
    (
        "backend::extension::command::tests::a_failure_tells_its_status_and_output",
        "vfork(2) that shares memory, by which it is told that a command cannot be started",
    ),
    (
        "datapath::offload::tests::the_kernel_tells_of_devices_there_are",
        "SIOCETHTOOL of ioctl(2)",
    ),
];

/// Builds and runs them; a skipped test where the architecture's library cannot be had.
pub fn run(
    workspace: &Workspace,
    installer: &mut Installer,
    arch: Arch,
    filter: Option<&str>,
) -> Outcome {
    if let Err(error) = arch.ensure(installer, &[Group::OtherArch]) {
        return Outcome::skipped(format!("{error:#}"));
    }
    let built = build(workspace, arch);
    let programs = match built {
        Ok(programs) => programs,
        Err(error) => return Outcome::broken(format!("{error:#}")),
    };
    let mut outcome = Outcome::default();
    for program in &programs {
        println!("{}, {}", program.name, arch.name());
        let run = |words: &[&str]| {
            let [emulator, rest @ ..] = arch.emulator();
            let mut test = command(emulator);
            test.args(rest)
                .arg(&program.path)
                .current_dir(&program.package)
                .env("CARGO_MANIFEST_DIR", &program.package)
                .args(["--color=never"])
                .args(filter)
                .args(words);
            test
        };
        let listed = match process::output(&mut run(&["--list", "--format=terse"])) {
            Ok(listed) => listed,
            Err(error) => return Outcome::broken(format!("{error:#}")),
        };
        let mut words = Vec::new();
        for name in listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
        {
            let why = UNTRANSLATED
                .iter()
                .find(|(beginning, _)| name.starts_with(beginning));
            if let Some((_, why)) = why {
                println!("skipped: {name}: qemu has no {why}");
                words.extend(["--skip", name]);
                outcome.counts.skipped += 1;
            }
        }
        outcome.add(super::run_tests(&mut run(&words)));
    }
    if filter.is_none() && outcome.counts.ran() == 0 {
        outcome.fail("no unit test ran".to_owned());
    }
    outcome
}

fn build(workspace: &Workspace, arch: Arch) -> Result<Vec<Program>> {
    let mut arguments = vec!["--lib", "--bins", "--target", arch.triple()];
    arguments.extend(PACKAGES.iter().flat_map(|package| ["--package", package]));
    programs::build(workspace, &arguments, &arch.variables())
}
