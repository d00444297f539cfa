//! `overlay-agent status`: is this node's fast path healthy, and if not, why not.

mod observed;
mod problems;
mod state;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use overlay_common::ABI_VERSION;
use serde::Serialize;

use self::{observed::Observed, problems::problems, state::PinnedState};
use super::{ipv6::Tier, pinned::Pinned};
use crate::{names::interface_name, output, underlay::HostSnapshot};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Healthy,
    Degraded,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    health: Health,
    /// Why it is not healthy.
    problems: Vec<String>,
    pin_dir: PathBuf,
    abi_version: u32,
    /// `None` (JSON `null`) if the pinned state cannot be read.
    datapath: Option<PinnedState>,
    /// The IPv6 overlay as the kernel has it; `None` without one.
    ipv6: Option<Tier>,
}

/// `host`: the host's interfaces, as far as they are known.
pub fn run(
    args: &Args,
    ipv6: Option<Tier>,
    host: &HostSnapshot,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let pin_dir = args.pinned.pin_dir.clone();
    let mut report = match Observed::read(&args.pinned, host) {
        Ok(observed) => Report::new(pin_dir, &observed, interface_name),
        Err(error) => Report {
            health: Health::Unknown,
            problems: vec![error.to_string()],
            pin_dir,
            abi_version: ABI_VERSION,
            datapath: None,
            ipv6: None,
        },
    };
    report.add_ipv6(ipv6);
    output::print(&report, args.pinned.output, out)?;
    Ok(report.health.exit_code())
}

impl Health {
    const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
        }
    }

    fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Healthy => 0,
            Self::Degraded => 1,
            Self::Unknown => 2,
        })
    }
}

impl Report {
    fn new(
        pin_dir: PathBuf,
        observed: &Observed,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let problems = problems(observed, &interface_name);
        Self {
            health: if problems.is_empty() {
                Health::Healthy
            } else {
                Health::Degraded
            },
            problems,
            pin_dir,
            abi_version: ABI_VERSION,
            datapath: Some(PinnedState::new(observed, interface_name)),
            ipv6: None,
        }
    }

    fn add_ipv6(&mut self, ipv6: Option<Tier>) {
        let problems = ipv6.as_ref().map(Tier::problems).unwrap_or_default();
        if !problems.is_empty() && self.health == Health::Healthy {
            self.health = Health::Degraded;
        }
        self.problems.extend(problems);
        self.ipv6 = ipv6;
    }
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.health.name())?;
        for problem in &self.problems {
            writeln!(out, "  {problem}")?;
        }
        let device = self.ipv6.as_ref().and_then(|ipv6| ipv6.device.as_ref());
        if let Some(datapath) = &self.datapath {
            writeln!(out)?;
            datapath.write(device.map(|device| device.zero_checksum), out)?;
        }
        let is_mapped = self.datapath.as_ref().is_some_and(PinnedState::has_ipv6);
        if let Some(ipv6) = self.ipv6.as_ref().filter(|_| !is_mapped) {
            writeln!(out)?;
            output::write_pairs(out, &ipv6.describe())?;
        }
        Ok(())
    }
}
