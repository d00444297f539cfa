//! What the packet filter would say of a packet, as far as the texts of its rules tell.
//!
//! A rule holds, does not hold, or may hold: by marks, sets, limits and all else that is not of the packet. A
//! verdict that hangs on such a rule is unclear, and names it.

mod nft;
mod saved;

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::packet::{Packet, Protocol};
use crate::check::{BaseChain, Rules};

/// The kernel follows sixteen jumps.
const MAX_DEPTH: usize = 16;
/// Rules looked at for one packet.
const MAX_STEPS: usize = 200_000;

/// The packet where rules see it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub packet: Packet,
    pub incoming: Option<String>,
    pub outgoing: Option<String>,
    /// Of a connection that has been answered.
    pub is_established: bool,
}

/// Which chains it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    Forwarded,
    /// From the host itself.
    Sent,
    /// To the host itself.
    Received,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    Accepted,
    Dropped {
        by: String,
    },
    /// It depends on what the text does not tell.
    Unclear {
        by: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Maybe,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Something that ends neither the chain nor the packet.
    Work,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    text: String,
    holds: Holds,
    target: Target,
}

type Chains = BTreeMap<String, Vec<Rule>>;

/// The verdict of all rules on the way.
pub fn passage(rules: &Rules, seen: &Seen, course: Course) -> Passage {
    let mut doubts = Doubts::default();
    for saved in &rules.iptables {
        if saved.is_ipv6 == seen.packet.source.is_ipv4() {
            continue;
        }
        for &(table, base) in course.iptables() {
            let chains = saved::chains(saved, table, seen);
            let policy = saved.policies.get(base).filter(|_| table == "filter");
            let drops = policy.is_some_and(|policy| policy == "DROP");
            let place = format!("of {table} {base} ({})", saved.tool);
            if let Some(passage) = doubts.walk(&chains, base, drops, &place) {
                return passage;
            }
        }
    }
    for chain in &rules.base_chains {
        if !course.is_met(chain, seen) {
            continue;
        }
        let chains = nft::chains(&chain.text, seen);
        let place = format!("of chain {} in table {}", chain.chain, chain.table);
        if let Some(passage) = doubts.walk(&chains, &chain.chain, chain.drops, &place) {
            return passage;
        }
    }
    match doubts.dropped {
        Some(by) => Passage::Unclear { by },
        None => Passage::Accepted,
    }
}

impl Course {
    const fn iptables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Forwarded => &[
                ("raw", "PREROUTING"),
                ("mangle", "PREROUTING"),
                ("mangle", "FORWARD"),
                ("filter", "FORWARD"),
                ("security", "FORWARD"),
                ("mangle", "POSTROUTING"),
            ],
            Self::Sent => &[
                ("raw", "OUTPUT"),
                ("mangle", "OUTPUT"),
                ("filter", "OUTPUT"),
                ("security", "OUTPUT"),
                ("mangle", "POSTROUTING"),
            ],
            Self::Received => &[
                ("raw", "PREROUTING"),
                ("mangle", "PREROUTING"),
                ("mangle", "INPUT"),
                ("filter", "INPUT"),
                ("security", "INPUT"),
            ],
        }
    }

    fn is_met(self, chain: &BaseChain, seen: &Seen) -> bool {
        let family = chain.table.split(' ').next().unwrap_or_default();
        let is_of_family = match family {
            "ip" => seen.packet.source.is_ipv4(),
            "ip6" => seen.packet.source.is_ipv6(),
            "inet" => true,
            _ => false,
        };
        let hooks: &[&str] = match self {
            Self::Forwarded => &["prerouting", "forward", "postrouting"],
            Self::Sent => &["output", "postrouting"],
            Self::Received => &["prerouting", "input"],
        };
        is_of_family && hooks.contains(&&*chain.hook)
    }
}

/// Rules that may have decided.
#[derive(Default)]
struct Doubts {
    dropped: Option<String>,
    /// In the chain that is walked, for its end.
    accepted: Option<String>,
    steps: usize,
}

enum End {
    Accepted,
    Dropped(String),
    /// Back in the chain that jumped.
    Through,
}

impl Doubts {
    /// Walks one base chain. Returns a verdict if it is the last word.
    fn walk(&mut self, chains: &Chains, base: &str, drops: bool, place: &str) -> Option<Passage> {
        self.accepted = None;
        let end = self.chain(chains, base, true, 0);
        let by = match end {
            End::Through if drops => format!("the policy {place}"),
            End::Accepted | End::Through => return None,
            End::Dropped(rule) => format!("the rule {rule} {place}"),
        };
        Some(match self.accepted.take() {
            Some(earlier) => Passage::Unclear {
                by: format!("{by}, unless {earlier} accepts it before"),
            },
            None => Passage::Dropped { by },
        })
    }

