//! Finds or builds bpf-linker, which turns LLVM bitcode into a BPF object with BTF.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
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

/// Finds the linker and says what it chose and why; `None` if there is none.
pub fn find(workspace: &Workspace) -> Result<Option<Linker>> {
    if let Some(path) = env::var_os(LINKER_VARIABLE).map(PathBuf::from) {
        let identity = process::output(command(&path).arg("--version"))
            .with_context(|| format!("{LINKER_VARIABLE} names no working bpf-linker"))?;
        println!("BPF linker: {} ({LINKER_VARIABLE})", path.display());
        return Ok(Some(Linker { path, identity }));
    }
    let on_path = process::find_on_path("bpf-linker").map(|path| (path, "found on PATH"));
    let own = Some(workspace.tools().join("bin/bpf-linker"))
        .filter(|path| process::is_executable(path))
        .map(|path| (path, "built for this workspace"));
    for (path, origin) in [on_path, own].into_iter().flatten() {
        match probe(path.clone()) {
            Ok(linker) => {
                println!("BPF linker: {} ({origin})", path.display());
                return Ok(Some(linker));
            }
            Err(problem) => println!("BPF linker: not {}: {problem:#}", path.display()),
        }
    }
    Ok(None)
}

/// Builds the linker under `target/`, with the libraries of [`Group::BpfLinker`] in place.
///
/// [`Group::BpfLinker`]: crate::prereq::Group::BpfLinker
pub fn build(workspace: &Workspace) -> Result<()> {
    println!("BPF linker: none yet; building bpf-linker {VERSION} (about a minute)");
    process::run(&mut install_command(workspace))
}

/// What [`build`] runs, as a line for the shell.
pub fn build_line(workspace: &Workspace) -> String {
    format!(
        "LLVM_PREFIX={} {}",
        llvm_prefix(),
        process::display(&install_command(workspace))
    )
}

fn install_command(workspace: &Workspace) -> Command {
    let mut install = process::cargo();
    install
        .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{LLVM_MAJOR}"))
        .arg("--root")
        .arg(workspace.tools())
        .env("LLVM_PREFIX", llvm_prefix())
        // Its time goes into LLVM, which is prebuilt: a third less to compile, no slower to run.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_TARGET_DIR", workspace.tools().join("build"));
    install
}

fn llvm_prefix() -> String {
    format!("/usr/lib/llvm-{LLVM_MAJOR}")
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
