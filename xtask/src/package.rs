//! `cargo xtask package`: the release as Debian and RPM packages, with manual pages, completions and a
//! list of the crates that are in it. What speaks with clouds has packages of its own.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    cloud,
    prereq::Group,
    process::{self, command},
    release::{self, Build, PROGRAM},
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
    let dir = release::build(&workspace, &mut installer, &args.release)?;
    let contents = workspace.root().join(CONTENTS);
    fs::create_dir_all(&contents)
        .with_context(|| format!("cannot create {}", contents.display()))?;
    for program in args.release.programs() {
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
    let changes = workspace.root().join("CHANGELOG.md");
    let changes = fs::read_to_string(&changes)
        .with_context(|| format!("cannot read {}", changes.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    let notes = notes(&changes, version)
        .with_context(|| format!("CHANGELOG.md has neither {version} nor Unreleased"))?;
    write(&dir, NOTES, notes)?;
    let of_clouds = args.release.cloud.then_some(cloud::PROGRAM);
    for package in [PROGRAM].into_iter().chain(of_clouds) {
        let log = format!("{package}.changelog");
        write(&contents, &log, &changelog(package, &date))?;
        let maker = Maker {
            workspace: &workspace,
            release: &args.release,
            epoch: &epoch,
            package,
        };
        maker.make(&dir)?;
    }
    lint(&dir)?;
    if args.verify {
        verify::run(&workspace, &args.release)?;
    }
    Ok(())
}

/// What makes a package of what was built. It has the name of its crate.
struct Maker<'a> {
    workspace: &'a Workspace,
    release: &'a Build,
    epoch: &'a str,
    package: &'static str,
}

impl Maker<'_> {
    /// Writes the packages and the list of crates to `dir`.
    fn make(&self, dir: &Path) -> Result<()> {
        let manifest = format!("{}/Cargo.toml", self.package);
        process::run(
            self.tool(&DEB, "deb")?
                .args(["--manifest-path", &manifest, "--no-build", "--no-strip"])
                .arg("--output")
                .arg(dir),
        )?;
        process::run(
            self.tool(&RPM, "generate-rpm")?
                .args(["--package", self.package, "--source-date", self.epoch])
                .arg("--output")
                .arg(dir),
        )?;
        let list = ["--format", "json", "--manifest-path", &manifest];
        process::run(self.tool(&SBOM, "cyclonedx")?.args(list))?;
        self.take_list(dir)
    }

    fn tool(&self, tool: &Tool, name: &str) -> Result<Command> {
        let mut cargo = command(tool.ensure(self.workspace)?);
        cargo
            .current_dir(self.workspace.root())
            .env("SOURCE_DATE_EPOCH", self.epoch)
            .arg(name);
        if self.package == cloud::PROGRAM {
            cargo.env("CARGO_TARGET_DIR", self.workspace.cloud());
        }
        if let Some(arch) = self.release.arch {
            cargo.args(["--target", arch.triple()]);
        }
        Ok(cargo)
    }

    /// The tool writes one list into each crate of the workspace. Ours is the package's.
    fn take_list(&self, dir: &Path) -> Result<()> {
        let root = self.workspace.root();
        for entry in
            fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?
        {
            let member = entry?.file_name();
            let name = format!("{}.cdx.json", member.display());
            let list = root.join(&member).join(&name);
            if !list.is_file() {
                continue;
            }
            let done = if member == self.package {
                fs::rename(&list, dir.join(&name))
            } else {
                fs::remove_file(&list)
            };
            done.with_context(|| format!("cannot move {}", list.display()))?;
        }
        Ok(())
    }
}

/// In Debian's form, which has no room for more than a pointer.
fn changelog(package: &str, date: &str) -> String {
    format!(
        "{package} ({}) unstable; urgency=medium\n\n  * Release. What has changed is in \
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
