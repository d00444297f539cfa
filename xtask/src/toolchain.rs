//! Finds a rustc and cargo that can compile `core` for the BPF target.
//!
//! The target has no prebuilt library, so the toolchain needs the library sources and the
//! unstable `-Z build-std`. And the linker reads LLVM bitcode, so the compiler's LLVM must not be
//! newer than the linker's. The workspace's own stable toolchain usually has no library sources.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::{
    linker::LLVM_MAJOR,
    process::{self, command},
};

pub const CARGO_VARIABLE: &str = "OVERLAY_EBPF_CARGO";
pub const RUSTC_VARIABLE: &str = "OVERLAY_EBPF_RUSTC";

/// `rust-version` of aya-ebpf.
const OLDEST_RUSTC: (u32, u32) = (1, 87);

/// A toolchain that will be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    /// The whole of `rustc -vV`: part of the object's identity.
    pub identity: String,
}

/// Where a toolchain was looked for and what was found there.
#[derive(Debug)]
struct Candidate {
    origin: String,
    found: Result<Toolchain, String>,
}

/// What `rustc -vV` says, as far as the choice depends on it.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    release: String,
    number: (u32, u32),
    llvm_major: u32,
}

/// Finds a toolchain and says what it chose and why; `None` if there is none.
pub fn find() -> Result<Option<Toolchain>> {
    if let Some(candidate) = override_from_environment() {
        report(&candidate);
        return match candidate.found {
            Ok(toolchain) => Ok(Some(toolchain)),
            Err(problem) => bail!(
                "the toolchain named by {CARGO_VARIABLE} and {RUSTC_VARIABLE} cannot build the \
                 BPF object: {problem}"
            ),
        };
    }
    Ok(choose(&[rustup_nightly(), debian()]))
}

/// What would do, for someone who is about to install one.
pub fn options() -> String {
    let (major, minor) = OLDEST_RUSTC;
    format!(
        "A toolchain for BPF needs rustc {major}.{minor} or later with LLVM {LLVM_MAJOR} or \
         earlier and the library sources. Any one of these will do:\n  \
         Debian 12's rustc-web, cargo-web and rust-web-src, from bookworm-security\n  \
         a rustup nightly: rustup component add rust-src --toolchain nightly\n  \
         another one, named by {CARGO_VARIABLE} and {RUSTC_VARIABLE}"
    )
}

/// The first usable candidate; those passed over are reported with the reason.
fn choose(candidates: &[Candidate]) -> Option<Toolchain> {
    candidates.iter().find_map(|candidate| {
        report(candidate);
        candidate.found.as_ref().ok().cloned()
    })
}

fn report(candidate: &Candidate) {
    match &candidate.found {
        Ok(toolchain) => println!(
            "BPF toolchain: {}: {} ({})",
            candidate.origin,
            toolchain.rustc.display(),
            toolchain
                .identity
                .lines()
                .next()
                .unwrap_or("unknown version")
        ),
        Err(problem) => println!("BPF toolchain: not {}: {problem}", candidate.origin),
    }
}

fn override_from_environment() -> Option<Candidate> {
    let cargo = env::var_os(CARGO_VARIABLE);
    let rustc = env::var_os(RUSTC_VARIABLE);
    if cargo.is_none() && rustc.is_none() {
        return None;
    }
    let cargo = cargo.map_or_else(|| "cargo".into(), PathBuf::from);
    let rustc = rustc.map_or_else(|| "rustc".into(), PathBuf::from);
    Some(Candidate {
        origin: "the one named by the environment".to_owned(),
        found: probe(cargo, rustc),
    })
}

fn rustup_nightly() -> Candidate {
    let which = |tool: &str| {
        process::output(command("rustup").args(["which", "--toolchain", "nightly", tool]))
            .map(|path| PathBuf::from(path.trim_end()))
    };
    let found = match (which("cargo"), which("rustc")) {
        (Ok(cargo), Ok(rustc)) => probe(cargo, rustc),
        _ => Err("rustup has none".to_owned()),
    };
    Candidate {
        origin: "rustup's nightly".to_owned(),
        found,
    }
}

