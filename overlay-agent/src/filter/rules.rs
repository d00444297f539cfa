//! The rules themselves, as text: flannel's `FLANNEL-POSTRTG` and `FLANNEL-FWD` in the iptables
//! syntax, flannel's `flannel-ipv4`/`flannel-ipv6` tables in the nftables syntax, and the rules
//! that keep the source address of pods. Pure.
//!
//! The texts are flannel's own because people and scripts compare them. Two of flannel's nftables
//! rules differ from its iptables rules by mistake (the mark is compared whole instead of masked,
//! and the fourth rule makes the last one unreachable); here both modes mean the same.

use std::fmt::Write as _;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use super::{
    family::RuleFamily,
    iptables::diff::{ChainSpec, IptablesTable, Place},
};

/// Mark kube-proxy puts on packets it wants masqueraded.
const KUBE_MASQUERADE_MARK: u32 = 0x4000;

const MASQUERADE_COMMENT: &str = "flanneld masq";
const FORWARD_COMMENT: &str = "flanneld forward";
const POD_SOURCE_COMMENT: &str = "overlay pod source";

const MASQUERADE: &str = "MASQUERADE";
/// Source ports chosen at random, against the clash of two connections choosing the same one.
const RANDOM_MASQUERADE: &str = "MASQUERADE --random-fully";

/// The whole pod network and this node's part of it, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    network: IpNetwork,
    subnet: IpNetwork,
}

/// What to install. A rule set that is not asked for is removed if it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `EnableNFTables` of the network config.
    pub mode: Mode,
    pub masquerade: Masquerade,
    /// `--iptables-forward-rules`: accept pod traffic in the forward hook.
    pub forward: bool,
    /// Traffic between pods keeps its source whatever other masquerade rules say.
    pub keep_pod_source: bool,
    /// One entry per address family in use.
    pub networks: Vec<PodNetwork>,
}

/// `--ip-masq`: whether traffic leaving the pod network takes the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    Off,
    On {
        /// Off with `--ip-masq-fully-random-disable`.
        fully_random: bool,
    },
}

/// Which of flannel's two rule syntaxes is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Iptables,
    Nftables,
}

/// What the `nft` command and the kernel understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Comments on tables and chains (Linux 5.10, nft 0.9.7).
    pub comments: bool,
    pub fully_random: bool,
}

/// A whole table, written as `nft list table` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftTable {
    pub family: RuleFamily,
    pub name: &'static str,
    pub text: String,
}

/// The table of the pod source rules, in both families.
pub const POD_SOURCE_TABLE: &str = "overlay-agent";

impl Masquerade {
    pub fn is_on(self) -> bool {
        self != Self::Off
    }

    pub fn fully_random(self) -> bool {
        matches!(self, Self::On { fully_random: true })
    }
}

impl PodNetwork {
    /// Host bits are dropped: `10.5.34.1/24` of an env file means `10.5.34.0/24`.
    pub fn v4(network: Ipv4Network, subnet: Ipv4Network) -> Self {
        Self::masked(network.into(), subnet.into())
    }

    pub fn v6(network: Ipv6Network, subnet: Ipv6Network) -> Self {
        Self::masked(network.into(), subnet.into())
    }

    fn masked(network: IpNetwork, subnet: IpNetwork) -> Self {
        let mask = |net: IpNetwork| IpNetwork::new(net.network(), net.prefix()).unwrap_or(net);
        Self {
            network: mask(network),
            subnet: mask(subnet),
        }
    }

    pub fn family(&self) -> RuleFamily {
        match self.network {
            IpNetwork::V4(_) => RuleFamily::V4,
            IpNetwork::V6(_) => RuleFamily::V6,
        }
    }
}

