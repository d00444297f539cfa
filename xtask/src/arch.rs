//! Machines of other architectures: what compiles for them here, and what runs their programs.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    prereq::{Group, Installer},
    process::{self, command},
};

/// An architecture that is not this machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    Aarch64,
}

impl Arch {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64",
        }
    }

    /// As rustc calls it.
    pub const fn triple(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// As Debian and images of containers call it.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::Aarch64 => "arm64",
        }
    }

    /// What Debian's tools for it begin with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64-linux-gnu-",
        }
    }

    /// Has what builds for it present: C compiler and library of Debian, Rust's library of rustup.
    pub fn ensure(self, installer: &mut Installer, groups: &[Group]) -> Result<()> {
        installer.ensure(groups)?;
        let triple = self.triple();
        let has_library = || -> Result<bool> {
            let mut rustc = command("rustc");
            let dir =
                process::output(rustc.args(["--print", "target-libdir", "--target", triple]))?;
            Ok(std::path::Path::new(dir.trim_end()).exists())
        };
        if has_library()? {
            return Ok(());
        }
        process::run(command("rustup").args(["target", "add", triple]))
            .with_context(|| format!("Rust's library for {triple} is missing"))
    }

    /// Variables by which cargo finds the linker.
    pub fn variables(self) -> [(String, String); 1] {
        let name = self.triple().replace('-', "_").to_uppercase();
        [(
            format!("CARGO_TARGET_{name}_LINKER"),
            format!("{}gcc", self.prefix()),
        )]
    }

    /// Has cargo build for an architecture, this machine's if none is named, and returns where below `target` it does.
    pub fn build_for(arch: Option<Self>, cargo: &mut Command, mut target: PathBuf) -> PathBuf {
        if let Some(arch) = arch {
            cargo
                .envs(arch.variables())
                .args(["--target", arch.triple()]);
            target.push(arch.triple());
        }
        target
    }

    /// What runs a program of it, with the loader and the libraries that its C compiler has.
    pub const fn emulator(self) -> [&'static str; 3] {
        match self {
            Self::Aarch64 => ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_told_the_linker() {
        let [(name, value)] = Arch::Aarch64.variables();
        assert_eq!(name, "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER");
        assert_eq!(value, "aarch64-linux-gnu-gcc");
    }
}
