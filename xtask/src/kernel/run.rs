//! A run of tests in a virtual machine, as its second serial port tells it.

use super::vm;
use crate::{libtest::Parser, report::Outcome};

/// Fed line by line while the machine runs.
#[derive(Debug, Default)]
pub struct Reading {
    parser: Parser,
    /// What went wrong without a failed test that tells.
    problems: Vec<String>,
    /// Whether a program must run tests.
    must_run: bool,
    /// What was counted before the present program.
    failed: u64,
    seen: u64,
    ended: bool,
}

impl Reading {
    pub fn new(must_run: bool) -> Self {
        Self {
            must_run,
            ..Self::default()
        }
    }

    pub fn line(&mut self, line: &str) {
        if line == vm::END {
            self.ended = true;
        } else if let Some((status, command)) = vm::ended(line) {
            self.finish_program(status, command);
        } else {
            self.parser.line(line);
        }
    }

    fn finish_program(&mut self, status: &str, command: &str) {
        let counts = self.parser.counts;
        let seen = counts.ran() + counts.skipped;
        if status == vm::TIMED_OUT {
            self.problems.push(format!("{command} took too long"));
        } else if status != "0" && counts.failed == self.failed {
            self.problems
                .push(format!("{command} ended with status {status}"));
        } else if self.must_run && seen == self.seen {
            self.problems.push(format!("{command} ran no test"));
        }
        (self.failed, self.seen) = (counts.failed, seen);
    }

    /// `last_words`: the end of the console's log.
    pub fn outcome(self, last_words: &str) -> Outcome {
        let mut outcome = Outcome::from(self.parser);
        for problem in self.problems {
            outcome.fail(problem);
        }
        if !self.ended {
            outcome.fail(format!(
                "the virtual machine ended before the tests did; its console ends\n{last_words}"
            ));
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str, must_run: bool) -> Outcome {
        let mut reading = Reading::new(must_run);
        text.lines().for_each(|line| reading.line(line));
        reading.outcome("Kernel panic")
    }

    const PASSED: &str = "test a ... ok\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
        guest: status 0 of /t/smoke\n";

    #[test]
    fn results_of_all_programs_are_added_up() {
        let failed = "test b ... FAILED\n\
            test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
            guest: status 101 of /t/pins\n";
        let outcome = outcome(&format!("{PASSED}{failed}guest: end\n"), true);
        assert_eq!((outcome.counts.passed, outcome.counts.failed), (1, 1));
        assert_eq!(outcome.problems, ["b"]);
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let outcome = outcome("guest: status 137 of /t/smoke\nguest: end\n", true);
        assert_eq!(outcome.counts.failed, 1);
        assert_eq!(outcome.problems, ["/t/smoke took too long"]);
        let outcome = super::tests::outcome("guest: status 134 of /t/smoke\nguest: end\n", false);
        assert_eq!(outcome.problems, ["/t/smoke ended with status 134"]);
    }

    #[test]
    fn a_program_without_tests_is_a_failure_unless_they_are_filtered() {
        let empty = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
            guest: status 0 of /t/smoke\nguest: end\n";
        assert_eq!(outcome(empty, true).counts.failed, 1);
        assert_eq!(outcome(empty, false).counts.failed, 0);
    }

    #[test]
    fn a_machine_that_dies_is_a_failure_with_its_last_words() {
        let outcome = outcome(PASSED, true);
        assert_eq!((outcome.counts.passed, outcome.counts.failed), (1, 1));
        assert!(outcome.problems[0].contains("Kernel panic"), "{outcome:?}");
    }
}
