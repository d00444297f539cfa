//! Pauses between attempts: doubling up to a limit, with jitter so that the nodes of a cluster do
//! not return to a restarted store in step. Whoever waits brings the random numbers, so that a test
//! can repeat what happened.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use rand::RngCore;

/// The pauses of one repeated action.
#[derive(Debug)]
pub struct Backoff {
    shape: ExponentialBuilder,
    limit: Duration,
    pauses: Option<ExponentialBackoff>,
}

impl Backoff {
    /// The longest that the first pause, and any pause, can be.
    pub const fn new(first: Duration, limit: Duration) -> Self {
        // backon's jitter is added to a pause, and up to as long as that.
        let shape = ExponentialBuilder::new()
            .with_min_delay(half(first))
            .with_max_delay(half(limit))
            .without_max_times()
            .with_jitter();
        Self {
            shape,
            limit,
            pauses: None,
        }
    }

    /// The pause after one more failure: between half and all of the doubled pause.
    pub fn failed(&mut self, rng: &mut dyn RngCore) -> Duration {
        let pauses = self
            .pauses
            .get_or_insert_with(|| self.shape.with_jitter_seed(rng.next_u64()).build());
        pauses.next().unwrap_or(self.limit)
    }

    pub fn succeeded(&mut self) {
        self.pauses = None;
    }
}

const fn half(time: Duration) -> Duration {
    match time.checked_div(2) {
        Some(half) => half,
        None => time,
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_start_over_after_a_success() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        for full in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let pause = backoff.failed(&mut rng).as_millis();
            assert!((full / 2..=full).contains(&pause), "{pause} of {full}");
        }
        backoff.succeeded();
        assert!(backoff.failed(&mut rng).as_millis() <= 100);
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        let longest = (0..1000).map(|_| backoff.failed(&mut rng)).max();
        assert!(longest <= Some(Duration::from_mins(1)));
    }
}
