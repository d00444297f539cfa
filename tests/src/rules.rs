//! The rules kube-proxy writes for services, as it writes them in its iptables, nftables and IPVS
//! modes: ClusterIP, NodePort with both external traffic policies, session affinity, hairpin,
//! the masquerade mark 0x4000 and the drop of invalid packets.

mod iptables;
mod ipvs;
mod nftables;

use std::{fmt::Write as _, fs, net::SocketAddr};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;

use crate::lab::Node;

/// Who writes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-nft`, fed through `iptables-restore`.
    Iptables,
    /// `nft`, a table of its own with verdict maps.
    Nftables,
    /// `ipvsadm`, the cluster addresses on a device of the node, and a few rules of `iptables-nft`.
    Ipvs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// How a service is reached from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePort {
    /// `externalTrafficPolicy: Cluster`: any backend, the node's address as source.
    Masqueraded(u16),
    /// `externalTrafficPolicy: Local`: backends of the node only, the client's address as source.
    SourceKept(u16),
}

#[derive(Clone, Debug)]
pub struct Service {
    pub name: &'static str,
    pub protocol: Protocol,
    /// The cluster IP.
    pub address: SocketAddr,
    pub node_port: Option<NodePort>,
    /// `sessionAffinity: ClientIP`, and its time-out in seconds.
    pub affinity: Option<u32>,
    pub backends: Vec<SocketAddr>,
}

/// Installs the rules for `services` on `node`, in place of those installed before.
pub fn install(
    node: &Node,
    flavour: Flavour,
    cluster: IpNetwork,
    services: &[Service],
) -> Result<()> {
    let (local, iptables_program): (IpNetwork, _) = match cluster {
        IpNetwork::V4(_) => (node.subnet_env()?.subnet()?.into(), "iptables-nft"),
        IpNetwork::V6(_) => (node.subnet_env6()?.subnet()?.into(), "ip6tables-nft"),
    };
    let file = node.subnet_file.with_file_name("service-rules");
    let path = file.to_str().context("a path that is not UTF-8")?;
    match flavour {
        Flavour::Iptables => {
            fs::write(&file, iptables::text(cluster, local, services))?;
            restore(node, iptables_program, path)?;
        }
        Flavour::Nftables => {
            fs::write(&file, nftables::text(cluster, local, services))?;
            node.cmd("nft", ["-f", path])?;
        }
        Flavour::Ipvs => {
            ipvs::install(node, local, services)?;
            fs::write(&file, ipvs::text(cluster, services))?;
            restore(node, iptables_program, path)?;
        }
    }
    Ok(())
}

/// Replaces kube-proxy's chains, and has them called.
fn restore(node: &Node, program: &str, path: &str) -> Result<()> {
    node.cmd(&format!("{program}-restore"), ["--noflush", path])?;
    for (table, chain, target) in JUMPS {
        let rule = ["-t", table, "-C", chain, "-j", target];
        if node.cmd(program, rule).is_err() {
            node.cmd(program, ["-t", table, "-I", chain, "-j", target])?;
        }
    }
    Ok(())
}

const JUMPS: [(&str, &str, &str); 4] = [
    ("nat", "PREROUTING", "KUBE-SERVICES"),
    ("nat", "OUTPUT", "KUBE-SERVICES"),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
    ("filter", "FORWARD", "KUBE-FORWARD"),
];

impl Flavour {
    /// Whether the running kernel has what it takes.
    pub fn is_available(self) -> bool {
        self != Self::Ipvs || ipvs::is_there()
    }
}

impl Protocol {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Service {
    /// Backends with the number that is in the names of their chains.
    fn numbered(&self) -> impl Iterator<Item = (usize, SocketAddr)> {
        self.backends.iter().copied().enumerate()
    }

    fn backends_in(&self, subnet: IpNetwork) -> Vec<(usize, SocketAddr)> {
        let inside = |(_, backend): &(usize, SocketAddr)| subnet.contains(backend.ip());
        self.numbered().filter(inside).collect()
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}
