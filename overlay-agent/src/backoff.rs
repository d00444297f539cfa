//! Pauses between attempts: doubling up to a limit, with jitter so that the nodes of a cluster do
//! not return to a restarted etcd in step.

use std::time::Duration;

use rand::{Rng, RngCore};

/// The pauses of one repeated action.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
}

impl Backoff {
    pub const fn new(first: Duration, limit: Duration) -> Self {
        Self {
            first,
            limit,
            failures: 0,
        }
    }

    /// The pause after one more failure: between half and all of the doubled pause.
    pub fn failed(&mut self, rng: &mut dyn RngCore) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.limit).mul_f64(rng.random_range(0.5..=1.0))
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
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
