//! The unit tests of the programs for another architecture, each system call translated by qemu.

use anyhow::Result;

use super::{
    Outcome,
    programs::{self, Program},
};
use crate::{
    arch::Arch,
    prereq::{Group, Installer},
    process::command,
    workspace::Workspace,
};

/// Whatever is in these and has no need of a real kernel underneath.
const PACKAGES: [&str; 3] = ["overlay-common", "overlay-agent", "overlay-cni"];

/// Tests of the kernel's own interfaces, by the beginnings of their names, of which qemu has no translation.
const UNTRANSLATED: [&str; 0] = [];

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
        let [emulator, rest @ ..] = arch.emulator();
        let mut test = command(emulator);
        test.args(rest)
            .arg(&program.path)
            .current_dir(&program.package)
            .env("CARGO_MANIFEST_DIR", &program.package)
            .arg("--color=never");
        for name in UNTRANSLATED {
            test.args(["--skip", name]);
        }
        outcome.add(super::test(test.args(filter)));
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
