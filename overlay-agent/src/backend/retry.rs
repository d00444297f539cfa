//! Pauses between tries of what a backend runs.

use std::time::{Duration, Instant};

/// Pauses before what failed is run again double up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The failures in a row of what is tried again.
#[derive(Debug, Default)]
pub struct Failures {
    count: u32,
    last: Option<(Instant, String)>,
}

impl Failures {
    /// Whether it is too early for another try; then, what was wrong with the last one.
    pub fn pending(&self) -> Option<&str> {
        let (at, problem) = self.last.as_ref()?;
        let doublings = self.count.saturating_sub(1).min(10);
        let pause = Duration::from_secs(1 << doublings).min(LONGEST_PAUSE);
        (at.elapsed() < pause).then_some(problem)
    }

    /// Takes note of what came of a try. Returns the problem, if there is one.
    pub fn note(&mut self, result: Result<(), String>) -> Option<String> {
        match result {
            Ok(()) => {
                *self = Self::default();
                None
            }
            Err(problem) => {
                self.count += 1;
                self.last = Some((Instant::now(), problem.clone()));
                Some(problem)
            }
        }
    }
}
