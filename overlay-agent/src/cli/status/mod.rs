//! `overlay-agent status`: is this node's fast path healthy, and if not, why not.

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

use self::{
    problems::{NO_AGENT, problems},
    state::{PinnedState, agent},
};
use super::pinned::Pinned;
use crate::{
    datapath::{Absence, DatapathError},
    names::interface_name,
    netlink::{LinkTable, Netlink, Unserved, unserved},
    output::{self, Table},
    underlay::{self, HostSnapshot},
    view::{ebpf::Observed, kernel::Tier},
};

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
    /// `None` (JSON `null`) where there are programs.
    kernel_tier: Option<KernelTier>,
    /// Interfaces of pods that have the kernel tier alone.
    unserved_pods: Vec<Unserved>,
    /// The IPv6 overlay as the kernel has it; `None` without one.
    ipv6: Option<Tier>,
}

pub fn run(
    args: &Args,
    ipv6: Option<Tier>,
    host: &Host,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let pin_dir = args.pinned.pin_dir.clone();
    let mut report = match Observed::read(&args.pinned, &host.addresses) {
        Ok(observed) => {
            let mut report = Report::new(pin_dir, &observed, interface_name);
            report.unserved_pods = unserved(&host.links, observed.subnets());
            report
        }
        Err(DatapathError::KernelTier { absence }) => {
            let agent_running = args.pinned.pins().is_in_use()?;
            Report::without_programs(pin_dir, &absence, agent_running)
        }
        Err(error) => Report {
            problems: vec![error.to_string()],
            ..Report::unknown(pin_dir)
        },
    };
    report.add_ipv6(ipv6);
    output::print(&report, args.pinned.output, out)?;
    Ok(report.health.exit_code())
}

/// A node on which an agent runs or ran without programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct KernelTier {
    agent_running: bool,
    /// Whether `--datapath=kernel` asks for it; then it is no defect.
    asked: bool,
    reason: String,
}

/// The host's interfaces, as far as they are known.
#[derive(Default)]
pub struct Host {
    links: LinkTable,
    addresses: HostSnapshot,
}

impl Host {
    /// What cannot be read is left out, with a warning.
    pub async fn read() -> Self {
        let mut host = Self::default();
        match async { Netlink::connect()?.dump_links().await }.await {
            Ok(links) => host.links.replace(links),
            Err(error) => {
                let _ = writeln!(io::stderr(), "pods without programs are left out: {error}");
            }
        }
        match underlay::snapshot(None).await {
            Ok(addresses) => host.addresses = addresses,
            Err(error) => {
                let _ = writeln!(io::stderr(), "the underlay's kind is left out: {error}");
            }
        }
        host
    }
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
            datapath: Some(PinnedState::new(observed, interface_name)),
            ..Self::unknown(pin_dir)
        }
    }

    fn unknown(pin_dir: PathBuf) -> Self {
        Self {
            health: Health::Unknown,
            problems: Vec::new(),
            pin_dir,
            abi_version: ABI_VERSION,
            datapath: None,
            kernel_tier: None,
            unserved_pods: Vec::new(),
            ipv6: None,
        }
    }

    fn without_programs(pin_dir: PathBuf, absence: &Absence, agent_running: bool) -> Self {
        let asked = *absence == Absence::Asked;
        let mut problems = Vec::new();
        if !agent_running {
            problems.push(NO_AGENT.to_owned());
        }
        if !asked {
            problems.push(format!(
                "kernel tier alone, every packet takes the kernel's way: {absence}"
            ));
        }
        Self {
            health: if problems.is_empty() {
                Health::Healthy
            } else {
                Health::Degraded
            },
            problems,
            kernel_tier: Some(KernelTier {
                agent_running,
                asked,
                reason: absence.to_string(),
            }),
            ..Self::unknown(pin_dir)
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

impl KernelTier {
    fn describe(&self) -> Vec<(&'static str, String)> {
        let tier = if self.asked {
            format!("kernel tier alone, {}", self.reason)
        } else {
            "kernel tier alone".to_owned()
        };
        vec![
            ("agent", agent(self.agent_running).to_owned()),
            ("tier", tier),
        ]
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
        if let Some(kernel_tier) = &self.kernel_tier {
            writeln!(out)?;
            output::write_pairs(out, &kernel_tier.describe())?;
        }
        if let Some(ipv6) = self.ipv6.as_ref().filter(|_| !is_mapped) {
            writeln!(out)?;
            output::write_pairs(out, &ipv6.describe())?;
        }
        if !self.unserved_pods.is_empty() {
            writeln!(out)?;
            let mut table = Table::new(&["POD WITHOUT PROGRAMS", "KIND"]);
            for pod in &self.unserved_pods {
                table.row([pod.ifname.clone(), pod.kind.clone()]);
            }
            table.write(out)?;
        }
        Ok(())
    }
}
