//! Time between two moments: of the wall clock, of the process, and of the core's `ksoftirqd`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

use super::Outcome;
use crate::bench::machine::{CpuTimes, TICK_NS};

/// Runs from its creation.
pub struct Meter {
    softirqd: PathBuf,
    start: Instant,
    process_ns: u64,
    softirqd_ns: u64,
    process_user_ns: u64,
    machine: CpuTimes,
}

impl Meter {
    pub fn start(cpu: usize) -> Result<Self> {
        let softirqd = find_softirqd(cpu)?;
        Ok(Self {
            softirqd_ns: run_time(&softirqd)?,
            softirqd,
            process_ns: process_time()?,
            process_user_ns: process_user_time()?,
            machine: CpuTimes::read()?,
            start: Instant::now(),
        })
    }

    pub fn stop(self, operations: u64, sent: u64) -> Result<Outcome> {
        let wall = self.start.elapsed();
        let machine = CpuTimes::read()?.since(&self.machine);
        Ok(Outcome {
            operations,
            sent,
            wall_ns: u64::try_from(wall.as_nanos())?,
            process_ns: process_time()? - self.process_ns,
            softirqd_ns: run_time(&self.softirqd)?.saturating_sub(self.softirqd_ns),
            process_user_ns: process_user_time()? - self.process_user_ns,
            machine_user_ns: machine.user_ns,
            machine_busy_ns: machine.busy_ns,
            machine_idle_ns: machine.idle_ns,
            steal_ns: machine.steal_ns,
            latency: None,
        })
    }
}

fn process_time() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(u64::try_from(Duration::from(time).as_nanos())?)
}

fn process_user_time() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/stat")?;
    // The name in brackets may contain anything; `utime` is the twelfth field after it.
    let ticks = text
        .rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(11)?.parse::<u64>().ok());
    Ok(ticks.with_context(|| format!("/proc/self/stat reads {text:?}"))? * TICK_NS)
}

/// The first number of `schedstat` is the time spent on the CPU, ns.
fn run_time(schedstat: &Path) -> Result<u64> {
    let text =
        fs::read_to_string(schedstat).with_context(|| format!("read {}", schedstat.display()))?;
    let first = text.split_whitespace().next();
    first
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("{} reads {text:?}", schedstat.display()))
}

fn find_softirqd(cpu: usize) -> Result<PathBuf> {
    let name = format!("ksoftirqd/{cpu}\n");
    for entry in fs::read_dir("/proc")? {
        let dir = entry?.path();
        // Processes end while they are listed, and what is no process has no such file.
        if fs::read_to_string(dir.join("comm")).is_ok_and(|comm| comm == name) {
            return Ok(dir.join("schedstat"));
        }
    }
    anyhow::bail!("no process ksoftirqd/{cpu}: run the load where the host's processes are visible")
}
