//! What a process took so far.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use serde_json::{Value, json};

/// Time on the CPU, and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub cpu: Duration,
    /// Resident, KiB.
    pub rss: u64,
    /// What of it is no page of a file, KiB. Those of files, the executable first of all, the kernel takes back
    /// where memory is short.
    pub anonymous: u64,
    /// The most that was resident, KiB.
    pub peak: u64,
}

impl Cost {
    /// Of a process that runs.
    pub fn of(pid: u32) -> Result<Self> {
        let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into()?))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(Self {
            cpu: clock_gettime(clock)?.into(),
            rss: kib(&status, "VmRSS:")?,
            anonymous: kib(&status, "RssAnon:")?,
            peak: kib(&status, "VmHWM:")?,
        })
    }

    pub fn to_json(self) -> Value {
        json!({
            "cpu_ms": self.cpu.as_secs_f64() * 1e3,
            "rss_kib": self.rss,
            "anonymous_kib": self.anonymous,
            "peak_kib": self.peak,
        })
    }
}

fn kib(status: &str, name: &str) -> Result<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let value = value.with_context(|| format!("no {name} in the process's status"))?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kib() {
        let status = "Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t  99 kB\n";
        assert_eq!(kib(status, "VmHWM:").unwrap(), 1234);
        assert_eq!(kib(status, "VmRSS:").unwrap(), 99);
        assert!(kib(status, "VmSwap:").is_err());
    }

    #[test]
    fn this_process_has_cost_something() {
        let cost = Cost::of(std::process::id()).unwrap();
        assert!(cost.cpu > Duration::ZERO && cost.rss > 0 && cost.peak >= cost.rss);
    }
}
