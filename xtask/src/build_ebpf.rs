//! `cargo xtask build-ebpf`: compiles `overlay-ebpf` to `target/bpf/overlay.o`, and with `--log` to
//! `target/bpf/overlay-log.o` as well.
//!
//! See docs/adr/0001-bpf-toolchain.md for the choice of toolchain and flags.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    debug_info, fingerprint,
    linker::{self, Linker},
    object_check,
    prereq::{Group, Installer},
    process::{self, command},
    rustc, stats,
    toolchain::{self, Toolchain},
    workspace::Workspace,
};

const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "overlay";

#[derive(clap::Args)]
pub struct Args {
    /// Install missing packages and build bpf-linker (packages need root)
    #[arg(long)]
    pub install: bool,
    /// Build the flavour whose programs log packets, too: an agent built afterwards has
    /// --datapath-log
    #[arg(long)]
    pub log: bool,
    /// Load the object, print what the verifier made of each program, and compare with the budget
    /// (as root)
    #[arg(long)]
    pub stats: bool,
}

/// What is compiled of the programs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// What every agent runs.
    Quiet,
    /// With the `log` feature.
    Logging,
}

impl Flavour {
    fn object(self, workspace: &Workspace) -> PathBuf {
        match self {
            Self::Quiet => workspace.object(),
            Self::Logging => workspace.logging_object(),
        }
    }

    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Quiet => &[],
            Self::Logging => &["--features", "log"],
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::locate();
    let mut installer = Installer::new(args.install);
    let object = if args.log {
        build_both(&workspace, &mut installer)?
    } else {
        build(&workspace, &mut installer)?
    };
    if args.stats {
        stats::print(&object, &workspace.bpf_budget())?;
    }
    Ok(())
}

/// Builds the object if its inputs changed; returns its path. A logging flavour of other inputs is
/// removed: the agent would embed it.
pub fn build(workspace: &Workspace, installer: &mut Installer) -> Result<PathBuf> {
    let (toolchain, linker) = tools(workspace, installer)?;
    let logging = Flavour::Logging.object(workspace);
    if logging.exists() && !is_current(&logging, &stamp(workspace, &toolchain, &linker)?) {
        println!("BPF object: {} is outdated, removed", logging.display());
        fs::remove_file(&logging)
            .with_context(|| format!("cannot remove {}", logging.display()))?;
    }
    build_flavour(workspace, &toolchain, &linker, Flavour::Quiet)
}

/// Builds both flavours of the object where inputs changed; returns the path of the one without logging.
pub fn build_both(workspace: &Workspace, installer: &mut Installer) -> Result<PathBuf> {
    let (toolchain, linker) = tools(workspace, installer)?;
    build_flavour(workspace, &toolchain, &linker, Flavour::Logging)?;
    build_flavour(workspace, &toolchain, &linker, Flavour::Quiet)
}

fn build_flavour(
    workspace: &Workspace,
    toolchain: &Toolchain,
    linker: &Linker,
    flavour: Flavour,
) -> Result<PathBuf> {
    let stamp = stamp(workspace, toolchain, linker)?;
    let object = flavour.object(workspace);
    if is_current(&object, &stamp) {
        println!("BPF object: {} is up to date", object.display());
        return Ok(object);
    }

    let started = Instant::now();
    compile(workspace, toolchain, linker, flavour)?;
    let built = workspace
        .ebpf_target()
        .join(TARGET)
        .join("release")
        .join(BINARY);
    let content = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let content = debug_info::remove(&content)
        .with_context(|| format!("{} is not acceptable", built.display()))?;
    let contents = object_check::check(&content, flavour)
        .with_context(|| format!("{} is not acceptable", built.display()))?;
    install_object(&content, &object)?;
    let stamp_file = stamp_file(&object);
    fs::write(&stamp_file, stamp)
        .with_context(|| format!("cannot write {}", stamp_file.display()))?;
    println!(
        "BPF object: {} built in {:.1} s\n  programs: {}\n  maps: {}",
        object.display(),
        started.elapsed().as_secs_f32(),
        contents.programs.join(" "),
        contents.maps.join(" ")
    );
    Ok(object)
}

/// Names the inputs the object was built from.
fn stamp_file(object: &Path) -> PathBuf {
    object.with_extension("stamp")
}

fn is_current(object: &Path, stamp: &str) -> bool {
    object.exists()
        && fs::read_to_string(stamp_file(object)).is_ok_and(|recorded| recorded == stamp)
}

/// Finds compiler and linker, installing what is missing. Looks for both first, so that whoever may
/// not install gets one complete list of commands.
fn tools(workspace: &Workspace, installer: &mut Installer) -> Result<(Toolchain, Linker)> {
    let toolchain = toolchain::find()?;
    let linker = linker::find(workspace)?;
    let mut groups = Vec::new();
    if toolchain.is_none() {
        println!("{}", toolchain::options());
        groups.push(Group::BpfToolchain);
    }
    if linker.is_none() {
        groups.push(Group::BpfLinker);
        if !installer.allowed() {
            println!(
                "Once its libraries are installed, bpf-linker is built with\n  {}",
                linker::build_line(workspace)
            );
        }
    }
    installer.ensure(&groups)?;
    let toolchain = match toolchain {
        Some(found) => found,
        None => toolchain::find()?
            .context("the installed packages are too old: is bookworm-security enabled?")?,
    };
    let linker = match linker {
        Some(found) => found,
        None if installer.allowed() => {
            linker::build(workspace)?;
            linker::find(workspace)?.context("the bpf-linker just built does not work")?
        }
        None => bail!("bpf-linker is missing: run the command above, or add --install"),
    };
    Ok((toolchain, linker))
}

