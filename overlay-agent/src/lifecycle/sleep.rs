//! Notices that the machine slept. Timers do not count that time (`CLOCK_MONOTONIC`), leases do, and
//! what happened to the rest of the network meanwhile was told to nobody.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tracing::debug;

/// The clocks are read one after the other, and corrected; neither makes a difference like this.
const LEAST: Duration = Duration::from_millis(200);

/// Compares the clock that counts sleep with the one that does not.
#[derive(Debug)]
pub struct SleepWatch {
    slept: Option<Duration>,
}

impl SleepWatch {
    /// Sleep from here on is noticed.
    pub fn start() -> Self {
        Self {
            slept: slept_since_boot(),
        }
    }

    /// How long the machine has slept since the last call, if it has.
    pub fn slept(&mut self) -> Option<Duration> {
        self.observe(slept_since_boot()?)
    }

    fn observe(&mut self, now: Duration) -> Option<Duration> {
        let before = *self.slept.get_or_insert(now);
        let slept = now.checked_sub(before).filter(|slept| *slept >= LEAST)?;
        self.slept = Some(now);
        Some(slept)
    }
}

fn slept_since_boot() -> Option<Duration> {
    let read = |clock| clock_gettime(clock).map(Duration::from);
    match (
        read(ClockId::CLOCK_MONOTONIC),
        read(ClockId::CLOCK_BOOTTIME),
    ) {
        (Ok(awake), Ok(since_boot)) => Some(since_boot.saturating_sub(awake)),
        (Err(error), _) | (_, Err(error)) => {
            debug!(%error, "cannot read the clocks");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_sleep_is_noticed_once_with_its_length() {
        let mut watch = SleepWatch {
            slept: Some(5 * SECOND),
        };
        assert_eq!(watch.observe(5 * SECOND), None);
        assert_eq!(watch.observe(3_605 * SECOND), Some(3_600 * SECOND));
        assert_eq!(watch.observe(3_605 * SECOND), None);
        assert_eq!(watch.observe(3_606 * SECOND), Some(SECOND));
    }

    #[test]
    fn what_is_only_read_inexactly_is_no_sleep_and_does_not_add_up_to_a_wrong_one() {
        let mut watch = SleepWatch { slept: None };
        let jitter = [40, 0, 90, 20].map(Duration::from_micros);
        for inexact in jitter {
            assert_eq!(watch.observe(SECOND + inexact), None);
        }
        let short = Duration::from_millis(150);
        assert_eq!(watch.observe(SECOND + short), None);
        let slept = watch.observe(SECOND + 2 * short);
        assert!(slept.is_some_and(|slept| slept >= LEAST), "{slept:?}");
    }

    #[test]
    fn this_machine_is_awake() {
        assert_eq!(SleepWatch::start().slept(), None);
    }
}