/// The masquerade chain of the iptables mode. `None` for `pod` means: absent.
pub fn masquerade_chain(pod: Option<&PodNetwork>, random: bool) -> ChainSpec {
    let rules = pod.map(|pod| {
        let (c, p, m) = (pod.network, pod.subnet, pod.family().multicast());
        let masquerade = if random {
            RANDOM_MASQUERADE
        } else {
            MASQUERADE
        };
        commented(
            MASQUERADE_COMMENT,
            &[
                (marked_by_kube(), "RETURN"),
                (format!("-s {p} -d {c}"), "RETURN"),
                (format!("-s {c} -d {p}"), "RETURN"),
                (format!("! -s {c} -d {p}"), "RETURN"),
                (format!("-s {c} ! -d {m}"), masquerade),
                (format!("! -s {c} -d {c}"), masquerade),
            ],
        )
    });
    ChainSpec {
        table: IptablesTable::Nat,
        name: "FLANNEL-POSTRTG",
        hook: "POSTROUTING",
        place: Place::Last,
        jump: format!("-m comment --comment \"{MASQUERADE_COMMENT}\" -j FLANNEL-POSTRTG"),
        rules,
    }
}

/// The forward chain of the iptables mode. `None` for `pod` means: absent.
///
/// The jump is appended, as flannel's is: rules of the administrator and of network policies come
/// first.
pub fn forward_chain(pod: Option<&PodNetwork>) -> ChainSpec {
    let rules = pod.map(|pod| {
        let c = pod.network;
        commented(
            FORWARD_COMMENT,
            &[(format!("-s {c}"), "ACCEPT"), (format!("-d {c}"), "ACCEPT")],
        )
    });
    ChainSpec {
        table: IptablesTable::Filter,
        name: "FLANNEL-FWD",
        hook: "FORWARD",
        place: Place::Last,
        jump: format!("-m comment --comment \"{FORWARD_COMMENT}\" -j FLANNEL-FWD"),
        rules,
    }
}

/// The pod source rules for hosts without `nft`. `None` for `pod` means: absent.
///
/// The jump has to come before every rule that may masquerade, so it is kept in first place.
/// What goes to a pod of this node is left to the other rules: Docker and kube-proxy masquerade a
/// pod that reaches itself through a published port, and have to. So is what kube-proxy marked.
pub fn pod_source_chain(pod: Option<&PodNetwork>) -> ChainSpec {
    let rules = pod.map(|pod| {
        let (c, p) = (pod.network, pod.subnet);
        commented(
            POD_SOURCE_COMMENT,
            &[
                (marked_by_kube(), "RETURN"),
                (format!("-d {p}"), "RETURN"),
                (format!("-s {c} -d {c}"), "ACCEPT"),
            ],
        )
    });
    ChainSpec {
        table: IptablesTable::Nat,
        name: "OVERLAY-PODSRC",
        hook: "POSTROUTING",
        place: Place::First,
        jump: format!("-m comment --comment \"{POD_SOURCE_COMMENT}\" -j OVERLAY-PODSRC"),
        rules,
    }
}

/// Rules that flannel up to v0.19 put straight into the built-in chains, for the network and
/// subnet it used then, with and without their comment: `(table, hook, rule)`.
pub fn chainless_rules(pod: &PodNetwork) -> Vec<(IptablesTable, &'static str, String)> {
    let (c, p, m) = (pod.network, pod.subnet, pod.family().multicast());
    let nat = [
        (format!("-s {c} -d {c}"), "RETURN"),
        (format!("-s {c} ! -d {m}"), MASQUERADE),
        (format!("-s {c} ! -d {m}"), RANDOM_MASQUERADE),
        (format!("! -s {c} -d {p}"), "RETURN"),
        (format!("! -s {c} -d {c}"), MASQUERADE),
        (format!("! -s {c} -d {c}"), RANDOM_MASQUERADE),
    ];
    let forward = [(format!("-s {c}"), "ACCEPT"), (format!("-d {c}"), "ACCEPT")];
    let plain = |(matches, target): &(String, &str)| format!("{matches} -j {target}");
    let nat_rules = nat
        .iter()
        .map(plain)
        .chain(commented(MASQUERADE_COMMENT, &nat));
    let forward_rules = forward
        .iter()
        .map(plain)
        .chain(commented(FORWARD_COMMENT, &forward));
    nat_rules
        .map(|rule| (IptablesTable::Nat, "POSTROUTING", rule))
        .chain(forward_rules.map(|rule| (IptablesTable::Filter, "FORWARD", rule)))
        .collect()
}

fn marked_by_kube() -> String {
    format!("-m mark --mark {KUBE_MASQUERADE_MARK:#x}/{KUBE_MASQUERADE_MARK:#x}")
}

