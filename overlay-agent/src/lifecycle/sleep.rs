//! Notices that the machine slept. Timers do not count that time (`CLOCK_MONOTONIC`), leases do, and
//! what happened to the rest of the network meanwhile was told to nobody.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tracing::debug;

/// Clocks are corrected while they run; that makes no difference like this.
const LEAST: Duration = Duration::from_millis(200);

/// Compares the clock that counts sleep with the one that does not.
#[derive(Debug)]
pub struct SleepWatch {
    /// How long the machine has slept since it was started, at the most.
    at_most: Option<Duration>,
}

/// How long the machine has slept since it was started: between the readings of two clocks this thread
/// may have waited for a CPU.
#[derive(Clone, Copy, Debug)]
struct Slept {
    at_least: Duration,
    at_most: Duration,
}

impl SleepWatch {
    /// Sleep from here on is noticed.
    pub fn start() -> Self {
        Self {
            at_most: read().map(|slept| slept.at_most),
        }
    }

    /// How long the machine has slept since the last call, if it has.
    pub fn slept(&mut self) -> Option<Duration> {
        self.observe(read()?)
    }

    fn observe(&mut self, now: Slept) -> Option<Duration> {
        let before = self.at_most.unwrap_or(now.at_most);
        let slept = now.at_least.checked_sub(before);
        let slept = slept.filter(|slept| *slept >= LEAST);
        self.at_most = Some(match slept {
            Some(_) => now.at_most,
            None => before.min(now.at_most),
        });
        slept
    }
}

fn read() -> Option<Slept> {
    let read = |clock| clock_gettime(clock).map(Duration::from);
    let awake = read(ClockId::CLOCK_MONOTONIC);
    let since_start = read(ClockId::CLOCK_BOOTTIME);
    match (awake, since_start, read(ClockId::CLOCK_MONOTONIC)) {
        (Ok(before), Ok(since_start), Ok(after)) => Some(Slept {
            at_least: since_start.saturating_sub(after),
            at_most: since_start.saturating_sub(before),
        }),
        (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
            debug!(%error, "cannot read the clocks");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(at_least: u64, at_most: u64) -> Slept {
        Slept {
            at_least: Duration::from_millis(at_least),
            at_most: Duration::from_millis(at_most),
        }
    }

    fn watch_since(first: Slept) -> SleepWatch {
        SleepWatch {
            at_most: Some(first.at_most),
        }
    }

    #[test]
    fn each_sleep_is_noticed_once_with_its_length() {
        let mut watch = watch_since(between(5_000, 5_000));
        let mut slept = |millis| watch.observe(between(millis, millis));
        assert_eq!(slept(5_000), None);
        assert_eq!(slept(3_605_000), Some(Duration::from_hours(1)));
        assert_eq!(slept(3_605_000), None);
        assert_eq!(slept(3_606_000), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_thread_that_waits_for_a_cpu_between_the_clocks_has_not_slept() {
        for first in [
            between(1_000, 1_000),
            between(400, 1_000),
            between(1_000, 9_000),
        ] {
            let mut watch = watch_since(first);
            for look in [
                between(300, 1_000),
                between(1_000, 9_000),
                between(1_000, 1_000),
            ] {
                assert_eq!(watch.observe(look), None, "{first:?} {look:?}");
            }
            let real = watch.observe(between(3_000, 3_000));
            assert_eq!(real, Some(Duration::from_secs(2)), "{first:?}");
        }
    }

    #[test]
    fn this_machine_is_awake() {
        assert_eq!(SleepWatch::start().slept(), None);
    }
}
