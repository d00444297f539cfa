//! Waiting for a condition, with a deadline and a reason when it is missed.

use std::{
    env, fmt,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

/// By how much what the tests wait for takes longer here than on the machines the deadlines are
/// meant for: a whole number, set where the kernel runs in an emulator.
pub const SCALE_VARIABLE: &str = "OVERLAY_TEST_TIME_SCALE";

/// Time between two probes: short against what is waited for, long against what a probe costs.
const PAUSE: Duration = Duration::from_millis(20);

/// An error that waiting will not cure.
#[derive(Debug)]
pub struct Hopeless(pub String);

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hopeless {}

/// A deadline as it is on this machine.
pub fn scaled(time: Duration) -> Duration {
    static SCALE: LazyLock<u32> = LazyLock::new(|| match env::var(SCALE_VARIABLE) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{SCALE_VARIABLE}={text} is not a whole number")),
        Err(_) => 1,
    });
    time * *SCALE
}

/// Probes until `probe` succeeds and returns its result. The deadline is [`scaled`]. An error means "not yet", unless it is
/// [`Hopeless`]; when the deadline passes, the last one is the evidence.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> Result<T>,
) -> Result<T> {
    let within = scaled(within);
    let start = Instant::now();
    loop {
        let reason = match probe() {
            Ok(found) => return Ok(found),
            Err(reason) if reason.is::<Hopeless>() => return Err(reason.context(what.to_owned())),
            Err(reason) => reason,
        };
        if start.elapsed() >= within {
            return Err(anyhow!(
                "{what}: not within {within:?}; last seen: {reason:#}"
            ));
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{bail, ensure};

    use super::*;

    #[test]
    fn a_condition_that_comes_true_is_returned() {
        let mut probes = 0;
        let found = wait_for("three probes", Duration::from_secs(5), || {
            probes += 1;
            ensure!(probes == 3, "probe {probes}");
            Ok(probes)
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn a_missed_deadline_names_what_was_waited_for_and_what_was_seen() {
        let missed = wait_for("the sun", Duration::ZERO, || -> Result<()> {
            bail!("clouds")
        });
        assert_eq!(
            missed.unwrap_err().to_string(),
            "the sun: not within 0ns; last seen: clouds"
        );
    }

    #[test]
    fn a_hopeless_wait_ends_at_once() {
        let mut probes = 0;
        let hopeless = wait_for("the dead", Duration::from_secs(5), || -> Result<()> {
            probes += 1;
            Err(Hopeless("buried".to_owned()).into())
        });
        assert_eq!(
            (format!("{:#}", hopeless.unwrap_err()), probes),
            ("the dead: buried".to_owned(), 1)
        );
    }
}
