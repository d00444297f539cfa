//! A rule, as far as it is understood, and whether it holds for the packet.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::trace::packet::{Packet, Protocol};

/// The packet where rules see it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub packet: Packet,
    pub incoming: Option<String>,
    pub outgoing: Option<String>,
    /// Of a connection that has been answered.
    pub is_established: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Yes,
    No,
    Maybe,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Something that ends neither the chain nor the packet.
    Work,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub text: String,
    pub holds: Holds,
    pub target: Target,
}

pub type Chains = BTreeMap<String, Vec<Rule>>;

/// Conditions of one rule, all of which have to hold.
pub struct Conditions<'a> {
    pub seen: &'a Seen,
    pub holds: Holds,
}

impl<'a> Conditions<'a> {
    pub const fn new(seen: &'a Seen) -> Self {
        Self {
            seen,
            holds: Holds::Yes,
        }
    }

    pub fn require(&mut self, holds: bool) {
        if !holds {
            self.holds = Holds::No;
        }
    }

    /// Something that the packet alone does not tell.
    pub fn doubt(&mut self) {
        if self.holds == Holds::Yes {
            self.holds = Holds::Maybe;
        }
    }

    /// One of the alternatives has to hold, or none of them if negated. `None` is one that is not understood.
    pub fn any_of(&mut self, alternatives: impl Iterator<Item = Option<bool>>, is_negated: bool) {
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

    pub fn address(&self, is_source: bool, text: &str) -> Option<bool> {
        let network: IpNetwork = text.parse().ok()?;
        Some(network.contains(if is_source {
            self.seen.packet.source
        } else {
            self.seen.packet.destination
        }))
    }

    /// A port, or a range with this between its ends.
    pub fn port(&self, is_source: bool, text: &str, between: char) -> Option<bool> {
        let port = if is_source {
            self.seen.packet.source_port
        } else {
            self.seen.packet.destination_port
        };
        let (first, last) = text.split_once(between).unwrap_or((text, text));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        Some((first..=last).contains(&port?))
    }

    pub fn protocol(&self, text: &str) -> Option<bool> {
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
    pub fn interface(&self, is_incoming: bool, text: &str, wildcard: char) -> bool {
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

    pub fn state(&self, text: &str) -> bool {
        let state = if self.seen.is_established {
            "established"
        } else {
            "new"
        };
        text.split(',').any(|one| one.eq_ignore_ascii_case(state))
    }
}
