//! Where things are in the source tree and under `target/`.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::process::{self, command};

/// The workspace this xtask was compiled from.
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub fn locate() -> Self {
        let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest_dir.parent().unwrap_or(manifest_dir);
        Self {
            root: root.to_path_buf(),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Flags of rustc that keep the paths of this machine out of what is built, so that the same sources
    /// make the same file wherever they lie.
    pub fn remaps(&self) -> Vec<String> {
        let mut remaps = vec![format!(
            "--remap-path-prefix={}=/overlay",
            self.root.display()
        )];
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
        let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home);
        remaps.extend(cargo.map(|cargo| format!("--remap-path-prefix={}=/cargo", cargo.display())));
        remaps
    }

    /// When the commit was made, in seconds since 1970: the date of what is packed, so that the same
    /// commit makes the same files.
    pub fn commit_time(&self) -> Result<String> {
        self.commit("%ct")
    }

    /// Something of the commit, in a format of `git log`.
    pub fn commit(&self, format: &str) -> Result<String> {
        let mut git = command("git");
        git.current_dir(&self.root);
        let said = process::output(git.args(["log", "-1", &format!("--format={format}")]))?;
        Ok(said.trim().to_owned())
    }

    /// The crate of the BPF programs, a workspace of its own.
    pub fn ebpf_crate(&self) -> PathBuf {
        self.root.join("overlay-ebpf")
    }

    /// The crate of the lab and its tests.
    pub fn lab_crate(&self) -> PathBuf {
        self.root.join("tests")
    }

    /// What failed tests of the lab said.
    pub fn lab_logs(&self) -> PathBuf {
        self.root.join("target/lab-tests")
    }

    /// What each BPF program may cost.
    pub fn bpf_budget(&self) -> PathBuf {
        self.ebpf_crate().join("budget.txt")
    }

    /// The object that `overlay-agent/build.rs` embeds.
    pub fn object(&self) -> PathBuf {
        self.root.join("target/bpf/overlay.o")
    }

    /// The flavour whose programs log packets, which is embedded, too, if it is there.
    pub fn logging_object(&self) -> PathBuf {
        self.root.join("target/bpf/overlay-log.o")
    }

    /// Cargo's target directory for the BPF crate.
    pub fn ebpf_target(&self) -> PathBuf {
        self.root.join("target/bpf-build")
    }

    /// `--root` of tools built for this workspace, so that nothing lands in the user's home.
    pub fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// Cargo's target directory for the fuzz targets, and what they find.
    pub fn fuzz_target(&self) -> PathBuf {
        self.root.join("target/fuzz")
    }

    /// Cargo's target directory for overlay-cloud, and the emulator of AWS for its tests.
    pub fn cloud(&self) -> PathBuf {
        self.root.join("target/cloud")
    }

    /// Kernels that tests boot, and what they leave.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("target/kernels")
    }

    /// Where the API server is that tests of the Kubernetes store talk to, what renders the chart, and the part of a
    /// container runtime that tests call the CNI plugin by.
    pub fn kubernetes(&self) -> PathBuf {
        self.root.join("target/kubernetes")
    }
}
