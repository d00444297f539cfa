//! `cargo xtask release`: the programs as they are installed, and the debug information of each in a file of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    arch::Arch,
    build_ebpf, cloud,
    prereq::{Group, Installer},
    process::{self, command},
    workspace::Workspace,
};

/// As the release profile, but not stripped.
const PROFILE: &str = "dist";
pub const PROGRAM: &str = "overlay-agent";
pub const PLUGIN: &str = "overlay-cni";

#[derive(clap::Args)]
pub struct Build {
    /// Install missing system packages, as root
    #[arg(long)]
    install: bool,
    /// For machines of another architecture
    #[arg(long)]
    pub arch: Option<Arch>,
    /// Also overlay-cloud, for nodes with the backends aws-vpc and gce: it gets packages and an image of its own
    #[arg(long)]
    pub cloud: bool,
}

impl Build {
    /// What is built.
    pub const fn programs(&self) -> &'static [&'static str] {
        if self.cloud {
            &[PROGRAM, PLUGIN, cloud::PROGRAM]
        } else {
            &[PROGRAM, PLUGIN]
        }
    }
}

pub fn run(args: &Build) -> Result<()> {
    let (workspace, mut installer) = start(args, &[])?;
    build(&workspace, &mut installer, args).map(drop)
}

/// What the commands begin with that build on the release. `groups`: what they need besides.
pub fn start(args: &Build, groups: &[Group]) -> Result<(Workspace, Installer)> {
    let mut installer = Installer::new(args.install);
    installer.ensure(&[&[Group::HostBuild], groups].concat())?;
    if let Some(arch) = args.arch {
        arch.ensure(&mut installer, &[Group::OtherArch])?;
    }
    Ok((Workspace::locate(), installer))
}

/// Builds the programs, and returns the directory they are in. The BPF object is the same for all architectures: the
/// programs in it know nothing of the machine but the order of its bytes.
pub fn build(workspace: &Workspace, installer: &mut Installer, args: &Build) -> Result<PathBuf> {
    let arch = args.arch;
    build_ebpf::build_both(workspace, installer)?;
    let mut cargo = cargo(workspace);
    cargo.args(["--package", PROGRAM, "--package", PLUGIN]);
    let built = Arch::build_for(arch, &mut cargo, workspace.root().join("target"));
    process::run(&mut cargo)?;
    let dir = directory(workspace.root(), arch);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for program in [PROGRAM, PLUGIN] {
        strip(&built.join(PROFILE).join(program), &dir, program, arch)?;
    }
    if args.cloud {
        let program = dir.join(cloud::PROGRAM);
        fs::copy(cloud::release(workspace, arch)?, &program)
            .with_context(|| format!("cannot write {}", program.display()))?;
        tell(&program)?;
    }
    Ok(dir)
}

/// Where below the root of a workspace the programs are, and the packages.
pub fn directory(root: &Path, arch: Option<Arch>) -> PathBuf {
    root.join("target/package").join(of(arch, Arch::name))
}

/// What an architecture is called, or its tools begin with; nothing for this machine's.
pub fn of(arch: Option<Arch>, name: impl FnOnce(Arch) -> &'static str) -> &'static str {
    arch.map_or("", name)
}

/// Parts a program in what is installed and its debug information, and says how large they are.
fn strip(built: &Path, dir: &Path, program: &str, arch: Option<Arch>) -> Result<()> {
    let objcopy = || {
        let mut objcopy = objcopy(arch);
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

/// What takes programs of an architecture apart.
pub fn objcopy(arch: Option<Arch>) -> Command {
    command(format!("{}objcopy", of(arch, Arch::prefix)))
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
