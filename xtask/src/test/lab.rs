//! Runs the lab's tests: each in a process of its own, several at a time.

use std::{
    collections::VecDeque,
    fs::{self, File},
    mem,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    pace::{Pace, Ticks},
    programs::Program,
    times::{self, Times},
};
use crate::{
    libtest::{self, Parser},
    report::Outcome,
};

/// Tests that need the machine for themselves, by the beginning of their names: they measure how long
/// something takes, or keep all CPUs busy. They come last, one at a time.
const ALONE: &[&str] = &[
    "e2e::pods::programs_are_on_a_pods_veth_within_100_ms",
    "guard::flood::",
];

/// Tests that take longest, by the beginning of their names. They come first, so that the end does not
/// wait for one that started late.
const LONG: &[&str] = &[
    "chaos::",
    "datapath::full::",
    "kubernetes::watch::",
    "lease::faults::",
    "parity::churn::",
    "parity::random::",
    "prog::garbage::",
    "rules::conntrack_timeouts::",
    "rules::ipsec::",
];

/// Between two looks at what runs.
const PAUSE: Duration = Duration::from_millis(10);

struct Test<'a> {
    program: &'a Program,
    name: String,
}

struct Running<'a> {
    test: Test<'a>,
    started: Instant,
    child: Child,
    log: PathBuf,
}

/// The tests of a run.
pub struct Lab<'a> {
    together: Vec<Test<'a>>,
    alone: Vec<Test<'a>>,
    logs: PathBuf,
}

impl<'a> Lab<'a> {
    /// The tests of `programs` whose names, with that of the program, contain `filter`. What a test says goes to
    /// a file in `logs`, which stays if the test fails.
    pub fn find(programs: &[&'a Program], logs: &Path, filter: Option<&str>) -> Result<Self> {
        if logs.exists() {
            fs::remove_dir_all(logs)
                .with_context(|| format!("cannot remove {}", logs.display()))?;
        }
        fs::create_dir_all(logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let mut tests = Vec::new();
        for &program in programs {
            let names = program.tests(None)?.into_iter();
            tests.extend(names.map(|name| Test { program, name }));
        }
        let is_wanted = |test: &Test<'_>| filter.is_none_or(|text| test.full_name().contains(text));
        tests.retain(is_wanted);
        if filter.is_none() {
            for beginning in ALONE.iter().chain(LONG) {
                let known = tests.iter().any(|test| test.is_one_of(&[beginning]));
                ensure!(known, "no test's name begins with {beginning}");
            }
        }
        let (alone, mut together): (Vec<_>, Vec<_>) =
            tests.into_iter().partition(|test| test.is_one_of(ALONE));
        together.sort_by_key(|test| !test.is_one_of(LONG));
        Ok(Self {
            together,
            alone,
            logs: logs.to_owned(),
        })
    }

    /// Runs those that others may run beside.
    pub fn run_together(&mut self) -> Result<Outcome> {
        println!("{} tests", self.together.len());
        let before = Ticks::now()?;
        let mut pace = Pace::new()?;
        let tests = mem::take(&mut self.together);
        let outcome = Runner::new(&self.logs).run(tests, |running| pace.allows(running))?;
        if let Some(idle) = Ticks::now()?.idle_since(before) {
            println!("these tests left the CPUs {idle} % of the time");
        }
        Ok(outcome)
    }

    pub fn has_lonely_ones(&self) -> bool {
        !self.alone.is_empty()
    }

    /// Runs those that need the machine for themselves.
    pub fn run_alone(&mut self) -> Result<Outcome> {
        println!("{} tests", self.alone.len());
        let tests = mem::take(&mut self.alone);
        Runner::new(&self.logs).run(tests, |running| Ok(running == 0))
    }
}

struct Runner<'a> {
    logs: &'a Path,
    outcome: Outcome,
    times: Times,
}

impl<'a> Runner<'a> {
    fn new(logs: &'a Path) -> Self {
        Self {
            logs,
            outcome: Outcome::default(),
            times: Times::default(),
        }
    }

