//! The counters of every outcome at every hook.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{MapData, PerCpuArray};
use overlay_common::{
    maps,
    outcome::{COUNTERS, Counter, Hook, OUTCOMES_PER_HOOK, Outcome, slot},
};

use super::handle::{map_error, open, typed};
use crate::datapath::{error::DatapathError, pins::PinDir, sys};

/// The pinned `OVL_STATS`.
pub struct Stats {
    array: PerCpuArray<MapData, Counter>,
    fd: OwnedFd,
}

impl Stats {
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        let (array, fd, _) = open(pins, maps::STATS)?;
        Ok(Self {
            array: typed(array, maps::STATS)?,
            fd,
        })
    }

    /// Summed over the CPUs.
    pub fn read(&self) -> Result<Vec<(Hook, Outcome, Counter)>, DatapathError> {
        const { assert!(COUNTERS >= (OUTCOMES_PER_HOOK as usize) * Hook::ALL.len()) };
        let all = self.at_once();
        let mut counters = Vec::with_capacity(Hook::ALL.len() * Outcome::ALL.len());
        for &hook in Hook::ALL {
            for &outcome in Outcome::ALL {
                let slot = slot(hook, outcome);
                let sum = match all.get(slot as usize) {
                    Some(sum) => *sum,
                    None => self.at(slot)?,
                };
                counters.push((hook, outcome, sum));
            }
        }
        Ok(counters)
    }

    /// All slots by one system call; none where the kernel cannot do that.
    fn at_once(&self) -> Vec<Counter> {
        let Ok(cpus) = aya::util::nr_cpus() else {
            return Vec::new();
        };
        let values = sys::first_values::<Counter>(self.fd.as_fd(), COUNTERS, cpus);
        let values = values.unwrap_or_default();
        values.chunks(cpus.max(1)).map(sum).collect()
    }

    fn at(&self, slot: u32) -> Result<Counter, DatapathError> {
        let per_cpu = self.array.get(&slot, 0);
        let per_cpu = per_cpu.map_err(map_error("read", maps::STATS))?;
        Ok(sum(per_cpu.iter()))
    }
}

/// Counters wrap, and so do their sums.
fn sum<'a>(cpus: impl IntoIterator<Item = &'a Counter>) -> Counter {
    let nothing = Counter::default();
    cpus.into_iter().fold(nothing, |sum, cpu| Counter {
        packets: sum.packets.wrapping_add(cpu.packets),
        bytes: sum.bytes.wrapping_add(cpu.bytes),
    })
}
