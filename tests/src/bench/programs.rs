//! What the kernel measured of the programs under traffic.

use std::{fs, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};

use crate::lab::{Node, underlay::NODE_INTERFACE};

/// Time and number of runs since the program was loaded, while measuring was on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    pub ns: u64,
    pub runs: u64,
}

impl RunTime {
    /// Of the egress program of a node's first pod.
    pub fn egress(node: &Node) -> Result<Self> {
        let pods = node.pods();
        let pod = pods.first().context("no pod")?;
        Self::of(node, &pod.host_interface, "overlay_egress")
    }

    /// Of the ingress program of a node's underlay interface.
    pub fn ingress(node: &Node) -> Result<Self> {
        Self::of(node, NODE_INTERFACE, "overlay_ingress")
    }

    fn of(node: &Node, interface: &str, program: &str) -> Result<Self> {
        let (_, programs) =
            node.enter(|| SchedClassifier::query_tcx(interface, TcAttachType::Ingress))?;
        // Those of the udp backend have a longer name, of which the kernel keeps 15 bytes.
        let is_it = |info: &&ProgramInfo| {
            let name = info.name_as_str();
            name.is_some_and(|name| name.starts_with(program))
        };
        let found = programs.iter().find(is_it);
        let info: &ProgramInfo =
            found.with_context(|| format!("no {program} on {interface} of {}", node.name))?;
        let fd = info.fd()?;
        let path = format!(
            "/proc/self/fdinfo/{}",
            std::os::fd::AsFd::as_fd(&fd).as_raw_fd()
        );
        Self::parse(&fs::read_to_string(&path)?).with_context(|| format!("read {path}"))
    }

    fn parse(fdinfo: &str) -> Result<Self> {
        let number = |name: &str| {
            fdinfo
                .lines()
                .find_map(|line| {
                    line.strip_prefix(name)?
                        .strip_prefix(':')?
                        .trim()
                        .parse()
                        .ok()
                })
                .with_context(|| format!("no {name} in\n{fdinfo}"))
        };
        Ok(Self {
            ns: number("run_time_ns")?,
            runs: number("run_cnt")?,
        })
    }

    /// What was measured after `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            ns: self.ns - earlier.ns,
            runs: self.runs - earlier.runs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_time_is_read_from_fdinfo() {
        let text = "prog_type:\t3\nrun_time_ns:\t123\nrun_cnt:\t4\n";
        assert_eq!(
            RunTime::parse(text).expect("both lines"),
            RunTime { ns: 123, runs: 4 }
        );
        assert!(RunTime::parse("prog_type:\t3\n").is_err());
    }
}
