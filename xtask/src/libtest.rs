//! Reads the text that `cargo test` prints: how many tests ran and which failed.

use std::ops::AddAssign;

/// Tests counted over any number of test binaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    /// Tests that were executed.
    pub fn ran(self) -> u64 {
        self.passed + self.failed
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Fed line by line while the tests run.
#[derive(Debug, Default)]
pub struct Parser {
    pub counts: Counts,
    /// Names of failed tests, in the order they failed.
    pub failures: Vec<String>,
    /// Tests that announced since the last result that they skip: the result calls them passed.
    announced: u64,
}

/// How a test of the lab announces that it skips, `overlay_tests::requirements::SKIP_MARK`.
const SKIP_MARK: &str = "skipped: ";

/// Whether a test says that it skips, and why, in this line.
pub fn is_skip(line: &str) -> bool {
    line.starts_with(SKIP_MARK)
}

impl Parser {
    pub fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let mut counts = result_counts(result);
            let announced = std::mem::take(&mut self.announced).min(counts.passed);
            counts.passed -= announced;
            counts.skipped += announced;
            self.counts += counts;
        } else if is_skip(line) {
            self.announced += 1;
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }
}

/// `ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s`
fn result_counts(result: &str) -> Counts {
    let mut counts = Counts::default();
    for part in result.split(['.', ';']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        match kind {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.skipped += number,
            _ => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Parser {
        let mut parser = Parser::default();
        text.lines().for_each(|line| parser.line(line));
        parser
    }

    #[test]
    fn results_of_all_binaries_are_added_up() {
        let parser = parse(
            "running 2 tests\n\
             test wire::round_trip ... ok\n\
             test wire::slow ... ignored\n\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 0.02s\n\n\
             running 3 tests\n\
             test lab::ping ... FAILED\n\
             test lab::tcp ... ok\n\
             test lab::udp ... ok\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; \
             finished in 12.50s\n",
        );
        assert_eq!(
            parser.counts,
            Counts {
                passed: 3,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(parser.failures, ["lab::ping"]);
    }

    #[test]
    fn a_test_that_announces_a_skip_has_not_passed() {
        let parser = parse(
            "test lab::docker ... \n\
             skipped: lab::docker: no dockerd\n\
             ok\n\
             test lab::ping ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.02s\n",
        );
        assert_eq!(
            parser.counts,
            Counts {
                passed: 1,
                failed: 0,
                skipped: 1
            }
        );
    }

    #[test]
    fn other_output_counts_nothing() {
        let parser = parse("   Compiling xtask\n5 passed\nrunning 0 tests\ntest result: broken\n");
        assert_eq!(parser.counts, Counts::default());
    }

    #[test]
    fn the_summary_reads_as_three_numbers() {
        let counts = Counts {
            passed: 41,
            failed: 0,
            skipped: 2,
        };
        assert_eq!(counts.to_string(), "41 passed, 0 failed, 2 skipped");
    }
}