    fn chain(&mut self, chains: &Chains, name: &str, mut is_certain: bool, depth: usize) -> End {
        if depth > MAX_DEPTH {
            return End::Through;
        }
        for rule in chains.get(name).into_iter().flatten() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return End::Through;
            }
            if rule.holds == Holds::No {
                continue;
            }
            let is_sure = is_certain && rule.holds == Holds::Yes;
            match &rule.target {
                Target::Work => {}
                Target::Accept if is_sure => return End::Accepted,
                Target::Accept => {
                    self.accepted.get_or_insert_with(|| rule.text.clone());
                }
                Target::Drop if is_sure => return End::Dropped(rule.text.clone()),
                Target::Drop => {
                    let by = || format!("the rule {}, which may match", rule.text);
                    self.dropped.get_or_insert_with(by);
                }
                Target::Return if is_sure => return End::Through,
                Target::Return => is_certain = false,
                Target::Jump(to) => match self.chain(chains, to, is_sure, depth + 1) {
                    End::Through => {}
                    end => return end,
                },
                Target::Goto(to) => match self.chain(chains, to, is_sure, depth + 1) {
                    End::Through if is_sure => return End::Through,
                    End::Through => is_certain = false,
                    end => return end,
                },
            }
        }
        End::Through
    }
}

/// Conditions of one rule, all of which have to hold.
struct Conditions<'a> {
    seen: &'a Seen,
    holds: Holds,
}

impl<'a> Conditions<'a> {
    const fn new(seen: &'a Seen) -> Self {
        Self {
            seen,
            holds: Holds::Yes,
        }
    }

    fn require(&mut self, holds: bool) {
        if !holds {
            self.holds = Holds::No;
        }
    }

    /// Something that the packet alone does not tell.
    fn doubt(&mut self) {
        if self.holds == Holds::Yes {
            self.holds = Holds::Maybe;
        }
    }

    /// One of the alternatives has to hold, or none of them if negated. `None` is one that is not understood.
    fn any_of(&mut self, alternatives: impl Iterator<Item = Option<bool>>, is_negated: bool) {
        let mut holds = Some(false);
        for alternative in alternatives {
            match alternative {
                Some(true) => {
                    holds = Some(true);
                    break;
                }
                Some(false) => {}
                None => holds = None,
            }
        }
        match holds {
            Some(holds) => self.require(holds != is_negated),
            None => self.doubt(),
        }
    }

    fn address(&self, is_source: bool, text: &str) -> Option<bool> {
        let network: IpNetwork = text.parse().ok()?;
        Some(network.contains(if is_source {
            self.seen.packet.source
        } else {
            self.seen.packet.destination
        }))
    }

    /// A port, or a range with this between its ends.
    fn port(&self, is_source: bool, text: &str, between: char) -> Option<bool> {
        let port = if is_source {
            self.seen.packet.source_port
        } else {
            self.seen.packet.destination_port
        };
        let (first, last) = text.split_once(between).unwrap_or((text, text));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        Some((first..=last).contains(&port?))
    }

    fn protocol(&self, text: &str) -> Option<bool> {
        let number = self.seen.packet.protocol_number();
        Some(match text {
            "all" => true,
            "tcp" => self.seen.packet.protocol == Protocol::Tcp,
            "udp" => self.seen.packet.protocol == Protocol::Udp,
            "icmp" => number == 1,
            "ipv6-icmp" | "icmpv6" => number == 58,
            "sctp" | "esp" | "ah" | "gre" | "dccp" | "udplite" | "igmp" | "vrrp" => false,
            other => other.parse::<u8>().ok()? == number,
        })
    }

    /// An interface, with this at the end of a name that stands for all that begin so.
    fn interface(&self, is_incoming: bool, text: &str, wildcard: char) -> bool {
        let name = if is_incoming {
            self.seen.incoming.as_deref()
        } else {
            self.seen.outgoing.as_deref()
        };
        let name = name.unwrap_or_default();
        match text.strip_suffix(wildcard) {
            Some(prefix) => name.starts_with(prefix),
            None => name == text,
        }
    }

    fn state(&self, text: &str) -> bool {
        let state = if self.seen.is_established {
            "established"
        } else {
            "new"
        };
        text.split(',').any(|one| one.eq_ignore_ascii_case(state))
    }
}

#[cfg(test)]
mod tests;
