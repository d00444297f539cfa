//! The programs do not grow unnoticed: their instruction counts stay near a committed baseline.
//!
//! Both numbers are those of the running kernel: what its rewrites made of a program, and how many
//! instructions its verifier looked at. They also depend on the toolchain that built the object.

use std::{env, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::family::V4;
use overlay_common::outcome::Hook;
use overlay_tests::prog::{Bench, Size};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/baseline/programs.txt");
/// When set, the test writes the baseline instead of comparing with it.
const UPDATE: &str = "OVERLAY_UPDATE_BASELINE";
const COMMAND: &str =
    "OVERLAY_UPDATE_BASELINE=1 cargo test --package overlay-tests --test prog cost::";
/// How far a number may be from its baseline, in either direction: an improvement that is not
/// recorded would hide the next regression.
const TOLERANCE_PERCENT: u32 = 3;

#[derive(Clone, Copy)]
struct Row {
    hook: Hook,
    now: Size,
    before: Option<Size>,
}

impl Row {
    fn is_within_tolerance(&self) -> bool {
        let near = |now: u32, before: u32| now.abs_diff(before) * 100 <= before * TOLERANCE_PERCENT;
        self.before.is_some_and(|before| {
            near(self.now.translated, before.translated) && near(self.now.verified, before.verified)
        })
    }
}

#[test]
fn the_programs_are_as_big_as_the_baseline_says() -> Result<()> {
    let bench = Bench::<V4>::load()?;
    let sizes = Hook::CLASSIFIERS
        .iter()
        .map(|&hook| Ok((hook, bench.size(hook)?)))
        .collect::<Result<Vec<_>>>()?;
    let path = Path::new(BASELINE);
    if env::var_os(UPDATE).is_some() {
        return fs::write(path, render(&sizes)?)
            .with_context(|| format!("cannot write {BASELINE}"));
    }
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {BASELINE}; write it with `{COMMAND}`"))?;
    let baseline = parse(&text)?;
    let rows: Vec<Row> = sizes
        .iter()
        .map(|&(hook, now)| Row {
            hook,
            now,
            before: baseline
                .iter()
                .find(|(name, _)| *name == hook.name())
                .map(|&(_, size)| size),
        })
        .collect();
    ensure!(
        rows.iter().all(Row::is_within_tolerance),
        "a program is more than {TOLERANCE_PERCENT} % off its baseline:\n{}\nbaseline: {}\nhere:     \
         # {}\nIf that is meant to be, write the new baseline with\n    {COMMAND}",
        table(&rows),
        text.lines().next().unwrap_or("empty"),
        kernel()?,
    );
    Ok(())
}

/// The running kernel, without what distinguishes builds of one version.
fn kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut parts = release.trim().split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok(format!("Linux {major}.{minor}")),
        _ => bail!("not a kernel release: {release}"),
    }
}

fn render(sizes: &[(Hook, Size)]) -> Result<String> {
    let mut text = format!(
        "# {}\n# program, instructions after the kernel's rewrites, instructions verified\n",
        kernel()?
    );
    for (hook, size) in sizes {
        writeln!(
            text,
            "{} {} {}",
            hook.name(),
            size.translated,
            size.verified
        )?;
    }
    Ok(text)
}

fn parse(text: &str) -> Result<Vec<(&str, Size)>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [name, translated, verified] = fields.as_slice() else {
                bail!("no baseline: {line}");
            };
            let size = Size {
                translated: translated.parse()?,
                verified: verified.parse()?,
            };
            Ok((*name, size))
        })
        .collect()
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<10}{:>12}{:>10}{:>12}{:>10}\n",
        "program", "instructions", "baseline", "verified", "baseline"
    );
    for row in rows {
        let before = |number: fn(Size) -> u32| {
            row.before
                .map_or_else(|| "none".to_owned(), |size| number(size).to_string())
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<10}{:>12}{:>10}{:>12}{:>10}{}",
            row.hook.name(),
            row.now.translated,
            before(|size| size.translated),
            row.now.verified,
            before(|size| size.verified),
            if row.is_within_tolerance() {
                ""
            } else {
                "  <--"
            },
        );
    }
    text
}

#[test]
fn a_small_difference_is_tolerated_and_a_larger_one_is_not() {
    let row = |translated, verified| Row {
        hook: Hook::Egress,
        now: Size {
            translated,
            verified,
        },
        before: Some(Size {
            translated: 1000,
            verified: 4000,
        }),
    };
    assert!(row(1030, 3880).is_within_tolerance());
    assert!(!row(1031, 4000).is_within_tolerance());
    assert!(!row(969, 4000).is_within_tolerance());
    assert!(!row(1000, 4121).is_within_tolerance());
    let unknown = Row {
        before: None,
        ..row(1000, 4000)
    };
    assert!(!unknown.is_within_tolerance());
}
