//! Rules that judge packets one by one: string matches, queues to user space, limits, quotas. What
//! netfilter says of one packet of a flow says nothing of the next there, so such flows earn no permit.
//!
//! [`keep`] reads the rule set after each change, finds these rules ([`walk`]), and writes what they can
//! match to `OVL_SLOW`. What is not known counts as judging each packet; what half of all hosts have and
//! judges nothing does not: nat chains, limits before logs, states, sets and marks
//! ([ADR 11](../../../../docs/adr/0011-per-packet-rules.md)).

mod expr;
mod keep;
mod nft;
mod present;
mod reach;
mod read;
mod report;
mod ruleset;
mod save;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeSet;

pub use self::{
    keep::keep,
    reach::Reach,
    report::{Report, ReportedRule, everything, ignored},
    save::words,
};

/// What of the node a rule set is seen from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Flows are pairs of pods: neither ports nor TCP flags count.
    pub trusted: bool,
    /// Vxlan devices by name.
    pub vteps: BTreeSet<String>,
    pub underlays: BTreeSet<String>,
    /// UDP ports of tunnel packets; none where there are no tunnels.
    pub ipv4_port: Option<u16>,
    pub ipv6_port: Option<u16>,
}
