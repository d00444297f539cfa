//! What the programs know, from their maps.

use std::{collections::BTreeSet, net::SocketAddr};

use overlay_common::{
    outcome::Hook,
    slow::{EVERY_FLOW, Match, Slow},
};

use crate::{
    datapath::{DatapathError, PinDir},
    model::{Family, V4},
    trace::{
        facts::Translation,
        fast::{self, Fast, Maps, Side},
        packet::{Packet, Translated},
    },
    view::{EbpfTier, FlowTable, FlowTables, Overlay},
};

/// Names of rules that are told; `status` has all.
const MAX_RULES: usize = 3;

pub struct Programs<'a> {
    tier: &'a EbpfTier,
    flows: FlowTables,
    slow: Slow,
    /// Where programs run.
    places: BTreeSet<(Hook, u32)>,
}

impl<'a> Programs<'a> {
    /// `None` if the maps cannot be read, which is then said.
    pub fn read(pins: &PinDir, tier: &'a EbpfTier, missing: &mut Vec<String>) -> Option<Self> {
        let read = || -> Result<_, DatapathError> {
            let maps = crate::datapath::Maps::open(pins)?;
            Ok((FlowTables::of(&maps)?, maps.slow()?))
        };
        match read() {
            Ok((flows, slow)) => Some(Self {
                tier,
                flows,
                slow,
                places: { tier.links.iter() }
                    .filter(|link| link.alive)
                    .map(|link| (link.hook, link.ifindex))
                    .collect(),
            }),
            Err(error) => {
                missing.push(format!("flows are left out: {error}"));
                None
            }
        }
    }

    /// Whether the program of this side runs at an interface.
    pub fn are_at(&self, ifindex: u32, side: Side) -> bool {
        let hook = match side {
            Side::Egress => Hook::Egress,
            Side::Ingress => Hook::Ingress,
        };
        self.places.contains(&(hook, ifindex))
    }

    pub fn judge(&self, packet: &Packet, side: Side) -> Fast {
        let judged = if packet.source.is_ipv4() {
            let matches = &self.slow.ipv4[..];
            let maps = self.maps(
                self.tier.ipv4.as_ref(),
                self.flows.ipv4.as_ref(),
                (self.slow.ipv4_count, matches),
            );
            maps.map(|maps| fast::judge(&maps, packet, side))
        } else {
            let matches = &self.slow.ipv6[..];
            let maps = self.maps(
                self.tier.ipv6.as_ref(),
                self.flows.ipv6.as_ref(),
                (self.slow.ipv6_count, matches),
            );
            maps.map(|maps| fast::judge(&maps, packet, side))
        };
        judged.unwrap_or_else(|| Fast::never("the node serves no pods of this address family"))
    }

    /// What the flow table remembers of a translation.
    pub fn translation(&self, packet: &Packet, side: Side) -> Option<Translation> {
        let found: Option<(Translated, SocketAddr)> = if packet.source.is_ipv4() {
            let maps =
                self.maps::<V4>(self.tier.ipv4.as_ref(), self.flows.ipv4.as_ref(), (0, &[]))?;
            fast::translation(&maps, packet, side)
        } else {
            let maps = self.maps(self.tier.ipv6.as_ref(), self.flows.ipv6.as_ref(), (0, &[]))?;
            fast::translation(&maps, packet, side)
        };
        let (of, to) = found?;
        let known_by = "the flow table";
        Some(Translation { of, to, known_by })
    }

    fn maps<'b, F: Family>(
        &'b self,
        overlay: Option<&'b Overlay<F>>,
        table: Option<&'b FlowTable<F>>,
        (count, matches): (u32, &'b [Match<F>]),
    ) -> Option<Maps<'b, F>> {
        let count = usize::try_from(count).ok().filter(|_| count != EVERY_FLOW);
        Some(Maps {
            overlay: overlay?,
            flows: &table?.flows,
            now: self.flows.now,
            matches: count.map(|count| matches.get(..count).unwrap_or(matches)),
            rules: self.rules(),
        })
    }

    /// The rules that judge packets one by one.
    fn rules(&self) -> String {
        let report = &self.tier.per_packet_rules;
        if let Some(problem) = &report.problem {
            return problem.clone();
        }
        let rules = { report.rules.iter() }.take(MAX_RULES);
        let named: Vec<String> = rules
            .map(|rule| {
                format!(
                    "{} in chain {} of table {}",
                    rule.rule, rule.chain, rule.table
                )
            })
            .collect();
        named.join("; ")
    }
}
