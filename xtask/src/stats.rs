//! `--stats`: loads the object with bpftool, which proves that libbpf and the verifier accept it,
//! and prints what each program costs.

use std::{fmt::Write, path::Path, process::Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, command};

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
    verified_instructions: Option<u64>,
    translated_bytes: u64,
    jited_bytes: u64,
    maps: usize,
}

/// Loads the object and prints one row per program.
pub fn print(object: &Path) -> Result<()> {
    let rows = load(object)?;
    print!("{}", table(&rows));
    Ok(())
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

/// One row per line of `bpftool -j prog show`, with the verifier's count from its log.
fn rows(shown: &str, log: &str) -> Result<Vec<Row>> {
    let verified = verified_instructions(log);
    shown
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let value: Value = serde_json::from_str(line)
                .with_context(|| format!("bpftool printed no JSON: {line}"))?;
            let program = value["name"].as_str().unwrap_or("?").to_owned();
            Ok(Row {
                verified_instructions: verified
                    .iter()
                    .find(|(name, _)| *name == program)
                    .map(|(_, count)| *count),
                translated_bytes: value["bytes_xlated"].as_u64().unwrap_or(0),
                jited_bytes: value["bytes_jited"].as_u64().unwrap_or(0),
                maps: value["map_ids"].as_array().map_or(0, Vec::len),
                program,
            })
        })
        .collect()
}

/// Pairs `prog 'NAME': … BEGIN PROG LOAD LOG` with the `processed N insns` that follows it.
fn verified_instructions(log: &str) -> Vec<(String, u64)> {
    let mut counts = Vec::new();
    let mut current = None;
    for line in log.lines() {
        if line.contains("BEGIN PROG LOAD LOG") {
            current = line.split('\'').nth(1);
        } else if let (Some(program), Some(rest)) = (current, line.strip_prefix("processed "))
            && let Some(count) = rest.split(' ').next().and_then(|n| n.parse().ok())
        {
            counts.push((program.to_owned(), count));
        }
    }
    counts
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<18} {:>9} {:>12} {:>8} {:>5}\n",
        "program", "verified", "instructions", "jited", "maps"
    );
    for row in rows {
        let verified = row
            .verified_instructions
            .map_or_else(|| "-".to_owned(), |count| count.to_string());
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<18} {verified:>9} {:>12} {:>6} B {:>5}",
            row.program,
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
        processed 26 insns (limit 1000000) max_states_per_insn 0\n\
        -- END PROG LOAD LOG --\n\
        libbpf: prog 'overlay_ingress': -- BEGIN PROG LOAD LOG --\n\
        processed 1412 insns (limit 1000000) max_states_per_insn 4\n";

    #[test]
    fn each_program_gets_its_own_verifier_count() {
        assert_eq!(
            verified_instructions(LOG),
            [
                ("overlay_egress".to_owned(), 26),
                ("overlay_ingress".to_owned(), 1412)
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
                verified_instructions: Some(26),
                translated_bytes: 360,
                jited_bytes: 203,
                maps: 2,
            }]
        );
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
