//! How many packets may be sent.

use std::time::Duration;

use tokio::time::Instant;

/// In any second at most [`BURST`] + [`PER_SECOND`] packets.
#[derive(Debug)]
pub struct Budget {
    left: f64,
    at: Instant,
}

const PER_SECOND: f64 = 15.0;
const BURST: f64 = 10.0;
/// What is computed may be a little less than it should be; then it is asked again after this time.
const LEAST: Duration = Duration::from_millis(1);

impl Budget {
    pub fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
        }
    }

    /// When the next packet may be sent, if none may be sent now.
    pub fn next(&self) -> Instant {
        let missing = (1.0 - self.left).max(0.0);
        self.at + Duration::from_secs_f64(missing / PER_SECOND).max(LEAST)
    }

    /// Whether a packet may be sent now; it counts.
    pub fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * PER_SECOND).min(BURST);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_25_however_often_it_is_asked() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut sent = Vec::new();
        for step in 0..5000_u32 {
            let now = start + Duration::from_millis(1) * step;
            if budget.take(now) {
                sent.push(now);
            }
        }
        assert!(sent.len() >= 80, "{}", sent.len());
        for first in &sent {
            let within = sent
                .iter()
                .filter(|at| **at >= *first && **at < *first + Duration::from_secs(1));
            assert!(within.count() <= 25);
        }
    }
}
