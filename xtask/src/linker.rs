//! Finds or builds bpf-linker, which turns LLVM bitcode into a BPF object with BTF.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{
    prereq::{Group, Installer},
    process::{self, command},
    workspace::Workspace,
};

pub const LINKER_VARIABLE: &str = "OVERLAY_BPF_LINKER";

/// The LLVM the linker is built with; the compiler's may be older, not newer.
pub const LLVM_MAJOR: u32 = 22;

const VERSION: &str = "0.13.0";

/// A linker that will be used.
pub struct Linker {
    pub path: PathBuf,
    /// Part of the object's identity.
    pub identity: String,
}

/// Finds or installs the linker and says what it chose and why.
pub fn find(workspace: &Workspace, installer: &mut Installer) -> Result<Linker> {
    if let Some(path) = env::var_os(LINKER_VARIABLE).map(PathBuf::from) {
        let identity = process::output(command(&path).arg("--version"))
            .with_context(|| format!("{LINKER_VARIABLE} names no working bpf-linker"))?;
        println!("BPF linker: {} ({LINKER_VARIABLE})", path.display());
        return Ok(Linker { path, identity });
    }
    if let Some(path) = process::find_on_path("bpf-linker") {
        match probe(path.clone()) {
            Ok(linker) => {
                println!("BPF linker: {} (found on PATH)", path.display());
                return Ok(linker);
            }
            Err(problem) => println!("BPF linker: not {}: {problem:#}", path.display()),
        }
    }
    let own = workspace.tools().join("bin/bpf-linker");
    if !process::is_executable(&own) || probe(own.clone()).is_err() {
        build(workspace, installer)?;
    }
    let linker = probe(own)?;
    println!(
        "BPF linker: {} (built for this workspace)",
        linker.path.display()
    );
    Ok(linker)
}

/// Checks that the linker runs, is the tested version and reads the bitcode of [`LLVM_MAJOR`].
fn probe(path: PathBuf) -> Result<Linker> {
    let version = process::output(command(&path).arg("--version"))?;
    if version.trim_end() != format!("bpf-linker {VERSION}") {
        bail!("it is {}, not {VERSION}", version.trim_end());
    }
    let libraries = process::output(command("ldd").arg(&path)).unwrap_or_default();
    if let Some(major) = llvm_major(&libraries).filter(|major| *major < LLVM_MAJOR) {
        bail!("it is built with LLVM {major}, older than {LLVM_MAJOR}");
    }
    Ok(Linker {
        identity: format!("{}\n{}", path.display(), version),
        path,
    })
}

fn build(workspace: &Workspace, installer: &mut Installer) -> Result<()> {
    let llvm_prefix = format!("/usr/lib/llvm-{LLVM_MAJOR}");
    let mut install = process::cargo();
    install
        .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{LLVM_MAJOR}"))
        .arg("--root")
        .arg(workspace.tools())
        .env("LLVM_PREFIX", &llvm_prefix)
        .env("CARGO_TARGET_DIR", workspace.tools().join("build"));
    if !installer.allowed() {
        println!(
            "BPF linker: none. To build one, once its libraries are installed, run\n  \
             LLVM_PREFIX={llvm_prefix} {}",
            process::display(&install)
        );
    }
    installer.ensure(&[Group::BpfLinker])?;
    if !installer.allowed() {
        bail!("bpf-linker is missing: run the command above, or add --install");
    }
    println!("BPF linker: none yet; building bpf-linker {VERSION} (about a minute)");
    process::run(&mut install)
}

/// The major version in a line such as `libLLVM.so.22.1 => …` or `libLLVM-21.so.1 => …`.
fn llvm_major(ldd: &str) -> Option<u32> {
    let (_, rest) = ldd.split_once("libLLVM")?;
    rest.trim_start_matches(|c: char| !c.is_ascii_digit())
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_linker_is_read_from_its_libraries() {
        assert_eq!(
            llvm_major("\tlibLLVM.so.22.1 => /lib/libLLVM.so.22.1 (0x7f)\n"),
            Some(22)
        );
        assert_eq!(
            llvm_major("\tlibLLVM-14.so.1 => /lib/libLLVM-14.so.1 (0x7f)\n"),
            Some(14)
        );
        assert_eq!(llvm_major("\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n"), None);
    }
}
