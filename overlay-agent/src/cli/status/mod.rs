//! `overlay-agent status`: is this node's fast path healthy, and if not, why not.

mod forwarder;
mod kernel;
mod problems;
mod sources;
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
    forwarder::Forwarder,
    problems::{NO_AGENT, problems},
    sources::Sources,
    state::{PinnedState, agent},
};
use super::{health::Health, pinned::Pinned};
use crate::{
    backend::udp,
    datapath::{Absence, DatapathError, PinDir},
    names::interface_name,
    netlink::Unserved,
    output::{self, Table},
    view::{EbpfTier, FlowTables, Host, KernelTier, Snapshot, Tier},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
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
    kernel_tier: Option<WithoutPrograms>,
    /// Interfaces of pods that have the kernel tier alone.
    unserved_pods: Vec<Unserved>,
    /// The kernel tier of a family; `None` without one.
    ipv4: Option<Tier>,
    ipv6: Option<Tier>,
    /// `None` (JSON `null`) where the kernel and the programs carry everything.
    forwarder: Option<Forwarder>,
}

pub fn run(
    args: &Args,
    snapshot: Snapshot,
    host: &Host,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let pin_dir = args.pinned.pin_dir.clone();
    let pins = args.pinned.pins();
    let Snapshot { ebpf, kernel } = snapshot;
    let alone_because = host.forwards_alone(ebpf.as_ref().ok());
    let sources = ebpf.and_then(|tier| {
        Ok(Sources {
            bare_underlay: host.bare_underlay(&tier),
            flows: FlowTables::read(&pins)?,
            tier,
        })
    });
    let mut report = match sources {
        Ok(sources) => {
            let mut report = Report::new(pin_dir, &sources, interface_name);
            report.unserved_pods = host.unserved(&sources.tier);
            report
        }
        Err(DatapathError::KernelTier { absence }) => {
            Report::without_programs(pin_dir, &absence, pins.is_in_use()?)
        }
        Err(error) => Report {
            problems: vec![error.to_string()],
            ..Report::unknown(pin_dir)
        },
    };
    report.add_forwarder(Forwarder::of(&kernel, udp::counted()?, alone_because));
    report.add_kernel(kernel);
    output::print(&report, args.pinned.output, out)?;
    Ok(report.health.exit_code())
}

/// The judgement alone, without what there is to show of the node, such as its flows.
pub fn judge(
    pins: &PinDir,
    ebpf: &Result<EbpfTier, DatapathError>,
    kernel: KernelTier,
    host: &Host,
) -> anyhow::Result<(Health, Vec<String>)> {
    let empty = Report::unknown(PathBuf::new());
    let mut report = match ebpf {
        Ok(tier) => {
            let underlay = host.bare_underlay(tier);
            let problems = problems(tier, underlay.as_deref(), interface_name);
            Report {
                health: Health::of(&problems),
                problems,
                ..empty
            }
        }
        Err(DatapathError::KernelTier { absence }) => {
            Report::without_programs(PathBuf::new(), absence, pins.is_in_use()?)
        }
        Err(error) => Report {
            problems: vec![error.to_string()],
            ..empty
        },
    };
    let alone_because = host.forwards_alone(ebpf.as_ref().ok());
    report.add_forwarder(Forwarder::of(&kernel, udp::counted()?, alone_because));
    report.add_kernel(kernel);
    Ok((report.health, report.problems))
}

/// A node on which an agent runs or ran without programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct WithoutPrograms {
    agent_running: bool,
    /// Whether `--datapath=kernel` asks for it; then it is no defect.
    asked: bool,
    reason: String,
}

impl Report {
    fn new(
        pin_dir: PathBuf,
        sources: &Sources,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let underlay = sources.bare_underlay.as_deref();
        let problems = problems(&sources.tier, underlay, &interface_name);
        Self {
            health: Health::of(&problems),
            problems,
            datapath: Some(PinnedState::new(sources, interface_name)),
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
            ipv4: None,
            ipv6: None,
            forwarder: None,
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
            health: Health::of(&problems),
            problems,
            kernel_tier: Some(WithoutPrograms {
                agent_running,
                asked,
                reason: absence.to_string(),
            }),
            ..Self::unknown(pin_dir)
        }
    }

    fn add_forwarder(&mut self, forwarder: Option<Forwarder>) {
        self.forwarder = forwarder;
        let Some(forwarder) = &self.forwarder else {
            return;
        };
        for problem in &mut self.problems {
            if problem == NO_AGENT {
                *problem = forwarder.problem();
            }
        }
    }

    fn add_kernel(&mut self, kernel: KernelTier) {
        let problems = kernel::problems(&kernel);
        if !problems.is_empty() && self.health == Health::Healthy {
            self.health = Health::Degraded;
        }
        self.problems.extend(problems);
        (self.ipv4, self.ipv6) = (kernel.ipv4, kernel.ipv6);
    }

    /// The lines about the families of which the maps say nothing.
    fn kernel_lines(&self) -> Vec<(String, String)> {
        let datapath = self.datapath.as_ref();
        let ipv4 = self.ipv4.as_ref();
        let ipv6 = self.ipv6.as_ref();
        let ipv4 = ipv4.filter(|_| !datapath.is_some_and(PinnedState::has_ipv4));
        let ipv6 = ipv6.filter(|_| !datapath.is_some_and(PinnedState::has_ipv6));
        let mut lines = ipv4.map_or_else(Vec::new, |tier| kernel::lines(tier, ""));
        lines.extend(ipv6.map_or_else(Vec::new, |tier| kernel::lines(tier, "ipv6 ")));
        lines
    }
}

impl WithoutPrograms {
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
        if let Some(kernel_tier) = &self.kernel_tier {
            writeln!(out)?;
            output::write_pairs(out, &kernel_tier.describe())?;
        }
        let kernel_lines = self.kernel_lines();
        if !kernel_lines.is_empty() {
            writeln!(out)?;
            output::write_pairs(out, &kernel_lines)?;
        }
        if let Some(forwarder) = &self.forwarder {
            writeln!(out)?;
            output::write_pairs(out, &forwarder.lines())?;
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
