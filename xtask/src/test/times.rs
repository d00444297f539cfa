//! What took the time of a run, for whoever wants it shorter.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result};

/// So many tests are shown.
const SLOWEST: usize = 15;
/// Of a second, as `/proc` counts the time of processes on every machine.
const TICKS: u32 = 100;

/// What one test took.
struct Taken {
    program: String,
    name: String,
    time: Duration,
    /// Of the CPUs, by the test and all that it started and waited for.
    cpu: Duration,
}

#[derive(Default)]
pub struct Times(Vec<Taken>);

impl Times {
    pub fn add(&mut self, program: &str, name: &str, time: Duration, cpu: Duration) {
        self.0.push(Taken {
            program: program.to_owned(),
            name: name.to_owned(),
            time,
            cpu,
        });
    }

    /// The slowest tests, and all test programs.
    pub fn table(mut self) -> String {
        let mut programs: BTreeMap<&str, (u32, Duration, Duration)> = BTreeMap::new();
        for taken in &self.0 {
            let (tests, time, cpu) = programs.entry(&taken.program).or_default();
            *tests += 1;
            *time += taken.time;
            *cpu += taken.cpu;
        }
        let mut lines = vec![row("test program", "tests", "seconds", "of CPU")];
        let mut programs: Vec<_> = programs.into_iter().collect();
        programs.sort_by_key(|(_, (_, time, _))| std::cmp::Reverse(*time));
        for (name, (tests, time, cpu)) in programs {
            lines.push(row(name, &tests.to_string(), &seconds(time), &seconds(cpu)));
        }
        lines.push(row("slowest tests", "", "seconds", "of CPU"));
        self.0.sort_by_key(|taken| std::cmp::Reverse(taken.time));
        for taken in self.0.iter().take(SLOWEST) {
            let name = format!("{}::{}", taken.program, taken.name);
            lines.push(row(&name, "", &seconds(taken.time), &seconds(taken.cpu)));
        }
        lines.join("\n")
    }
}

fn row(name: &str, tests: &str, time: &str, cpu: &str) -> String {
    format!("{name:<80} {tests:>5} {time:>8} {cpu:>7}")
}

fn seconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f32())
}

/// Time of the CPUs that the children took that were waited for, and theirs.
pub fn of_children() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    let ticks = children_ticks(&stat).with_context(|| format!("/proc/self/stat says {stat}"))?;
    Ok(Duration::from_secs(ticks) / TICKS)
}

/// The name, in parentheses, may have blanks in it. `cutime` and `cstime` are the 14th and 15th words after it.
fn children_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split_whitespace().skip(13).map(str::parse::<u64>);
    Some(words.next()?.ok()? + words.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_children_is_read_past_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 200 0 0 11 12 130 14 20 0 1 0 99 0 0\n";
        assert_eq!(children_ticks(stat), Some(144));
        assert_eq!(children_ticks("7 (a) S 1 7\n"), None);
        assert!(of_children().is_ok());
    }

    #[test]
    fn the_longest_come_first_in_both_tables() {
        let mut times = Times::default();
        for (program, name, time) in [("a", "x", 1), ("b", "y", 2), ("a", "z", 4)] {
            times.add(program, name, Duration::from_secs(time), Duration::ZERO);
        }
        let table = times.table();
        let places = ["a ", "b ", "a::z ", "b::y ", "a::x "].map(|text| {
            let line = table.lines().position(|line| line.starts_with(text));
            line.unwrap_or_else(|| panic!("no {text} in\n{table}"))
        });
        assert!(places.is_sorted(), "{table}");
    }
}
