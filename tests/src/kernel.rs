//! What the documentation promises of kernels, for tests that run on several.

use std::fs;

use anyhow::{Result, bail};

/// How a kernel runs the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    Tcx,
    Filters,
    /// Not at all.
    KernelTier,
}

impl Means {
    /// What the documentation promises of the running kernel.
    pub fn promised() -> Result<Self> {
        let release = release()?;
        Ok(if release < (5, 15) {
            Self::KernelTier
        } else if release < (6, 6) {
            Self::Filters
        } else {
            Self::Tcx
        })
    }
}

/// Major and minor version of the running kernel.
fn release() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("kernel release {release}"),
    }
}
