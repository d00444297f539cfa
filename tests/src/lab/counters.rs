//! The packet counters of a node, read from the pinned map without the agent's help.

use std::{collections::BTreeMap, fmt, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use overlay_common::outcome::{Counter, Hook, Kind, Outcome, slot};

/// Packets by what happened to them, since the maps were made or since another reading.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    packets: BTreeMap<(Hook, Outcome), u64>,
}

impl Counters {
    pub fn read(pin: &Path) -> Result<Self> {
        let data = MapData::from_pin(pin).with_context(|| format!("open {}", pin.display()))?;
        let map = PerCpuArray::<_, Counter>::try_from(Map::PerCpuArray(data))?;
        let mut packets = BTreeMap::new();
        for &hook in Hook::ALL {
            for &outcome in Outcome::ALL {
                let per_cpu = map.get(&slot(hook, outcome), 0)?;
                let sum = per_cpu.iter().map(|counter| counter.packets).sum();
                packets.insert((hook, outcome), sum);
            }
        }
        Ok(Self { packets })
    }

    /// What was counted after `earlier` was read.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |(&key, &count): (&(Hook, Outcome), &u64)| {
            (
                key,
                count.saturating_sub(earlier.packets.get(&key).copied().unwrap_or_default()),
            )
        };
        Self {
            packets: self.packets.iter().map(difference).collect(),
        }
    }

    /// Adds another node's counters.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for (&key, &count) in &other.packets {
            *self.packets.entry(key).or_default() += count;
        }
        self
    }

    pub fn packets(&self, hook: Hook, outcome: Outcome) -> u64 {
        self.packets
            .get(&(hook, outcome))
            .copied()
            .unwrap_or_default()
    }

    /// Packets the programs forwarded at a hook.
    pub fn fast(&self, hook: Hook) -> u64 {
        self.at(hook)
            .filter(|(outcome, _)| outcome.kind() == Kind::Fast)
            .map(|(_, n)| n)
            .sum()
    }

    /// Packets dropped by the programs, at any hook.
    pub fn dropped(&self) -> u64 {
        let drops = self
            .packets
            .iter()
            .filter(|((_, outcome), _)| outcome.kind() == Kind::Drop);
        drops.map(|(_, &count)| count).sum()
    }

    /// Packets of the pod network that a hook saw. What pods send to their own node, ARP and the
    /// node's own traffic do not count.
    pub fn overlay(&self, hook: Hook) -> u64 {
        let foreign = [
            Outcome::NotOverlay,
            Outcome::NotIp,
            Outcome::NotGateway,
            Outcome::Unserved,
        ];
        self.at(hook)
            .filter(|(outcome, _)| !foreign.contains(outcome))
            .map(|(_, n)| n)
            .sum()
    }

    fn at(&self, hook: Hook) -> impl Iterator<Item = (Outcome, u64)> {
        let entries = self.packets.iter().filter(move |((at, _), _)| *at == hook);
        entries.map(|(&(_, outcome), &count)| (outcome, count))
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((hook, outcome), count) in self.packets.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "{:<8} {:<16} {count}", hook.name(), outcome.name())?;
        }
        Ok(())
    }
}