/// Rules with their comment between matches and target, where flannel has it.
fn commented(comment: &str, rules: &[(String, &str)]) -> Vec<String> {
    rules
        .iter()
        .map(|(matches, target)| {
            format!("{matches} -m comment --comment \"{comment}\" -j {target}")
        })
        .collect()
}

/// flannel's table of the nftables mode. It exists even when neither rule set is asked for.
pub fn flannel_table(pod: &PodNetwork, settings: &Settings, dialect: Dialect) -> NftTable {
    let family = pod.family();
    let (f, c, p, m) = (family.nft(), pod.network, pod.subnet, family.multicast());
    let name = family.flannel_table();
    let mut chains = Vec::new();
    if settings.masquerade.is_on() {
        let masquerade = if dialect.fully_random {
            "masquerade fully-random"
        } else {
            "masquerade"
        };
        chains.push(NftChain {
            name: "postrtg",
            comment: "chain to manage traffic masquerading by flannel",
            hook: "type nat hook postrouting priority srcnat; policy accept;",
            rules: vec![
                format!(
                    "meta mark & {0:#010x} == {0:#010x} return",
                    KUBE_MASQUERADE_MARK
                ),
                format!("{f} saddr {p} {f} daddr {c} return"),
                format!("{f} saddr {c} {f} daddr {p} return"),
                format!("{f} saddr != {c} {f} daddr {p} return"),
                format!("{f} saddr {c} {f} daddr != {m} {masquerade}"),
                format!("{f} saddr != {c} {f} daddr {c} {masquerade}"),
            ],
        });
    }
    if settings.forward {
        chains.push(NftChain {
            name: "forward",
            comment: "chain to accept flannel traffic",
            hook: "type filter hook forward priority filter; policy accept;",
            rules: vec![
                format!("{f} saddr {c} accept"),
                format!("{f} daddr {c} accept"),
            ],
        });
    }
    NftTable {
        family,
        name,
        text: table_text(family, name, &format!("rules for {name}"), &chains, dialect),
    }
}

/// The pod source rules as an nftables table of their own, used in both modes where `nft` exists.
///
/// NAT is decided once per connection by the first base chain that binds an address, so a chain
/// one step before `srcnat` that binds the address the packet already has settles the matter
/// before any chain of Docker, kube-proxy or a CNI plugin is asked, in nftables, iptables-nft and
/// iptables-legacy alike, and whatever the order in which those insert their rules. The exceptions
/// are those of [`pod_source_chain`].
pub fn pod_source_table(pod: &PodNetwork, dialect: Dialect) -> NftTable {
    let family = pod.family();
    let (f, c, p) = (family.nft(), pod.network, pod.subnet);
    let chain = NftChain {
        name: "pod-source",
        comment: "traffic between pods keeps its source address",
        hook: "type nat hook postrouting priority srcnat - 1; policy accept;",
        rules: vec![
            format!(
                "meta mark & {0:#010x} == {0:#010x} return",
                KUBE_MASQUERADE_MARK
            ),
            format!("{f} daddr {p} return"),
            format!("{f} saddr {c} {f} daddr {c} snat to {f} saddr"),
        ],
    };
    NftTable {
        family,
        name: POD_SOURCE_TABLE,
        text: table_text(
            family,
            POD_SOURCE_TABLE,
            "rules of overlay-agent beside flannel's",
            &[chain],
            dialect,
        ),
    }
}

struct NftChain {
    name: &'static str,
    comment: &'static str,
    hook: &'static str,
    rules: Vec<String>,
}

/// Renders a table exactly as `nft list table` prints it, so that what is read back can be
/// compared.
fn table_text(
    family: RuleFamily,
    name: &str,
    comment: &str,
    chains: &[NftChain],
    dialect: Dialect,
) -> String {
    let mut text = format!("table {} {name} {{\n", family.nft());
    if dialect.comments {
        _ = writeln!(text, "\tcomment \"{comment}\"");
    }
    for (index, chain) in chains.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        _ = writeln!(text, "\tchain {} {{", chain.name);
        if dialect.comments {
            _ = writeln!(text, "\t\tcomment \"{}\"", chain.comment);
        }
        _ = writeln!(text, "\t\t{}", chain.hook);
        for rule in &chain.rules {
            _ = writeln!(text, "\t\t{rule}");
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests;