fn compile(
    workspace: &Workspace,
    toolchain: &Toolchain,
    linker: &Linker,
    flavour: Flavour,
) -> Result<()> {
    let flags = flags(workspace, linker);
    forget_other_wrappers(&workspace.ebpf_target())?;
    let mut cargo = command(&toolchain.cargo);
    cargo
        .current_dir(workspace.ebpf_crate())
        .args(["build", "--release", "--bin", BINARY])
        .args(["-Z", "build-std=core", "--target", TARGET])
        .args(flavour.features())
        .env("CARGO_TARGET_DIR", workspace.ebpf_target())
        // Takes precedence over RUSTFLAGS and over the user's cargo configuration.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_WRAPPER", env::current_exe()?)
        .env(rustc::VARIABLE, "1")
        // Lets a stable compiler accept -Z build-std.
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN");
    process::run(&mut cargo).context("the BPF programs do not build")
}

/// Removes what was built with another stand-in for the compiler: cargo, which does not look at it, would use it again.
fn forget_other_wrappers(target: &Path) -> Result<()> {
    const WRAPPER: &str = include_str!("rustc.rs");
    let note = target.join("wrapper.rs");
    if fs::read(&note).is_ok_and(|noted| noted == WRAPPER.as_bytes()) {
        return Ok(());
    }
    if target.exists() {
        fs::remove_dir_all(target)
            .with_context(|| format!("cannot remove {}", target.display()))?;
    }
    fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
    fs::write(&note, WRAPPER).with_context(|| format!("cannot write {}", note.display()))
}

fn flags(workspace: &Workspace, linker: &Linker) -> Vec<String> {
    let mut flags = rustflags(env::consts::ARCH, &linker.path);
    // Line numbers for `bpftool prog dump` are in the object.
    flags.extend(workspace.remaps());
    flags
}

fn rustflags(arch: &str, linker: &Path) -> Vec<String> {
    vec![
        // aya-ebpf selects the register layout of the machine the object will run on.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("--check-cfg=cfg(bpf_target_arch,values(\"{arch}\"))"),
        "-Cdebuginfo=2".to_owned(),
        // 32-bit ALU and jump instructions, understood since Linux 5.1.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // A packet field of four bytes is one load instead of four. Given to the linker, which
        // generates the code: rustc would warn that the feature is unstable.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
    ]
}

/// Everything an object depends on: the hash, and below it the settings for a person to read.
fn stamp(workspace: &Workspace, toolchain: &Toolchain, linker: &Linker) -> Result<String> {
    let flags = flags(workspace, linker);
    let sources = [
        workspace.ebpf_crate(),
        workspace.root().join("overlay-common"),
        workspace.root().join("Cargo.toml"),
        workspace.root().join("xtask/src/rustc.rs"),
    ];
    let settings = [
        toolchain.identity.clone(),
        linker.identity.clone(),
        flags.join("\n"),
        "without debug information, and the path of overlay-common".to_owned(),
    ];
    let hash = fingerprint::of(&sources, &settings)?;
    Ok(format!("{hash}\n\n{}\n", settings.join("\n")))
}

/// Replaces the object in one step, and only if it differs: the agent embeds it, so a touched
/// file would recompile the agent.
fn install_object(content: &[u8], object: &Path) -> Result<()> {
    if fs::read(object).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let staged = object.with_extension("o.new");
    if let Some(parent) = object.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::write(&staged, content).with_context(|| format!("cannot write {}", staged.display()))?;
    fs::rename(&staged, object).with_context(|| format!("cannot write {}", object.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declared_architecture_is_the_one_checked() {
        let flags = rustflags("aarch64", Path::new("/opt/bpf-linker"));
        assert!(flags.contains(&"--cfg=bpf_target_arch=\"aarch64\"".to_owned()));
        assert!(flags.contains(&"--check-cfg=cfg(bpf_target_arch,values(\"aarch64\"))".to_owned()));
        assert!(flags.contains(&"-Clinker=/opt/bpf-linker".to_owned()));
    }

    #[test]
    fn what_another_wrapper_built_is_not_used_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let target = dir.path().join("bpf-build");
        let library = target.join("liboverlay_common.rlib");
        forget_other_wrappers(&target).expect("a new directory");
        fs::write(&library, "built").expect("a writable directory");
        forget_other_wrappers(&target).expect("the same directory");
        assert!(library.exists());
        fs::write(target.join("wrapper.rs"), "an older one").expect("a writable file");
        forget_other_wrappers(&target).expect("an empty directory");
        assert!(!library.exists());
    }

    #[test]
    fn an_unchanged_object_is_not_touched() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let object = dir.path().join("bpf/overlay.o");
        install_object(b"one", &object).expect("the first copy");
        let first = fs::metadata(&object).and_then(|meta| meta.modified());
        install_object(b"one", &object).expect("an equal copy");
        let second = fs::metadata(&object).and_then(|meta| meta.modified());
        assert_eq!(first.expect("a time"), second.expect("a time"));

        install_object(b"two", &object).expect("another copy");
        assert_eq!(fs::read(&object).expect("readable"), b"two");
    }
}
