//! At most so many in a second; the others are counted.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Sample {
    limit: u64,
    began: Option<Instant>,
    admitted: u64,
    /// In this second, and in those before that have not been reported.
    left_out: u64,
    unreported: u64,
}

impl Sample {
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            began: None,
            admitted: 0,
            left_out: 0,
            unreported: 0,
        }
    }

    pub fn admits(&mut self, now: Instant) -> bool {
        let is_over = |began| now.saturating_duration_since(began) >= PERIOD;
        if self.began.is_none_or(is_over) {
            self.began = Some(now);
            self.admitted = 0;
            self.unreported += std::mem::take(&mut self.left_out);
        }
        if self.admitted < self.limit {
            self.admitted += 1;
            return true;
        }
        self.left_out += 1;
        false
    }

    /// How many were left out and not reported yet; at the end including those of this second.
    pub fn left_out(&mut self, is_end: bool) -> u64 {
        let mut left_out = std::mem::take(&mut self.unreported);
        if is_end {
            left_out += std::mem::take(&mut self.left_out);
        }
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_the_limit_of_a_second_is_counted_and_reported_once() {
        let mut sample = Sample::new(2);
        let start = Instant::now();
        let admitted = (0..5).filter(|_| sample.admits(start)).count();
        assert_eq!((admitted, sample.left_out(false)), (2, 0));
        assert!(sample.admits(start + PERIOD));
        assert_eq!((sample.left_out(false), sample.left_out(false)), (3, 0));
        let later = start + PERIOD + Duration::from_millis(1);
        assert!(sample.admits(later) && !sample.admits(later));
        assert_eq!((sample.left_out(false), sample.left_out(true)), (0, 1));
    }
}
