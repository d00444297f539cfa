//! What is left to the kernel because of the rules found: for the programs, and for people.

use std::fmt::{self, Write as _};

use bytemuck::Zeroable as _;
use ipnetwork::IpNetwork;
use overlay_common::{
    family::{V4, V6, WireFamily},
    slow::{EGRESS, EVERY_FLOW, INGRESS, MAX_MATCHES, Match, REPORT_BYTES, Slow},
};
use serde::{Deserialize, Serialize};

use super::{
    reach::{ANY_PORT, IPV4, IPV6, Reach, simplified},
    ruleset::{RuleName, TableId},
    walk::{Finding, Findings},
};

/// Longer texts of rules are cut.
const MAX_TEXT: usize = 300;

/// What `status` says about rules that judge packets one by one. It is in `OVL_SLOW`, where it is to
/// be had without an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether such rules are looked for.
    pub heeded: bool,
    /// Why everything is left to the kernel, if that is not for a rule.
    pub problem: Option<String>,
    pub rules: Vec<ReportedRule>,
    /// Rules found that are not among these.
    pub more: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedRule {
    /// `ip filter`
    pub table: String,
    pub chain: String,
    pub rule: String,
    /// What of the packet, or of the moment, it judges by.
    pub judges_by: String,
    /// Flows that stay on the kernel path because of it.
    pub left_to_kernel: Vec<String>,
}

impl fmt::Display for ReportedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in chain {} of table {} judges each packet ({}): {}",
            self.rule,
            self.chain,
            self.table,
            self.judges_by,
            self.left_to_kernel.join(", ")
        )
    }
}

impl Report {
    /// The one in the map; `None` if there is none, as before the first.
    pub fn of(slow: &Slow) -> Option<Self> {
        let len = usize::try_from(slow.report_len).ok()?;
        serde_json::from_slice(slow.report.get(..len)?).ok()
    }

    /// Puts it into `slow`; rules for which there is no room are counted.
    fn write(mut self, slow: &mut Slow) {
        loop {
            // Texts and numbers always serialize.
            let text = serde_json::to_vec(&self).unwrap_or_default();
            if let Some(room) = slow.report.get_mut(..text.len()) {
                room.copy_from_slice(&text);
                slow.report_len = u32::try_from(text.len()).unwrap_or_default();
                return;
            }
            if self.rules.pop().is_none() {
                return;
            }
            self.more += 1;
        }
    }
}

const _: () = assert!(REPORT_BYTES >= 4096, "room for a few rules");

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.name(), self.name)?;
        if self.legacy {
            f.write_str(" (legacy)")?;
        }
        Ok(())
    }
}

/// No rule is looked for.
pub fn ignored() -> Slow {
    let mut slow = Slow::zeroed();
    Report::default().write(&mut slow);
    slow
}

/// Everything is left to the kernel for another reason than a rule.
pub fn everything(problem: &str) -> Slow {
    let mut slow = Slow::zeroed();
    (slow.ipv4_count, slow.ipv6_count) = (EVERY_FLOW, EVERY_FLOW);
    slow.outer = u32::from(EGRESS | INGRESS);
    let report = Report {
        heeded: true,
        problem: Some(problem.to_owned()),
        ..Report::default()
    };
    report.write(&mut slow);
    slow
}

/// What follows from `findings`.
pub fn of_findings(findings: &Findings) -> Slow {
    let mut slow = Slow::zeroed();
    let reach = || findings.rules.iter().flat_map(|finding| &finding.reach);
    slow.ipv4_count = matches::<V4>(reach(), IPV4, &mut slow.ipv4);
    slow.ipv6_count = matches::<V6>(reach(), IPV6, &mut slow.ipv6);
    slow.outer = findings.outer.into();
    let report = Report {
        heeded: true,
        problem: None,
        rules: findings.rules.iter().map(reported).collect(),
        more: 0,
    };
    report.write(&mut slow);
    slow
}

fn reported(finding: &Finding) -> ReportedRule {
    let rule = match &finding.rule {
        RuleName::Text(text) => cut(text),
        RuleName::Handle(handle) => format!("handle {handle}"),
    };
    ReportedRule {
        table: finding.table.to_string(),
        chain: finding.chain.clone(),
        rule,
        judges_by: finding.by.clone(),
        left_to_kernel: finding.reach.iter().map(Reach::to_string).collect(),
    }
}

fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_TEXT).collect();
    if cut.len() < text.len() {
        _ = cut.write_str(" …");
    }
    cut
}

/// Writes those of the family, merged until they fit. Returns the count for [`Slow`].
fn matches<'a, F: AddressFamily>(
    reach: impl Iterator<Item = &'a Reach>,
    family: u8,
    room: &mut [Match<F>; MAX_MATCHES],
) -> u32 {
    let of_family: Vec<Reach> = reach
        .filter(|reach| reach.families & family != 0)
        .map(|reach| Reach {
            families: family,
            ..*reach
        })
        .collect();
    let fitting = WIDENINGS
        .iter()
        .map(|widen| simplified(of_family.iter().copied().map(widen)))
        .find(|merged| merged.len() <= MAX_MATCHES);
    let Some(merged) = fitting else {
        return EVERY_FLOW;
    };
    if merged.contains(&Reach::families(family)) {
        return EVERY_FLOW;
    }
    for (entry, reach) in room.iter_mut().zip(&merged) {
        *entry = F::entry(reach);
    }
    u32::try_from(merged.len()).unwrap_or(EVERY_FLOW)
}

/// Ways to make many matches fewer, the narrowest first.
const WIDENINGS: [fn(Reach) -> Reach; 4] = [
    |reach| reach,
    without_ports,
    without_addresses,
    |reach| without_ports(without_addresses(reach)),
];

fn without_ports(reach: Reach) -> Reach {
    Reach {
        source_ports: ANY_PORT,
        destination_ports: ANY_PORT,
        ..reach
    }
}

fn without_addresses(reach: Reach) -> Reach {
    Reach {
        source: None,
        destination: None,
        ..reach
    }
}

trait AddressFamily: WireFamily {
    /// First address and mask of a network of the family; all zero for any.
    fn subnet(network: Option<IpNetwork>) -> (Self::Be, Self::Be);

    fn entry(reach: &Reach) -> Match<Self> {
        let (src, src_mask) = Self::subnet(reach.source);
        let (dst, dst_mask) = Self::subnet(reach.destination);
        let ports = |(first, last)| [first, last];
        Match {
            src,
            src_mask,
            dst,
            dst_mask,
            src_ports: ports(reach.source_ports),
            dst_ports: ports(reach.destination_ports),
            protocols: reach.protocols,
            directions: reach.directions,
            ..Match::default()
        }
    }
}

impl AddressFamily for V4 {
    fn subnet(network: Option<IpNetwork>) -> (Self::Be, Self::Be) {
        match network {
            Some(IpNetwork::V4(network)) => (network.network().into(), network.mask().into()),
            _ => Default::default(),
        }
    }
}

impl AddressFamily for V6 {
    fn subnet(network: Option<IpNetwork>) -> (Self::Be, Self::Be) {
        match network {
            Some(IpNetwork::V6(network)) => (network.network().into(), network.mask().into()),
            _ => Default::default(),
        }
    }
}
