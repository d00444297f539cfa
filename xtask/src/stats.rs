//! `--stats`: loads the object with bpftool, which proves that libbpf and the verifier accept it,
//! and prints what each program costs, compared with the budget.

use std::{fmt::Write, fs, path::Path, process::Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    budget::{self, Cost},
    process::{self, command},
};

/// Loads into a bpffs of a private mount namespace: everything is gone when the shell ends, and a
/// running agent's pins are out of reach. The verifier log goes to standard error.
const SCRIPT: &str = "
mount -t bpf bpf /sys/fs/bpf
bpftool -d prog loadall \"$1\" /sys/fs/bpf/overlay >&2
for program in /sys/fs/bpf/overlay/*; do
    bpftool -j prog show pinned \"$program\"
    echo
done
";

/// Lines of the verifier log worth showing when it refuses a program.
const LOG_TAIL: usize = 40;

#[derive(Debug, PartialEq, Eq)]
struct Row {
    program: String,
    cost: Cost,
    translated_bytes: u64,
    jited_bytes: u64,
    maps: usize,
}

/// Loads the object, prints one row per program, and fails if one is over the budget.
pub fn print(object: &Path, budget: &Path) -> Result<()> {
    let rows = load(object)?;
    print!("{}", table(&rows));
    let allowed =
        fs::read_to_string(budget).with_context(|| format!("cannot read {}", budget.display()))?;
    let costs: Vec<_> = rows
        .into_iter()
        .map(|row| (row.program, row.cost))
        .collect();
    budget::check(&allowed, &costs)
}

fn load(object: &Path) -> Result<Vec<Row>> {
    if !process::is_root() {
        bail!("loading BPF programs needs root");
    }
    let output = command("unshare")
        .args(["--mount", "sh", "-ec", SCRIPT, "sh"])
        .arg(object)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .context("cannot start unshare (package util-linux)")?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
        bail!(
            "bpftool prog loadall refuses {}:\n{}{}",
            object.display(),
            tail.join("\n"),
            hint(&log)
        );
    }
    let shown = String::from_utf8_lossy(&output.stdout);
    rows(&shown, &log)
}

/// What to do about a refusal whose cause the log does not make obvious.
fn hint(log: &str) -> &'static str {
    if log.contains("misaligned stack access") {
        "\nhint: give the type that is built on the stack an alignment, as in #[repr(C, align(8))]; \
         see docs/adr/0001-bpf-toolchain.md"
    } else {
        ""
    }
}

/// One row per line of `bpftool -j prog show`, with the verifier's counts from its log.
fn rows(shown: &str, log: &str) -> Result<Vec<Row>> {
    let verified = costs(log);
    shown
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let value: Value = serde_json::from_str(line)
                .with_context(|| format!("bpftool printed no JSON: {line}"))?;
            let program = value["name"].as_str().unwrap_or("?").to_owned();
            let cost = verified.iter().find(|(name, _)| *name == program);
            let cost = cost.with_context(|| format!("the verifier says nothing of {program}"))?;
            Ok(Row {
                cost: cost.1,
                translated_bytes: value["bytes_xlated"].as_u64().unwrap_or(0),
                jited_bytes: value["bytes_jited"].as_u64().unwrap_or(0),
                maps: value["map_ids"].as_array().map_or(0, Vec::len),
                program,
            })
        })
        .collect()
}

/// Pairs `prog 'NAME': … BEGIN PROG LOAD LOG` with the `stack depth N` and `processed N insns` that
/// follow it.
fn costs(log: &str) -> Vec<(String, Cost)> {
    let mut costs = Vec::new();
    let mut current = None;
    let mut stack = 0;
    for line in log.lines() {
        if line.contains("BEGIN PROG LOAD LOG") {
            current = line.split('\'').nth(1);
            stack = 0;
        } else if let Some(depths) = line.strip_prefix("stack depth ") {
            // One per function, joined by plus signs.
            stack = depths
                .split('+')
                .filter_map(|depth| depth.parse::<u64>().ok())
                .sum();
        } else if let (Some(program), Some(rest)) = (current, line.strip_prefix("processed ")) {
            let words: Vec<&str> = rest.split(' ').collect();
            let number = |word: Option<&&str>| word.and_then(|word| word.parse().ok());
            let states = words.iter().position(|word| *word == "total_states");
            if let (Some(instructions), Some(states)) = (
                number(words.first()),
                states.and_then(|at| number(words.get(at + 1))),
            ) {
                let cost = Cost {
                    instructions,
                    states,
                    stack,
                };
                costs.push((program.to_owned(), cost));
            }
        }
    }
    costs
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<18} {:>9} {:>7} {:>6} {:>12} {:>8} {:>5}\n",
        "program", "verified", "states", "stack", "instructions", "jited", "maps"
    );
    for row in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<18} {:>9} {:>7} {:>4} B {:>12} {:>6} B {:>5}",
            row.program,
            row.cost.instructions,
            row.cost.states,
            row.cost.stack,
            row.translated_bytes / 8,
            row.jited_bytes,
            row.maps
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "libbpf: loading object\n\
        libbpf: prog 'overlay_egress': -- BEGIN PROG LOAD LOG --\n\
        stack depth 24\n\
        processed 26 insns (limit 1000000) max_states_per_insn 0 total_states 2 peak_states 2\n\
        -- END PROG LOAD LOG --\n\
        libbpf: prog 'overlay_ingress': -- BEGIN PROG LOAD LOG --\n\
        verification time 2262 usec\n\
        stack depth 192+8\n\
        processed 1412 insns (limit 1000000) max_states_per_insn 4 total_states 73 peak_states 69\n";

    const EGRESS: Cost = Cost {
        instructions: 26,
        states: 2,
        stack: 24,
    };

    #[test]
    fn each_program_gets_its_own_counts() {
        let ingress = Cost {
            instructions: 1412,
            states: 73,
            stack: 200,
        };
        assert_eq!(
            costs(LOG),
            [
                ("overlay_egress".to_owned(), EGRESS),
                ("overlay_ingress".to_owned(), ingress)
            ]
        );
    }

    #[test]
    fn a_program_becomes_a_row() {
        let shown = "{\"id\":1,\"name\":\"overlay_egress\",\"bytes_xlated\":360,\
            \"bytes_jited\":203,\"map_ids\":[26,25]}\n\n";
        assert_eq!(
            rows(shown, LOG).expect("valid JSON"),
            [Row {
                program: "overlay_egress".to_owned(),
                cost: EGRESS,
                translated_bytes: 360,
                jited_bytes: 203,
                maps: 2,
            }]
        );
    }

    #[test]
    fn a_program_that_the_log_does_not_mention_is_an_error() {
        let error = rows("{\"name\":\"overlay_guard\"}\n", LOG).expect_err("not in the log");
        assert!(error.to_string().contains("overlay_guard"), "{error:#}");
    }

    #[test]
    fn output_that_is_not_json_is_an_error() {
        let error = rows("Error: no such program\n", "").expect_err("not JSON");
        assert!(
            format!("{error:#}").contains("no such program"),
            "{error:#}"
        );
    }
}
