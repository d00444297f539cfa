//! How many tests run at a time. Most of the lab's tests wait most of the time, for kernels, etcd and
//! timers; some keep a CPU busy for seconds, and have deadlines. So there is one for each CPU, and
//! another one whenever the CPUs had little to do.

use std::{
    fs,
    num::NonZeroUsize,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// More than so many for each CPU are not run at a time.
const MOST_PER_CPU: usize = 4;
/// What a test that just started gets to show what it needs.
const WINDOW: Duration = Duration::from_millis(250);
/// The share of its time that the machine must have been idle, in percent.
const SPARE: u64 = 40;

/// Time that all CPUs together spent since the machine booted, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    idle: u64,
    all: u64,
}

pub struct Pace {
    cpus: usize,
    /// The beginning of the window.
    since: Instant,
    before: Ticks,
}

impl Pace {
    pub fn new() -> Result<Self> {
        Ok(Self {
            cpus: thread::available_parallelism().map_or(1, NonZeroUsize::get),
            since: Instant::now(),
            before: Ticks::now()?,
        })
    }

    /// Whether another test may start beside `running`. If so, one is expected to.
    pub fn allows(&mut self, running: usize) -> Result<bool> {
        let allowed = running < self.cpus
            || running < self.cpus * MOST_PER_CPU
                && self.since.elapsed() >= WINDOW
                && self.was_idle()?;
        if allowed {
            self.since = Instant::now();
            self.before = Ticks::now()?;
        }
        Ok(allowed)
    }

    /// Whether the CPUs had little to do in the window, of which the next one begins.
    fn was_idle(&mut self) -> Result<bool> {
        let now = Ticks::now()?;
        let before = std::mem::replace(&mut self.before, now);
        self.since = Instant::now();
        Ok(now.spare_since(before))
    }
}

impl Ticks {
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&stat).with_context(|| format!("/proc/stat says\n{stat}"))
    }

    /// From the line that sums up all CPUs: user, nice, system, idle, iowait, irq, softirq, steal, and
    /// what is contained in these.
    fn parse(stat: &str) -> Option<Self> {
        let mut words = stat.lines().next()?.split_whitespace();
        words.next().filter(|word| *word == "cpu")?;
        let ticks: Option<Vec<u64>> = words.take(8).map(|word| word.parse().ok()).collect();
        let ticks = ticks.filter(|ticks| ticks.len() == 8)?;
        Some(Self {
            idle: ticks[3] + ticks[4],
            all: ticks.iter().sum(),
        })
    }

    fn spare_since(self, before: Self) -> bool {
        self.idle_since(before).is_some_and(|idle| idle >= SPARE)
    }

    /// The share of the time that the CPUs were idle, in percent.
    pub fn idle_since(self, before: Self) -> Option<u64> {
        let (idle, all) = (self.idle.saturating_sub(before.idle), self.all - before.all);
        (idle * 100).checked_div(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_nobody_used_or_waited_for_a_disk() {
        let before =
            Ticks::parse("cpu  100 0 50 1000 20 0 5 0 0 0\ncpu0 50 0 25 500 10 0 2 0 0 0\n");
        let before = before.expect("a line of /proc/stat");
        assert_eq!((before.idle, before.all), (1020, 1175));
        let spent = |busy, idle| Ticks {
            idle: before.idle + idle,
            all: before.all + busy + idle,
        };
        assert!(spent(60, 40).spare_since(before));
        assert!(!spent(61, 39).spare_since(before));
        assert!(!before.spare_since(before));
        assert_eq!(Ticks::parse("intr 5"), None);
        assert_eq!(Ticks::parse("cpu 1 2 3"), None);
    }

    #[test]
    fn there_is_always_a_test_for_each_cpu_and_never_more_than_some() {
        let mut pace = Pace::new().expect("/proc/stat");
        for running in 0..pace.cpus {
            assert!(pace.allows(running).expect("/proc/stat"));
        }
        let many = pace.cpus * MOST_PER_CPU;
        assert!(!pace.allows(many).expect("/proc/stat"));
    }
}
