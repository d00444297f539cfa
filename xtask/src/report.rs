//! What a run consists of, how each part went, and the summary.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::libtest::{Counts, Parser};

/// How one phase went.
#[derive(Debug, Default)]
pub struct Outcome {
    pub counts: Counts,
    /// Failed tests, or what else went wrong.
    pub problems: Vec<String>,
    /// Why it did not run at all.
    skipped: Option<String>,
}

/// Everything that ran, for the summary.
pub struct Report {
    started: Instant,
    phases: Vec<(&'static str, Duration, Outcome)>,
}

/// Of tests that ran.
impl From<Parser> for Outcome {
    fn from(parser: Parser) -> Self {
        Self {
            counts: parser.counts,
            problems: parser.failures,
            skipped: None,
        }
    }
}

impl Outcome {
    pub fn broken(problem: String) -> Self {
        let mut outcome = Self::default();
        outcome.fail(problem);
        outcome
    }

    const fn word(&self) -> &'static str {
        if !self.problems.is_empty() {
            "FAILED"
        } else if self.skipped.is_some() {
            "skip  "
        } else {
            "ok    "
        }
    }

    /// What cannot run here, and why. It counts as one skipped test.
    pub fn skipped(reason: String) -> Self {
        Self {
            counts: Counts {
                skipped: 1,
                ..Counts::default()
            },
            skipped: Some(reason),
            ..Self::default()
        }
    }

    /// A failure that no test stands for counts as one, so that the summary never reads as a
    /// success.
    pub fn fail(&mut self, problem: String) {
        self.counts.failed += 1;
        self.problems.push(problem);
    }
}

impl Report {
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            phases: Vec::new(),
        }
    }

    pub fn phase(&mut self, name: &'static str, body: impl FnOnce() -> Outcome) {
        println!(
            "\n==> {name} (at {:.0} s)",
            self.started.elapsed().as_secs_f32()
        );
        let started = Instant::now();
        let outcome = body();
        self.phases.push((name, started.elapsed(), outcome));
    }

    /// A phase whose failure leaves nothing to run.
    pub fn required(
        &mut self,
        name: &'static str,
        body: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut result = Ok(());
        self.phase(name, || {
            result = body();
            Outcome::default()
        });
        result.with_context(|| format!("{name}: cannot go on"))
    }

    pub fn finish(self, filtered: bool) -> Result<()> {
        let mut total = Counts::default();
        println!("\n==> summary");
        for (name, elapsed, outcome) in &self.phases {
            total += outcome.counts;
            println!(
                "{} {name:<15} {:>6.1} s  {}",
                outcome.word(),
                elapsed.as_secs_f32(),
                if outcome.counts == Counts::default() {
                    String::new()
                } else {
                    outcome.counts.to_string()
                }
            );
            for problem in outcome.problems.iter().chain(&outcome.skipped) {
                println!("         {problem}");
            }
        }
        println!("total {:.0} s", self.started.elapsed().as_secs_f32());
        println!("{total}");
        if total.failed > 0 {
            bail!("{} failed", total.failed);
        }
        if total.ran() == 0 {
            let hint = if filtered {
                "; does the filter match a name?"
            } else {
                ""
            };
            bail!("no test ran{hint}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_run_at_all_is_not_a_success() {
        assert!(Report::start().finish(true).is_err());
    }

    #[test]
    fn what_could_not_run_counts_and_is_no_failure() {
        let outcome = Outcome::skipped("no mirror".to_owned());
        assert_eq!((outcome.counts.skipped, outcome.counts.failed), (1, 0));
        assert!(outcome.problems.is_empty());
        // Nor is it a success.
        let mut report = Report::start();
        report.phase("a kernel", || outcome);
        assert!(report.finish(false).is_err());
    }
}
