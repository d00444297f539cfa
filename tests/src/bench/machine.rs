//! The machine the figures come from, and whether it does anything else.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::netns::checked;

/// Share of the machine that others may use while something is measured.
pub const FOREIGN_LIMIT: f64 = 0.10;
/// Share of the machine that the hypervisor may give to others.
pub const STEAL_LIMIT: f64 = 0.02;
/// How long the machine is watched before a benchmark.
const WATCH: Duration = Duration::from_secs(3);
/// `/proc/stat` counts in hundredths of a second (`USER_HZ`).
pub const TICK_NS: u64 = 10_000_000;

/// CPU time of all cores since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    pub user_ns: u64,
    pub busy_ns: u64,
    pub idle_ns: u64,
    pub steal_ns: u64,
}

impl CpuTimes {
    pub fn read() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?)
    }

    fn parse(text: &str) -> Result<Self> {
        let line = text.lines().next().unwrap_or_default();
        let fields: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .map(|field| Ok(field.parse::<u64>()? * TICK_NS))
            .collect::<Result<_>>()?;
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
            anyhow::bail!("/proc/stat begins with {line:?}");
        };
        Ok(Self {
            user_ns: user + nice,
            busy_ns: user + nice + system + irq + softirq,
            idle_ns: idle + iowait,
            steal_ns: steal,
        })
    }

    /// What passed after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            user_ns: self.user_ns.saturating_sub(earlier.user_ns),
            busy_ns: self.busy_ns.saturating_sub(earlier.busy_ns),
            idle_ns: self.idle_ns.saturating_sub(earlier.idle_ns),
            steal_ns: self.steal_ns.saturating_sub(earlier.steal_ns),
        }
    }
}

/// What keeps the machine busy before the benchmark begins, if anything does.
pub fn busy() -> Result<Option<String>> {
    let before = CpuTimes::read()?;
    thread::sleep(WATCH);
    let times = CpuTimes::read()?.since(&before);
    let total = times.busy_ns + times.idle_ns + times.steal_ns;
    let (busy, steal) = (share(times.busy_ns, total), share(times.steal_ns, total));
    Ok((busy > FOREIGN_LIMIT || steal > STEAL_LIMIT).then(|| {
        format!(
            "the machine is {:.0} % busy ({:.0} % steal, load average {})",
            100.0 * busy,
            100.0 * steal,
            load_average()
        )
    }))
}

/// `part` of `whole`, as a fraction.
#[expect(
    clippy::cast_precision_loss,
    reason = "a quotient with three digits is wanted"
)]
pub fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Everything about the machine that figures depend on.
pub fn facts() -> Value {
    json!({
        "kernel": first_line("/proc/sys/kernel/osrelease"),
        "cpu": cpu_model(),
        "cpus": thread::available_parallelism().map_or(0, usize::from),
        "hypervisor": hypervisor(),
        "mitigations": mitigations(),
        "load_average": load_average(),
        "iptables": checked(std::process::Command::new("iptables").arg("--version"))
            .map_or_else(|error| error.to_string(), |text| text.trim().to_owned()),
        "conntrack_max": first_line("/proc/sys/net/netfilter/nf_conntrack_max"),
    })
}

fn load_average() -> String {
    first_line("/proc/loadavg")
}

fn first_line(path: impl AsRef<Path>) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    model
        .and_then(|rest| rest.split_once(':'))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

fn hypervisor() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains(" hypervisor"))
}

/// Those in force; the branch ones are what indirect calls of the network stack pay.
fn mitigations() -> Vec<String> {
    let dir = Path::new("/sys/devices/system/cpu/vulnerabilities");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name();
            format!("{}: {}", name.to_string_lossy(), first_line(entry.path()))
        })
        .filter(|line| line.contains("Mitigation"))
        .collect();
    found.sort();
    found
}

/// Tells the kernel to measure programs, and to stop when dropped: measuring costs every packet
/// some twenty nanoseconds.
pub struct ProgramStatistics(());

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl ProgramStatistics {
    pub fn enable() -> Result<Self> {
        fs::write(STATISTICS, "1").with_context(|| format!("write {STATISTICS}"))?;
        Ok(Self(()))
    }
}

impl Drop for ProgramStatistics {
    fn drop(&mut self) {
        if let Err(error) = fs::write(STATISTICS, "0") {
            eprintln!("cannot write 0 to {STATISTICS}: {error}");
        }
    }
}

/// CPU time of a process, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessTime {
    pub user_ns: u64,
    pub system_ns: u64,
}

impl ProcessTime {
    /// Of a process and all of its threads.
    pub fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).with_context(|| format!("no times in {text}"))
    }

    fn parse(text: &str) -> Option<Self> {
        // The name, in brackets, may have blanks.
        let (_, behind) = text.rsplit_once(')')?;
        let mut ticks = behind.split_whitespace().skip(11).map(str::parse::<u64>);
        let mut next = || Some(ticks.next()?.ok()? * TICK_NS);
        Some(Self {
            user_ns: next()?,
            system_ns: next()?,
        })
    }

    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            user_ns: self.user_ns + other.user_ns,
            system_ns: self.system_ns + other.system_ns,
        }
    }

    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            user_ns: self.user_ns - earlier.user_ns,
            system_ns: self.system_ns - earlier.system_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_proc_stat_sums_all_cores() {
        let times = CpuTimes::parse("cpu  1 2 3 40 5 6 7 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n");
        assert_eq!(
            times.expect("ten fields"),
            CpuTimes {
                user_ns: 3 * TICK_NS,
                busy_ns: 19 * TICK_NS,
                idle_ns: 45 * TICK_NS,
                steal_ns: 8 * TICK_NS,
            }
        );
    }

    #[test]
    fn another_format_is_an_error() {
        let error = CpuTimes::parse("cpu 1 2\n").expect_err("two fields");
        assert!(format!("{error:#}").contains("cpu 1 2"), "{error:#}");
    }
}