    /// Runs `tests`, the next one whenever `allows` says so of the number that run.
    fn run(
        mut self,
        tests: Vec<Test<'a>>,
        mut allows: impl FnMut(usize) -> Result<bool>,
    ) -> Result<Outcome> {
        let mut waiting = VecDeque::from(tests);
        let mut running: Vec<Running<'_>> = Vec::new();
        while !waiting.is_empty() || !running.is_empty() {
            while !waiting.is_empty() && allows(running.len())? {
                running.extend(
                    waiting
                        .pop_front()
                        .map(|test| test.start(self.logs))
                        .transpose()?,
                );
            }
            thread::sleep(PAUSE);
            let mut index = 0;
            while let Some(test) = running.get_mut(index) {
                let before = times::of_children()?;
                match test.child.try_wait().context("cannot wait for a test")? {
                    Some(status) => {
                        let cpu = times::of_children()?.saturating_sub(before);
                        self.finish(&running.swap_remove(index), status, cpu)?;
                    }
                    None => index += 1,
                }
            }
        }
        println!("\n{}", self.times.table());
        Ok(self.outcome)
    }

    /// `cpu`: what the test and those it started took of the CPUs.
    fn finish(&mut self, ended: &Running<'_>, status: ExitStatus, cpu: Duration) -> Result<()> {
        let name = ended.test.full_name();
        let time = ended.started.elapsed();
        let test = &ended.test;
        self.times.add(&test.program.name, &test.name, time, cpu);
        let seconds = time.as_secs_f32();
        let said =
            fs::read(&ended.log).with_context(|| format!("cannot read {}", ended.log.display()))?;
        let said = String::from_utf8_lossy(&said);
        let mut parser = Parser::default();
        said.lines().for_each(|line| parser.line(line));
        let counts = parser.counts;
        let passed = status.success() && counts.failed == 0 && counts.passed + counts.skipped == 1;
        let word = match (passed, counts.skipped) {
            (false, _) => "FAILED",
            (true, 0) => "ok",
            (true, _) => "skipped",
        };
        println!("test {name} ... {word} ({seconds:.1} s)");
        if passed {
            for line in said.lines().filter(|line| libtest::is_skip(line)) {
                println!("{line}");
            }
            self.outcome.counts += counts;
            fs::remove_file(&ended.log)?;
        } else {
            println!("{said}");
            self.outcome.fail(format!("{name} ({status})"));
        }
        Ok(())
    }
}

impl<'a> Test<'a> {
    /// With the program it is in.
    fn full_name(&self) -> String {
        format!("{}::{}", self.program.name, self.name)
    }

    fn is_one_of(&self, beginnings: &[&str]) -> bool {
        let name = self.full_name();
        beginnings
            .iter()
            .any(|beginning| name.starts_with(beginning))
    }

    fn start(self, logs: &Path) -> Result<Running<'a>> {
        let log = logs.join(format!("{}.log", self.full_name()));
        let file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = self.program.command();
        command
            .args(["--exact", &self.name])
            .stderr(file.try_clone()?)
            .stdout(file);
        Ok(Running {
            started: Instant::now(),
            child: command
                .spawn()
                .with_context(|| format!("cannot start {}", self.program.path.display()))?,
            test: self,
            log,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const SCRIPT: &str = r#"#!/bin/sh
case "$*" in
    *--list*) printf 'good: test\nbad: test\nlazy: test\ndead: test\n' ;;
    *good) echo 'test result: ok. 1 passed; 0 failed; 0 ignored' ;;
    *bad) echo why; echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored'; exit 101 ;;
    *lazy) echo 'skipped: lazy: no dockerd'; echo 'test result: ok. 1 passed; 0 failed; 0 ignored' ;;
    *dead) kill -9 $$ ;;
esac
"#;

    #[test]
    fn every_test_is_run_and_counted_and_what_a_failed_one_said_stays() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("program");
        fs::write(&path, SCRIPT).expect("a writable directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        let program = Program {
            name: "lab".to_owned(),
            path,
            package: dir.path().to_owned(),
        };
        let logs = dir.path().join("logs");
        let mut lab = Lab::find(&[&program], &logs, Some("lab::")).expect("the tests are listed");
        let mut outcome = lab.run_together().expect("the tests run");
        outcome.problems.sort();
        let counts = outcome.counts;
        assert_eq!((counts.passed, counts.failed, counts.skipped), (1, 2, 1));
        let [bad, dead] = &outcome.problems[..] else {
            panic!("{outcome:?}");
        };
        assert!(bad.starts_with("lab::bad (") && dead.starts_with("lab::dead ("));
        let said = fs::read_to_string(logs.join("lab::bad.log")).expect("its log");
        assert!(said.starts_with("why"), "{said}");
        assert!(!logs.join("lab::good.log").exists());
    }
}
