//! Leases that keep changing: what following them takes, and whether all of it arrives.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{cluster::Ghost, cost::Cost, start::Site};
use crate::wait::wait_for;

/// A lease that was deleted is written again after this long: in time to be kept, and too late.
const AWAY: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
/// Peers that are gone have left the kernel by then.
const DEADLINE: Duration = Duration::from_secs(20);
const SAMPLE: Duration = Duration::from_secs(10);

/// What a while of changes took.
#[derive(Clone, Debug)]
pub struct Churn {
    pub time: Duration,
    pub changes: u32,
    pub before: Cost,
    /// Every ten seconds, and at the end.
    pub samples: Vec<Cost>,
    /// What the kernel lacks in the end, or has too much; empty.
    pub lost: Vec<String>,
}

impl Churn {
    /// CPU time per second.
    pub fn load(&self) -> f64 {
        let last = self.samples.last().copied().unwrap_or_default();
        let cpu = last.cpu.saturating_sub(self.before.cpu);
        cpu.as_secs_f64() / self.time.as_secs_f64()
    }

    /// Resident memory in the end against that after the first ten seconds.
    pub fn growth_kib(&self) -> i64 {
        let rss = |cost: Option<&Cost>| cost.map_or(0, |cost| cost.rss.cast_signed());
        rss(self.samples.last()) - rss(self.samples.first())
    }

    pub fn to_json(&self) -> Value {
        let samples = self.samples.iter().map(|cost| cost.to_json());
        json!({
            "seconds": self.time.as_secs_f64(),
            "changes": self.changes,
            "cpu_per_second": self.load(),
            "growth_kib": self.growth_kib(),
            "before": self.before.to_json(),
            "samples": samples.collect::<Vec<_>>(),
            "lost": self.lost,
        })
    }
}

/// Changes one lease of a hundred each second: every second change is another MAC address, the others
/// take the lease away and bring it back.
pub fn run(site: &Site, time: Duration) -> Result<Churn> {
    let rate = (site.size / 100).max(1);
    let before = site.cost()?;
    let mut ghosts: BTreeMap<u32, Ghost> = (0..site.size).map(|i| (i, Ghost::new(i))).collect();
    let mut away: [VecDeque<(Instant, Ghost)>; 2] = Default::default();
    let mut samples = Vec::new();
    let began = Instant::now();
    let mut changes = 0;
    while began.elapsed() < time {
        let due = Duration::from_secs(1) * changes / rate;
        thread::sleep(due.saturating_sub(began.elapsed()));
        for gone in &mut away {
            while let Some((_, ghost)) = gone.pop_front_if(|(back, _)| *back <= Instant::now()) {
                site.writer.put(ghost)?;
                ghosts.insert(ghost.index, ghost);
            }
        }
        // In an order that has nothing to do with that of the subnets.
        let index = changes.wrapping_mul(7919) % site.size;
        if let Some(ghost) = ghosts.get_mut(&index) {
            if changes % 2 == 0 {
                ghost.generation = ghost.generation.wrapping_add(1);
                site.writer.put(*ghost)?;
            } else {
                let ghost = *ghost;
                site.writer.delete_all([ghost])?;
                ghosts.remove(&index);
                let which = usize::from(changes % 4 == 1);
                away[which].push_back((Instant::now() + AWAY[which], ghost));
            }
        }
        changes += 1;
        if began.elapsed() >= SAMPLE * u32::try_from(samples.len() + 1)? {
            samples.push(site.cost()?);
        }
    }
    let time = began.elapsed();
    samples.push(site.cost()?);
    // Those that are away stay away: what is gone has to leave the kernel.
    let wanted: Vec<_> = ghosts.into_values().collect();
    let settled = wait_for("the kernel to have what etcd has", DEADLINE, || {
        let lost = differences(site, &wanted)?;
        ensure!(lost.is_empty(), "{lost:?}");
        Ok(())
    });
    let lost = match settled {
        Ok(()) => Vec::new(),
        Err(_) => differences(site, &wanted)?,
    };
    site.writer.put_all((0..site.size).map(Ghost::new))?;
    Ok(Churn {
        time,
        changes,
        before,
        samples,
        lost,
    })
}

/// Up to ten things that the kernel lacks or has too much.
fn differences(site: &Site, ghosts: &[Ghost]) -> Result<Vec<String>> {
    let mut different = Vec::new();
    let mut compare = |what: &str, wanted: BTreeSet<String>, found: BTreeSet<String>| {
        let missing = wanted
            .difference(&found)
            .map(|text| format!("no {what} {text}"));
        let excess = found
            .difference(&wanted)
            .map(|text| format!("{what} {text}"));
        different.extend(missing.chain(excess));
    };
    let node = site.node();
    let routes = node.cmd("ip", ["route", "show", "dev", "flannel.1"])?;
    compare(
        "route",
        ghosts
            .iter()
            .map(|ghost| ghost.subnet().to_string())
            .collect(),
        words(&routes, 0),
    );
    let neighbours = node.cmd("ip", ["neigh", "show", "dev", "flannel.1"])?;
    compare(
        "neighbour",
        ghosts
            .iter()
            .map(|ghost| format!("{} {}", ghost.subnet().ip(), ghost.mac()))
            .collect(),
        neighbours
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some(format!("{} {}", words.next()?, words.nth(1)?))
            })
            .collect(),
    );
    let fdb = node.cmd("bridge", ["fdb", "show", "dev", "flannel.1"])?;
    compare(
        "forwarding entry",
        ghosts.iter().map(|ghost| ghost.mac()).collect(),
        words(&fdb, 0),
    );
    different.truncate(10);
    Ok(different)
}

/// The word with this number of each line.
fn words(text: &str, number: usize) -> BTreeSet<String> {
    let word = |line: &str| line.split_whitespace().nth(number).map(str::to_owned);
    text.lines().filter_map(word).collect()
}
