//! Programs that other people have written in Rust, and that this workspace builds for itself.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    process::{self, command},
    workspace::Workspace,
};

/// A crate that is a program of its own name, in the version that was tried.
pub struct Tool {
    pub name: &'static str,
    pub version: &'static str,
}

impl Tool {
    /// The program, which is built below `target/` unless it is there or on the `PATH`.
    pub fn ensure(&self, workspace: &Workspace) -> Result<PathBuf> {
        let own = workspace.tools().join("bin").join(self.name);
        let found = [process::find_on_path(self.name), Some(own.clone())];
        if let Some(path) = found.into_iter().flatten().find(|path| self.is_at(path)) {
            return Ok(path);
        }
        let (name, version) = (self.name, self.version);
        println!("{name}: no {version} yet; building it (some minutes)");
        process::run(
            process::cargo()
                .args(["install", name, "--version", version, "--locked"])
                // It is compiled in a third of the time, and runs for a second or two.
                .args(["--debug", "--root"])
                .arg(workspace.tools())
                .env("CARGO_PROFILE_DEV_DEBUG", "0")
                .env("CARGO_TARGET_DIR", workspace.tools().join("build")),
        )?;
        Ok(own)
    }

    fn is_at(&self, path: &Path) -> bool {
        // A subcommand of cargo's may take no arguments but its own.
        let subcommand = self.name.strip_prefix("cargo-");
        let asked = [
            vec!["--version"],
            subcommand.into_iter().chain(["--version"]).collect(),
        ];
        let said = asked
            .iter()
            .filter_map(|words| process::output(command(path).args(words)).ok());
        said.into_iter()
            .any(|said| said.trim_end().ends_with(&format!(" {}", self.version)))
    }
}
