//! A rule set as far as it matters here, whichever tool told it.

use std::collections::BTreeMap;

use super::reach::Reach;

/// Conntrack states as bits.
pub mod state {
    pub const NEW: u8 = 1;
    pub const ESTABLISHED: u8 = 2;
    pub const RELATED: u8 = 4;
    pub const INVALID: u8 = 8;
    pub const UNTRACKED: u8 = 16;
    pub const ALL: u8 = 31;

    /// `None` if there is no such state.
    pub fn parse(name: &str) -> Option<u8> {
        Some(match name.to_ascii_lowercase().as_str() {
            "new" => NEW,
            "established" => ESTABLISHED,
            "related" => RELATED,
            "invalid" => INVALID,
            "untracked" => UNTRACKED,
            _ => return None,
        })
    }
}

/// Bits of the TCP header's flags.
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
    /// The flags that are the same in all packets the fast path takes, and those of them that are set.
    const FIXED: u8 = FIN | SYN | RST | ACK;

    pub fn parse(name: &str) -> Option<u8> {
        Some(match name.to_ascii_lowercase().as_str() {
            "fin" => FIN,
            "syn" => SYN,
            "rst" => RST,
            "psh" => 0x08,
            "ack" => ACK,
            "urg" => 0x20,
            "ecn" | "ece" => 0x40,
            "cwr" => 0x80,
            "none" => 0,
            "all" => 0x3f,
            _ => return None,
        })
    }

    /// Whether `flags & mask == value` holds for what the fast path takes.
    pub const fn equal(mask: u8, value: u8) -> super::Holds {
        if mask & FIXED & ACK != value & FIXED {
            super::Holds::Never
        } else if mask & !FIXED == 0 {
            super::Holds::Always
        } else {
            super::Holds::Sometimes
        }
    }

    /// Whether `flags & mask != 0` holds for what the fast path takes.
    pub const fn any(mask: u8) -> super::Holds {
        if mask & ACK != 0 {
            super::Holds::Always
        } else if mask & !FIXED == 0 {
            super::Holds::Never
        } else {
            super::Holds::Sometimes
        }
    }
}

/// Whether a condition holds for the packets of a flow that the fast path takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Always,
    Never,
    /// For some of them.
    Sometimes,
}

impl Holds {
    #[must_use]
    pub const fn not(self) -> Self {
        match self {
            Self::Always => Self::Never,
            Self::Never => Self::Always,
            Self::Sometimes => Self::Sometimes,
        }
    }
}

/// The rule set of this network namespace.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    pub tables: BTreeMap<TableId, RuleTable>,
}

/// The families of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableFamily {
    Ip,
    Ip6,
    Inet,
    Bridge,
    Netdev,
    Arp,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    pub family: TableFamily,
    pub name: String,
    /// Of the old ip_tables, which may have tables of the same names as nf_tables.
    pub legacy: bool,
}

#[derive(Clone, Debug, Default)]
pub struct RuleTable {
    pub chains: BTreeMap<String, Chain>,
    /// There are extensions of iptables in it.
    pub has_extensions: bool,
    /// Verdict maps with a name; `None` while what they hold is not known.
    pub maps: BTreeMap<String, Option<Vec<Effect>>>,
}

#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Where a base chain is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Decides once for each connection.
    pub is_nat: bool,
    pub hook: Hook,
    /// Of the ingress and egress hooks.
    pub devices: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Ingress,
    Egress,
}

#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub name: RuleName,
    /// In the order in which the kernel works through them.
    pub items: Vec<Item>,
}

/// What to call a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleName {
    Text(String),
    /// By which `nft` tells the text.
    Handle(u64),
}

impl Default for RuleName {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// A part of a rule. What neither narrows nor decides anything is left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Goes on only for these; for none that could be fast, if there are none.
    Only(Vec<Reach>),
    /// Goes on only for packets that came in, or go out, by one of these interfaces. `*` at the end
    /// stands for any.
    Interface {
        incoming: bool,
        names: Vec<String>,
    },
    /// Goes on for some flows, and nothing here tells for which.
    Condition,
    /// Of packets from one host to another some may go on and others not, by their source port or by who
    /// sends them.
    TellsApart,
    /// Goes on only in these states.
    States(u8),
    /// Goes on only for packets with certain TCP flags.
    Flags(Holds),
    /// Goes on for one packet of a flow and not for the next, because of what is named.
    Judge(String),
    Effect(Effect),
    /// Looks up what to do.
    Branches(Vec<(Vec<Item>, Effect)>),
    /// Looks up what to do in the map of that name.
    Map(String),
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Accepts, drops or rejects.
    End,
    Return,
    Jump(String),
    Goto(String),
    /// Changes something that later rules, or other parts of the kernel, decide by; of the whole
    /// connection, if so.
    Change {
        connection: bool,
    },
    /// Has connection tracking leave the packet alone.
    Untrack,
    /// Works on each packet of the flow; of both directions, if so.
    Work {
        what: String,
        connection: bool,
        ends: bool,
    },
}

impl Rule {
    /// Whether the rule can be of any consequence.
    pub fn matters(&self) -> bool {
        self.items
            .iter()
            .any(|item| matches!(item, Item::Effect(_) | Item::Branches(_) | Item::Map(_)))
    }
}

impl TableFamily {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
            Self::Arp => "arp",
        }
    }
}
