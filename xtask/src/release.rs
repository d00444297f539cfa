//! `cargo xtask release`: the programs as they are installed, and the debug information of each in a file of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    arch::Arch,
    build_ebpf,
    prereq::{Group, Installer},
    process::{self, command},
    workspace::Workspace,
};

/// As the release profile, but not stripped.
const PROFILE: &str = "dist";
pub const PROGRAM: &str = "overlay-agent";
pub const PLUGIN: &str = "overlay-cni";

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    install: Install,
    /// For machines of another architecture
    #[arg(long)]
    arch: Option<Arch>,
}

#[derive(clap::Args)]
pub struct Install {
    /// Install missing system packages, as root
    #[arg(long)]
    install: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let (workspace, mut installer) = start(&args.install, &[Group::HostBuild])?;
    match args.arch {
        Some(arch) => build_for(&workspace, &mut installer, arch),
        None => build(&workspace, &mut installer).map(drop),
    }
}

/// What the commands begin with that build on the release.
pub fn start(args: &Install, groups: &[Group]) -> Result<(Workspace, Installer)> {
    let mut installer = Installer::new(args.install);
    installer.ensure(groups)?;
    Ok((Workspace::locate(), installer))
}

/// Builds the programs, and returns the directory they are in.
pub fn build(workspace: &Workspace, installer: &mut Installer) -> Result<PathBuf> {
    build_ebpf::build_both(workspace, installer)?;
    process::run(cargo(workspace).args(["--package", PROGRAM, "--package", PLUGIN]))?;
    let built = workspace.root().join("target").join(PROFILE);
    let dir = workspace.root().join("target/package");
    strip_both(&built, &dir, "")?;
    Ok(dir)
}

/// Builds the programs for another architecture. The BPF object is the same: the programs in it know nothing of
/// the machine but the order of its bytes.
fn build_for(workspace: &Workspace, installer: &mut Installer, arch: Arch) -> Result<()> {
    arch.ensure(installer, &[Group::OtherArch])?;
    build_ebpf::build_both(workspace, installer)?;
    let target = ["--target", arch.triple(), "--package", PROGRAM];
    process::run(
        cargo(workspace)
            .envs(arch.variables())
            .args(target)
            .args(["--package", PLUGIN]),
    )?;
    let root = workspace.root();
    let built = root.join("target").join(arch.triple()).join(PROFILE);
    let dir = root.join("target/package").join(arch.name());
    strip_both(&built, &dir, arch.prefix())
}

fn strip_both(built: &Path, dir: &Path, prefix: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for program in [PROGRAM, PLUGIN] {
        strip(&built.join(program), dir, program, prefix)?;
    }
    Ok(())
}

/// Parts a program in what is installed and its debug information, and says how large they are.
/// `prefix`: of the name of the tool.
fn strip(built: &Path, dir: &Path, program: &str, prefix: &str) -> Result<()> {
    let objcopy = || {
        let mut objcopy = command(format!("{prefix}objcopy"));
        objcopy.current_dir(dir);
        objcopy
    };
    let debug = format!("{program}.debug");
    process::run(objcopy().arg("--only-keep-debug").arg(built).arg(&debug))?;
    // The names of functions stay, for backtraces. The link is a file's name and checksum.
    process::run(
        objcopy()
            .args(["--strip-debug", &format!("--add-gnu-debuglink={debug}")])
            .arg(built)
            .arg(program),
    )?;
    for file in [program, &debug] {
        tell(&dir.join(file))?;
    }
    Ok(())
}

/// Says what was made, and how large it is.
pub fn tell(path: &Path) -> Result<()> {
    let size = fs::metadata(path).with_context(|| format!("no {}", path.display()))?;
    println!("{} ({} kB)", path.display(), size.len() / 1000);
    Ok(())
}

fn cargo(workspace: &Workspace) -> Command {
    let mut cargo = process::cargo();
    cargo
        .current_dir(workspace.root())
        .env("CARGO_ENCODED_RUSTFLAGS", workspace.remaps().join("\x1f"))
        .args(["build", "--locked", "--profile", PROFILE]);
    cargo
}
