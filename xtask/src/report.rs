//! What a run consists of, how each part went, and the summary.

use std::{
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    disk::Free,
    libtest::{Counts, Parser},
    workspace::Workspace,
};

/// What `cargo xtask test` in a new clone took from a disk at the most, rounded up.
const BUILT_GIB: u32 = 8;

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

    /// Takes in what came of more of the same.
    pub fn add(&mut self, other: Self) {
        self.counts += other.counts;
        self.problems.extend(other.problems);
        self.skipped = self.skipped.take().or(other.skipped);
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
        self.announce(name);
        let started = Instant::now();
        let outcome = body();
        self.phases.push((name, started.elapsed(), outcome));
    }

    /// Runs phases at the same time.
    pub fn side_by_side<F>(&mut self, phases: Vec<(&'static str, F)>)
    where
        F: FnOnce() -> Outcome + Send,
    {
        for (name, _) in &phases {
            self.announce(name);
        }
        thread::scope(|scope| {
            let timed = |body: F| {
                let started = Instant::now();
                let outcome = body();
                (started.elapsed(), outcome)
            };
            let running: Vec<_> = phases
                .into_iter()
                .map(|(name, body)| (name, scope.spawn(move || timed(body))))
                .collect();
            for (name, thread) in running {
                let (elapsed, outcome) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
                self.phases.push((name, elapsed, outcome));
            }
        });
    }

    fn announce(&self, name: &str) {
        let seconds = self.started.elapsed().as_secs_f32();
        println!("\n==> {name} (at {seconds:.0} s)");
    }

    /// A phase whose failure leaves nothing to run.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.announce(name);
        let started = Instant::now();
        let made = body().with_context(|| cannot_go_on(name))?;
        self.phases
            .push((name, started.elapsed(), Outcome::default()));
        Ok(made)
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

fn cannot_go_on(name: &str) -> String {
    let stopped = format!("{name}: cannot go on");
    let workspace = Workspace::locate();
    match Free::at(workspace.root()) {
        Some(free) if free.is_low() => format!(
            "{stopped}. The disk of {} is full ({free}): all tests in a new clone take about {BUILT_GIB} GiB",
            workspace.root().display(),
        ),
        _ => stopped,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn nothing_run_at_all_is_not_a_success() {
        assert!(Report::start().finish(true).is_err());
    }

    #[test]
    fn phases_side_by_side_are_reported_in_their_order() {
        let mut report = Report::start();
        let (first, second) = mpsc::channel::<String>();
        let ends: [Box<dyn FnOnce() -> Outcome + Send>; 2] = [
            Box::new(move || Outcome::skipped(second.recv().expect("the second phase sends"))),
            Box::new(move || {
                first
                    .send("second".to_owned())
                    .expect("the first phase waits");
                Outcome::default()
            }),
        ];
        report.side_by_side(["one", "two"].into_iter().zip(ends).collect());
        let names: Vec<&str> = report.phases.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(report.phases[0].2.skipped.as_deref(), Some("second"));
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
