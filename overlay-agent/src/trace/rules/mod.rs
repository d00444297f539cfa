//! What the packet filter would say of a packet, as far as the texts of its rules tell.
//!
//! A rule holds, does not hold, or may hold: by marks, sets, limits and all else that is not of the packet. A
//! verdict that hangs on such a rule is unclear, and names it.

mod nft;
mod rule;
mod saved;

pub use self::rule::Seen;
use self::rule::{Chains, Holds, Target};
use crate::check::{BaseChain, Rules};

/// The kernel follows sixteen jumps.
const MAX_DEPTH: usize = 16;
/// Rules looked at for one packet.
const MAX_STEPS: usize = 200_000;

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

#[cfg(test)]
mod tests;
