//! `cargo xtask package`: the release as Debian and RPM packages, with manual pages, completions and a
//! list of the crates that are in it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    prereq::Group,
    process::{self, command},
    release::{self, PLUGIN, PROGRAM},
    tool::Tool,
    verify,
    workspace::Workspace,
};

/// What the lists of `overlay-agent/Cargo.toml` take into packages, below the root.
const CONTENTS: &str = "target/package/contents";

/// What has changed, for whoever publishes the release.
const NOTES: &str = "NOTES.md";

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

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    release: release::Build,
    /// Build the programs once more elsewhere, and fail unless they are the same
    #[arg(long)]
    verify: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let (workspace, mut installer) = release::start(&args.release, &[Group::Packages])?;
    let arch = args.release.arch;
    let dir = release::build(&workspace, &mut installer, arch)?;
    let contents = workspace.root().join(CONTENTS);
    fs::create_dir_all(&contents)
        .with_context(|| format!("cannot create {}", contents.display()))?;
    for program in [PROGRAM, PLUGIN] {
        fs::copy(dir.join(program), contents.join(program))
            .with_context(|| format!("cannot copy {program}"))?;
    }
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
            .arg(&contents),
    )?;
    let date = workspace.commit("%cD")?;
    write(&contents, "changelog", &changelog(&date))?;
    let changes = workspace.root().join("CHANGELOG.md");
    let changes = fs::read_to_string(&changes)
        .with_context(|| format!("cannot read {}", changes.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    let notes = notes(&changes, version)
        .with_context(|| format!("CHANGELOG.md has neither {version} nor Unreleased"))?;
    write(&dir, NOTES, notes)?;
    let subcommand = |tool: &Tool, name: &str| -> Result<_> {
        let mut cargo = command(tool.ensure(&workspace)?);
        cargo
            .current_dir(workspace.root())
            .env("SOURCE_DATE_EPOCH", &epoch)
            .arg(name);
        if let Some(arch) = arch {
            cargo.args(["--target", arch.triple()]);
        }
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
    lint(&dir)?;
    if args.verify {
        verify::run(&workspace, arch)?;
    }
    Ok(())
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

/// The section of a version in the changelog, without its title; before it has one, what is not released yet.
fn notes<'a>(changes: &'a str, version: &str) -> Option<&'a str> {
    let section = |title: &str| {
        let (_, rest) = changes.split_once(&format!("\n## [{title}]"))?;
        let (_, text) = rest.split_once('\n')?;
        let end = text.find("\n## ").map_or(text.len(), |end| end + 1);
        Some(text[..end].trim_start_matches('\n'))
    };
    section(version).or_else(|| section("Unreleased"))
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

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGES: &str = "# Changelog\n\n## [Unreleased]\n\n- later\n\n## [0.2.0] - 2026-01-02\n\n\
        ### Added\n\n- new\n\n## [0.1.0] - 2026-01-01\n\n- first\n";

    #[test]
    fn the_notes_of_a_release_are_its_section_of_the_changelog() {
        assert_eq!(notes(CHANGES, "0.2.0"), Some("### Added\n\n- new\n\n"));
        assert_eq!(notes(CHANGES, "0.1.0"), Some("- first\n"));
        assert_eq!(notes(CHANGES, "0.3.0"), Some("- later\n\n"));
        assert_eq!(notes("# Changelog\n", "0.1.0"), None);
    }
}
