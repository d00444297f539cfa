//! `--stats`: loads the object with bpftool, which proves that libbpf and the verifier accept it,
//! and prints what each program costs, compared with the budget.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    budget::{self, Cost},
    call_chain::{self, Stack},
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

/// What the log of a program's verification says.
#[derive(Debug, PartialEq, Eq)]
struct Verified {
    program: String,
    instructions: u64,
    states: u64,
    /// Bytes of stack of each function.
    frames: Vec<u64>,
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    program: String,
    cost: Cost,
    /// Frames of the deepest chain of calls.
    chain: Vec<u64>,
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
    rows(&shown, &log, &call_chain::read(object)?)
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
fn rows(shown: &str, log: &str, stacks: &BTreeMap<String, Stack>) -> Result<Vec<Row>> {
    let verified = verified(log);
    shown
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let value: Value = serde_json::from_str(line)
                .with_context(|| format!("bpftool printed no JSON: {line}"))?;
            let program = value["name"].as_str().unwrap_or("?").to_owned();
            let log = verified.iter().find(|log| log.program == program);
            let log = log.with_context(|| format!("the verifier says nothing of {program}"))?;
            let stack = stacks.get(&program);
            let stack = stack.with_context(|| format!("the object has no program {program}"))?;
            check_frames(&program, &stack.frames, &log.frames)?;
            Ok(Row {
                cost: Cost {
                    instructions: log.instructions,
                    states: log.states,
                    stack: log.frames.iter().sum(),
                    chain: stack.deepest(),
                },
                chain: stack.chain.clone(),
                translated_bytes: value["bytes_xlated"].as_u64().unwrap_or(0),
                jited_bytes: value["bytes_jited"].as_u64().unwrap_or(0),
                maps: value["map_ids"].as_array().map_or(0, Vec::len),
                program,
            })
        })
        .collect()
}

/// The frames that were read off the object are those the verifier saw, or deeper where it found
/// accesses that never happen. Loaders order functions differently.
fn check_frames(program: &str, read: &[u64], seen: &[u64]) -> Result<()> {
    let sorted = |frames: &[u64]| {
        let mut frames = frames.to_vec();
        frames.sort_unstable();
        frames
    };
    let (read, seen) = (sorted(read), sorted(seen));
    let covers =
        read.len() == seen.len() && read.iter().zip(&seen).all(|(read, seen)| read >= seen);
    ensure!(
        covers,
        "{program} has frames of {read:?} bytes in the object, and the verifier saw {seen:?}: \
         xtask/src/call_chain.rs does not know an instruction that the compiler uses for its stack"
    );
    Ok(())
}

/// Pairs `prog 'NAME': … BEGIN PROG LOAD LOG` with the `stack depth N` and `processed N insns` that
/// follow it.
fn verified(log: &str) -> Vec<Verified> {
    let mut verified = Vec::new();
    let mut current = None;
    let mut frames = Vec::new();
    for line in log.lines() {
        if line.contains("BEGIN PROG LOAD LOG") {
            current = line.split('\'').nth(1);
            frames = Vec::new();
        } else if let Some(depths) = line.strip_prefix("stack depth ") {
            // One per function, joined by plus signs.
            frames = depths
                .split('+')
                .filter_map(|depth| depth.parse().ok())
                .collect();
        } else if let (Some(program), Some(rest)) = (current, line.strip_prefix("processed ")) {
            let words: Vec<&str> = rest.split(' ').collect();
            let number = |word: Option<&&str>| word.and_then(|word| word.parse().ok());
            let states = words.iter().position(|word| *word == "total_states");
            if let (Some(instructions), Some(states)) = (
                number(words.first()),
                states.and_then(|at| number(words.get(at + 1))),
            ) {
                verified.push(Verified {
                    program: program.to_owned(),
                    instructions,
                    states,
                    frames: std::mem::take(&mut frames),
                });
            }
        }
    }
    verified
}

/// `stack` is the sum of all functions, `chain` that of the deepest chain of calls.
fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<18} {:>9} {:>7} {:>6} {:>6} {:>12} {:>8} {:>5}  {}\n",
        "program",
        "verified",
        "states",
        "stack",
        "chain",
        "instructions",
        "jited",
        "maps",
        "frames"
    );
    for row in rows {
        let frames: Vec<String> = row.chain.iter().map(u64::to_string).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<18} {:>9} {:>7} {:>4} B {:>4} B {:>12} {:>6} B {:>5}  {}",
            row.program,
            row.cost.instructions,
            row.cost.states,
            row.cost.stack,
            row.cost.chain,
            row.translated_bytes / 8,
            row.jited_bytes,
            row.maps,
            frames.join("+"),
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

    const EGRESS: &str = "{\"id\":1,\"name\":\"overlay_egress\",\"bytes_xlated\":360,\
        \"bytes_jited\":203,\"map_ids\":[26,25]}\n\n";

    fn stacks(frames: &[u64]) -> BTreeMap<String, Stack> {
        let stack = Stack {
            chain: vec![32],
            frames: frames.to_vec(),
        };
        BTreeMap::from([("overlay_egress".to_owned(), stack)])
    }

    #[test]
    fn each_program_gets_its_own_counts() {
        let log = |program: &str, instructions, states, frames: &[u64]| Verified {
            program: program.to_owned(),
            instructions,
            states,
            frames: frames.to_vec(),
        };
        assert_eq!(
            verified(LOG),
            [
                log("overlay_egress", 26, 2, &[24]),
                log("overlay_ingress", 1412, 73, &[192, 8]),
            ]
        );
    }

    #[test]
    fn a_program_becomes_a_row() {
        assert_eq!(
            rows(EGRESS, LOG, &stacks(&[24])).expect("valid JSON"),
            [Row {
                program: "overlay_egress".to_owned(),
                cost: Cost {
                    instructions: 26,
                    states: 2,
                    stack: 24,
                    chain: 32,
                },
                chain: vec![32],
                translated_bytes: 360,
                jited_bytes: 203,
                maps: 2,
            }]
        );
    }

    #[test]
    fn frames_that_the_object_does_not_show_are_an_error() {
        let error = |frames: &[u64]| rows(EGRESS, LOG, &stacks(frames)).is_err();
        assert!(error(&[16]) && error(&[24, 0]) && error(&[]));
        // A place that is never reached costs nothing, and may be on either side.
        assert!(!error(&[32]));
    }

    #[test]
    fn a_program_that_the_log_does_not_mention_is_an_error() {
        let shown = "{\"name\":\"overlay_guard\"}\n";
        let error = rows(shown, LOG, &stacks(&[24])).expect_err("not in the log");
        assert!(error.to_string().contains("overlay_guard"), "{error:#}");
    }

    #[test]
    fn output_that_is_not_json_is_an_error() {
        let error = rows("Error: no such program\n", "", &BTreeMap::new()).expect_err("not JSON");
        assert!(
            format!("{error:#}").contains("no such program"),
            "{error:#}"
        );
    }
}