fn debian() -> Candidate {
    let cargo = PathBuf::from("/usr/bin/cargo");
    let rustc = PathBuf::from("/usr/bin/rustc");
    let found = if process::is_executable(&cargo) && process::is_executable(&rustc) {
        probe(cargo, rustc)
    } else {
        Err("rustc-web and cargo-web are not installed".to_owned())
    };
    Candidate {
        origin: "Debian's rustc-web".to_owned(),
        found,
    }
}

/// Runs the compiler and looks for its library sources.
fn probe(cargo: PathBuf, rustc: PathBuf) -> Result<Toolchain, String> {
    let ask = |argument: &[&str]| {
        process::output(command(&rustc).args(argument)).map_err(|error| format!("{error:#}"))
    };
    let identity = ask(&["-vV"])?;
    let sysroot = ask(&["--print", "sysroot"])?;
    let sources = Path::new(sysroot.trim_end()).join("lib/rustlib/src/rust/library");
    judge(&identity, sources.join("core/Cargo.toml").exists())?;
    Ok(Toolchain {
        cargo,
        rustc,
        identity,
    })
}

/// Why a compiler of this version, with or without library sources, cannot be used.
fn judge(identity: &str, has_sources: bool) -> Result<(), String> {
    let Some(version) = parse_version(identity) else {
        return Err(format!("`rustc -vV` says no version: {identity:?}"));
    };
    if version.number < OLDEST_RUSTC {
        let (major, minor) = OLDEST_RUSTC;
        return Err(format!(
            "rustc {} is older than {major}.{minor}",
            version.release
        ));
    }
    if version.llvm_major > LLVM_MAJOR {
        return Err(format!(
            "rustc {} has LLVM {}, newer than bpf-linker's {LLVM_MAJOR}",
            version.release, version.llvm_major
        ));
    }
    if !has_sources {
        return Err(format!(
            "rustc {} comes without the library sources (rust-src)",
            version.release
        ));
    }
    Ok(())
}

fn parse_version(identity: &str) -> Option<Version> {
    let field = |name: &str| {
        identity
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let release = field("release:")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let number = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let llvm_major = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some(Version {
        release: release.to_owned(),
        number,
        llvm_major,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(release: &str, llvm: &str) -> String {
        format!("rustc {release}\nbinary: rustc\nrelease: {release}\nLLVM version: {llvm}\n")
    }

    fn candidate(origin: &str, found: Result<(), &str>) -> Candidate {
        Candidate {
            origin: origin.to_owned(),
            found: found
                .map(|()| Toolchain {
                    cargo: "cargo".into(),
                    rustc: PathBuf::from(origin),
                    identity: identity("1.96.0", "22.1.8"),
                })
                .map_err(str::to_owned),
        }
    }

    #[test]
    fn the_first_usable_toolchain_is_chosen() {
        let chosen = choose(&[
            candidate("nightly", Err("no rust-src")),
            candidate("debian", Ok(())),
            candidate("later", Ok(())),
        ]);
        assert_eq!(
            chosen.map(|toolchain| toolchain.rustc),
            Some(PathBuf::from("debian"))
        );
    }

    #[test]
    fn nothing_usable_chooses_nothing() {
        assert_eq!(choose(&[candidate("nightly", Err("no rust-src"))]), None);
    }

    #[test]
    fn release_and_llvm_are_read_from_the_verbose_version() {
        assert_eq!(
            parse_version(&identity("1.97.0-nightly", "22.1.4")),
            Some(Version {
                release: "1.97.0-nightly".to_owned(),
                number: (1, 97),
                llvm_major: 22,
            })
        );
        assert_eq!(parse_version("command not found"), None);
    }

    #[test]
    fn each_refusal_names_its_reason() {
        let refusal = |release, llvm, sources| {
            judge(&identity(release, llvm), sources).expect_err("must be refused")
        };
        assert!(refusal("1.63.0", "14.0.6", true).contains("older than 1.87"));
        assert!(refusal("1.99.0-nightly", "23.1.0", true).contains("LLVM 23"));
        assert!(refusal("1.97.0-nightly", "22.1.4", false).contains("rust-src"));
        assert_eq!(judge(&identity("1.96.0", "22.1.8"), true), Ok(()));
    }
}
