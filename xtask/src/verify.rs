//! Whether the same sources make the same programs elsewhere: they are built once more, from a copy in another
//! folder with nothing built in it, and compared byte by byte.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, command},
    release::{self, Build},
    workspace::Workspace,
};

/// Compares what was built.
pub fn run(workspace: &Workspace, args: &Build) -> Result<()> {
    let copy = workspace.root().join("target/verify/elsewhere");
    if copy.exists() {
        fs::remove_dir_all(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    }
    take_sources(workspace, &copy)?;
    println!("Building once more, in {}", copy.display());
    let mut build = process::cargo();
    build
        .current_dir(&copy)
        .env_remove("CARGO_TARGET_DIR")
        .args(["run", "--locked", "--package", "xtask", "--", "release"]);
    if let Some(arch) = args.arch {
        build.args(["--arch", arch.name()]);
    }
    if args.cloud {
        build.arg("--cloud");
    }
    process::run(&mut build)?;
    let [dir, again] = [workspace.root(), &copy].map(|root| release::directory(root, args.arch));
    let mut differ = Vec::new();
    for &program in args.programs() {
        if read(&dir.join(program))? == read(&again.join(program))? {
            println!("{program}: the same file");
        } else {
            differ.push(program);
        }
    }
    if !differ.is_empty() {
        bail!(
            "other files than in {}: {}; both builds stay",
            again.display(),
            differ.join(", ")
        );
    }
    fs::remove_dir_all(&copy).with_context(|| format!("cannot remove {}", copy.display()))
}

/// What git knows of, as it is now; and the tools, which are not compared.
fn take_sources(workspace: &Workspace, copy: &Path) -> Result<()> {
    let root = workspace.root();
    let list = process::output(command("git").current_dir(root).args(["ls-files", "-z"]))?;
    for name in list.split_terminator('\0') {
        let (from, to) = (root.join(name), copy.join(name));
        let take = || -> std::io::Result<()> {
            fs::create_dir_all(to.parent().unwrap_or(copy))?;
            fs::copy(&from, &to).map(drop)
        };
        take().with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let target = copy.join("target");
    fs::create_dir_all(&target)?;
    symlink(workspace.tools(), target.join("tools")).context("cannot link the tools")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
