//! `cargo xtask package`: the release as Debian and RPM packages, with manual pages, completions and a
//! list of the crates that are in it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    prereq::Group,
    process::{self, command},
    release::{self, Args, PROGRAM},
    tool::Tool,
    workspace::Workspace,
};

const DEB: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
};
const RPM: Tool = Tool {
    name: "cargo-generate-rpm",
    version: "0.21.1",
};
const SBOM: Tool = Tool {
    name: "cargo-cyclonedx",
    version: "0.5.9",
};

pub fn run(args: &Args) -> Result<()> {
    let (workspace, mut installer) = release::start(args, &[Group::HostBuild, Group::Packages])?;
    let dir = release::build(&workspace, &mut installer)?;
    let epoch = workspace.commit_time()?;
    // Texts only: as tests build it, which may have done so already.
    process::run(
        process::cargo()
            .current_dir(workspace.root())
            .args([
                "run",
                "--locked",
                "--package",
                PROGRAM,
                "--example",
                "manual",
                "--",
            ])
            .arg(&dir),
    )?;
    let date = workspace.commit("%cD")?;
    write(&dir, "changelog", &changelog(&date))?;
    let subcommand = |tool: &Tool, name: &str| -> Result<_> {
        let mut cargo = command(tool.ensure(&workspace)?);
        cargo
            .current_dir(workspace.root())
            .env("SOURCE_DATE_EPOCH", &epoch)
            .arg(name);
        Ok(cargo)
    };
    process::run(
        subcommand(&DEB, "deb")?
            .args(["--package", PROGRAM, "--no-build", "--no-strip"])
            .arg("--output")
            .arg(&dir),
    )?;
    process::run(
        subcommand(&RPM, "generate-rpm")?
            .args(["--package", PROGRAM, "--source-date", &epoch])
            .arg("--output")
            .arg(&dir),
    )?;
    process::run(subcommand(&SBOM, "cyclonedx")?.args([
        "--format",
        "json",
        "--manifest-path",
        "overlay-agent/Cargo.toml",
    ]))?;
    take_list(&workspace, &dir)?;
    lint(&dir)
}

/// The tool writes one list into each crate of the workspace. Ours is the agent's.
fn take_list(workspace: &Workspace, dir: &Path) -> Result<()> {
    let root = workspace.root();
    for entry in fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))? {
        let member = entry?.file_name();
        let name = format!("{}.cdx.json", member.display());
        let list = root.join(&member).join(&name);
        if !list.is_file() {
            continue;
        }
        let done = if member == PROGRAM {
            fs::rename(&list, dir.join(&name))
        } else {
            fs::remove_file(&list)
        };
        done.with_context(|| format!("cannot move {}", list.display()))?;
    }
    Ok(())
}

/// In Debian's form, which has no room for more than a pointer.
fn changelog(date: &str) -> String {
    format!(
        "{PROGRAM} ({}) unstable; urgency=medium\n\n  * Release. What has changed is in \
         CHANGELOG.md.\n\n -- The overlay maintainers <maintainers@overlay.example>  {date}\n",
        env!("CARGO_PKG_VERSION"),
    )
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What Debian's own checker has against the package.
fn lint(dir: &Path) -> Result<()> {
    let mut packages = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let is = |kind: &str| path.extension().is_some_and(|end| end == kind);
        if is("deb") || is("rpm") {
            println!("{}", path.display());
        }
        if is("deb") {
            packages.push(path);
        }
    }
    process::run(
        command("lintian")
            .args(["--fail-on", "error,warning", "--allow-root"])
            .args(packages),
    )
}
