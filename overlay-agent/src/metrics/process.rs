//! The daemon as a process, under the names that every Prometheus client library uses.

use std::{fmt, sync::LazyLock};

use procfs::process::{self, LimitValue};

use super::source::{Sheet, Source, UNLABELLED};

/// The file that tells it is among the most expensive of the kernel's.
static BOOT: LazyLock<Option<u64>> = LazyLock::new(|| procfs::boot_time_secs().ok());

#[derive(Debug)]
pub struct Process;

impl Source for Process {
    fn tell(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let Ok(own) = process::Process::myself() else {
            return Ok(());
        };
        if let Ok(stat) = own.stat() {
            let per_second = procfs::ticks_per_second();
            let ticks = stat.utime.saturating_add(stat.stime);
            sheet.seconds(
                "process_cpu_seconds",
                "CPU time, user and system",
                seconds(ticks, per_second),
            )?;
            sheet.gauge(
                "process_resident_memory_bytes",
                "Resident memory",
                [(UNLABELLED, stat.rss.saturating_mul(procfs::page_size()))],
            )?;
            sheet.gauge(
                "process_virtual_memory_bytes",
                "Virtual memory",
                [(UNLABELLED, stat.vsize)],
            )?;
            sheet.gauge(
                "process_threads",
                "Threads",
                [(UNLABELLED, stat.num_threads)],
            )?;
            let started = BOOT.map(|boot| {
                let since_boot = seconds(stat.starttime, per_second);
                seconds(boot, 1) + since_boot
            });
            sheet.gauge(
                "process_start_time_seconds",
                "Start, in seconds since 1970",
                started.map(|started| (UNLABELLED, started)),
            )?;
        }
        let open = own
            .fd_count()
            .ok()
            .and_then(|open| u64::try_from(open).ok());
        sheet.gauge(
            "process_open_fds",
            "Open file descriptors",
            open.map(|open| (UNLABELLED, open)),
        )?;
        let limit = own
            .limits()
            .ok()
            .and_then(|limits| match limits.max_open_files.soft_limit {
                LimitValue::Value(limit) => Some(limit),
                LimitValue::Unlimited => None,
            });
        sheet.gauge(
            "process_max_fds",
            "How many file descriptors may be open",
            limit.map(|limit| (UNLABELLED, limit)),
        )
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53 ticks, longer than any machine runs"
)]
fn seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second.max(1) as f64
}
