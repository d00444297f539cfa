//! Cases of one packet: what is around it, and what must come of it.

use anyhow::{Context as _, Result, ensure};
use overlay_common::{
    family::V4,
    outcome::{Hook, Kind, Outcome},
};

use super::{
    bench::Bench,
    fixture::{Cluster, Fixture},
    run::{Hex, Run, Surroundings, Verdict},
};

/// What a row of a test expects.
#[derive(Clone, Debug)]
pub enum Expected {
    /// The kernel goes on with the packet as it was.
    Pass(Outcome),
    Drop(Outcome),
    /// Handled by the program, which made this frame of it.
    Redirect(Outcome, Vec<u8>),
}

impl Expected {
    pub const fn outcome(&self) -> Outcome {
        match *self {
            Self::Pass(outcome) | Self::Drop(outcome) | Self::Redirect(outcome, _) => outcome,
        }
    }
}

/// One case: a packet, what is around it, what must come of it.
pub struct Row<F: Cluster = V4> {
    pub name: String,
    pub hook: Hook,
    pub frame: Vec<u8>,
    pub surroundings: Surroundings,
    pub fixture: Fixture<F>,
    pub expected: Expected,
}

impl<F: Cluster> Row<F> {
    /// Runs the row; an error tells what differs.
    pub fn check(&self, bench: &mut Bench<F>) -> Result<()> {
        bench.set(&self.fixture)?;
        let run = bench
            .run(self.hook, &self.frame, &self.surroundings)
            .with_context(|| format!("{:?}: {}", self.hook, self.name))?;
        self.compare(&run).with_context(|| {
            format!(
                "{:?}: {}\npacket, {:?}:\n{}became: {run:?}",
                self.hook,
                self.name,
                self.surroundings,
                Hex(&self.frame),
            )
        })
    }

    fn compare(&self, run: &Run) -> Result<()> {
        let outcome = run.outcome(self.hook, self.frame.len())?;
        let want = self.expected.outcome();
        ensure!(
            outcome == want,
            "{outcome:?} was counted instead of {want:?}"
        );
        let (verdict, frame, kinds): (_, _, &[Kind]) = match &self.expected {
            Expected::Pass(_) => (
                Verdict::Pass,
                Some(&self.frame),
                &[Kind::Decline, Kind::Permit],
            ),
            // Nobody sees the bytes of a dropped packet.
            Expected::Drop(_) => (Verdict::Drop, None, &[Kind::Drop]),
            Expected::Redirect(_, frame) => {
                (Verdict::Redirect, Some(frame), &[Kind::Fast, Kind::Short])
            }
        };
        ensure!(
            run.verdict == verdict,
            "{:?} instead of {verdict:?}",
            run.verdict
        );
        ensure!(
            kinds.contains(&outcome.kind()),
            "{outcome:?} with {verdict:?}"
        );
        if let Some(frame) = frame {
            ensure!(
                run.frame == *frame,
                "the packet must have become:\n{}",
                Hex(frame)
            );
        }
        Ok(())
    }
}

/// Runs every row and reports all that fail.
pub fn check_rows<F: Cluster>(bench: &mut Bench<F>, rows: &[Row<F>]) -> Result<()> {
    let failures: Vec<String> = rows
        .iter()
        .filter_map(|row| row.check(bench).err())
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(
        failures.is_empty(),
        "{} of {} rows failed:\n\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n\n")
    );
    Ok(())
}
