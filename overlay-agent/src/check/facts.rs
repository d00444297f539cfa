//! What pitfalls are recognised by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::told::Duplicate;
use crate::{
    netlink::Link,
    subnet_env::Previous,
    view::{Device, Tier},
};

/// What was seen of this node and its host. What could not be read is empty.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The families this node serves.
    pub overlays: Vec<Overlay>,
    /// Whether the programs may forward: a fast path that is not off.
    pub is_fast: bool,
    /// Why there are no programs, where they were asked for.
    pub no_programs: Option<String>,
    pub kernel: Version,
    /// Settings below `/proc/sys`, by their names with dots.
    pub settings: BTreeMap<String, String>,
    /// Entries of conntrack, and how many there may be.
    pub conntrack: Option<(u64, u64)>,
    pub links: Vec<Link>,
    /// What `ethtool` says, by interface: of the underlays and of the tunnel devices.
    pub ethtool: BTreeMap<String, Ethtool>,
    /// Interfaces of pods on the host's side, and their bridges.
    pub pods: Vec<String>,
    /// Whether pods are ports of a bridge.
    pub bridged: bool,
    pub udp_sockets: Vec<UdpSocket>,
    pub rules: Rules,
    /// A file of systemd's that gives the tunnel device a MAC address, and its policy.
    pub mac_policy: Option<(String, String)>,
    /// CNI's configurations, the one that counts first, and the types of their plugins.
    pub cni: Vec<(String, Vec<String>)>,
    pub subnet_env: Option<SubnetFile>,
    /// Leases of two nodes with one address, as the agent knows them.
    pub duplicates: Vec<Duplicate>,
    /// By how many seconds this node's clock is ahead of the lease store's.
    pub clock_ahead_seconds: Option<i64>,
}

/// A family's overlay.
#[derive(Clone, Debug)]
pub struct Overlay {
    pub subnet: Option<IpNetwork>,
    pub network: Option<IpNetwork>,
    /// The address that packets to other nodes leave with.
    pub vtep: IpAddr,
    pub underlay: Option<Underlay>,
    /// MAC address that peers know, where there are vxlan packets.
    pub vtep_mac: Option<String>,
    pub vni: Option<u32>,
    pub port: Option<u16>,
    /// What the agent has told pods to use.
    pub pod_mtu: Option<u32>,
    pub tier: Tier,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    pub name: String,
    pub mtu: u32,
}

/// `6.1.50`; zeros if it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ethtool {
    pub driver: String,
    /// The features that are on.
    pub on: BTreeSet<String>,
}

/// A socket of a process, at the port of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpSocket {
    pub address: IpAddr,
    pub port: u16,
    /// `name (7)`.
    pub process: String,
}

/// The packet filter.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// What each iptables command has: `iptables-nft`, `iptables-legacy` and their like for IPv6.
    pub iptables: Vec<Saved>,
    /// Base chains in tables that no iptables command shows.
    pub base_chains: Vec<BaseChain>,
    /// Names of all nftables tables.
    pub tables: BTreeSet<String>,
}

/// The rules of one iptables command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    pub tool: String,
    pub is_legacy: bool,
    pub is_ipv6: bool,
    /// Policies of the filter table's chains.
    pub policies: BTreeMap<String, String>,
    /// Table and text of each rule.
    pub rules: Vec<(String, String)>,
}

/// A chain of a table of nftables that a hook calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// `inet firewall`.
    pub table: String,
    pub chain: String,
    pub hook: String,
    pub drops: bool,
    /// Text of its table.
    pub text: String,
}

/// The subnet file.
#[derive(Clone, Debug)]
pub struct SubnetFile {
    pub path: String,
    pub mtu: Option<u32>,
    pub said: Previous,
}

impl Facts {
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    /// Tunnel devices.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        let tiers = self.overlays.iter().map(|overlay| &overlay.tier);
        tiers.filter_map(|tier| tier.device.as_ref())
    }

    /// Whether there is anything to be said about this node.
    pub fn is_a_node(&self) -> bool {
        !self.overlays.is_empty()
    }
}

impl Version {
    /// Of `6.1.0-50-amd64`, say.
    pub fn parse(text: &str) -> Self {
        let digits = |part: &str| {
            let end = part.find(|c: char| !c.is_ascii_digit());
            part[..end.unwrap_or(part.len())].parse().unwrap_or(0)
        };
        let mut parts = text.trim().split('.').map(digits);
        let mut part = || parts.next().unwrap_or(0);
        Self(part(), part(), part())
    }
}

impl Saved {
    /// Reads what `iptables-save` prints.
    pub fn parse(tool: String, is_legacy: bool, is_ipv6: bool, text: &str) -> Self {
        let mut saved = Self {
            tool,
            is_legacy,
            is_ipv6,
            ..Self::default()
        };
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim();
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split_whitespace();
                if let (Some(chain), Some(policy), "filter") = (words.next(), words.next(), table) {
                    saved.policies.insert(chain.to_owned(), policy.to_owned());
                }
            } else if line.starts_with("-A ") {
                saved.rules.push((table.to_owned(), line.to_owned()));
            }
        }
        saved
    }

    /// The rules of one chain.
    pub fn chain<'a>(&'a self, table: &'a str, chain: &str) -> impl Iterator<Item = &'a str> {
        let start = format!("-A {chain} ");
        let rules = self.rules.iter().filter(move |(of, _)| of == table);
        rules
            .map(|(_, rule)| rule.as_str())
            .filter(move |rule| rule.starts_with(&start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_whatever_follows_them() {
        assert_eq!(Version::parse("6.1.0-50-amd64\n"), Version(6, 1, 0));
        assert_eq!(Version::parse("5.4.0-1103-aws"), Version(5, 4, 0));
        assert_eq!(Version::parse("7.2-rc3"), Version(7, 2, 0));
        assert_eq!(Version::parse(""), Version(0, 0, 0));
    }

    #[test]
    fn saved_rules_are_known_by_table_and_chain() {
        let text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j X\nCOMMIT\n\
                    *filter\n:FORWARD DROP [0:0]\n:X - [0:0]\n-A FORWARD -j X\n-A X -j ACCEPT\nCOMMIT\n";
        let saved = Saved::parse("iptables-nft".to_owned(), false, false, text);
        assert_eq!(saved.policies["FORWARD"], "DROP");
        assert!(!saved.policies.contains_key("POSTROUTING"));
        let rules: Vec<_> = saved.chain("filter", "FORWARD").collect();
        assert_eq!(rules, ["-A FORWARD -j X"]);
        assert_eq!(saved.chain("nat", "FORWARD").count(), 0);
    }
}
