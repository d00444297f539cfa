//! `overlay-agent bugreport`: one archive with everything a maintainer asks for, and no secrets.

mod archive;
mod collect;
mod daemons;
mod part;
mod redact;

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use serde::Serialize;

use self::{collect::collect, daemons::Daemons, part::Part, redact::Redactor};
use super::pinned::Pinned;
use crate::{config::options::DEFAULT_SUBNET_FILE, output};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Subnet file of the agent
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// The archive to write, which must not be there; default: overlay-bugreport-<host>-<time>.tar.gz here
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    file: PathBuf,
    entries: Vec<Entry>,
    /// What could not be had, in sentences.
    missing: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Entry {
    name: String,
    bytes: usize,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let file = args.file.clone().unwrap_or_else(default_file);
    let daemons = Daemons::find();
    let redactor = Redactor::new(daemons.secrets());
    let mut missing = Vec::new();
    let mut parts = collect(&args.pinned.pin_dir, &args.subnet_file, &mut missing).await;
    parts.push(Part::new("daemons.txt", daemons.describe()));
    for part in &mut parts {
        part.text = redactor.redact(&part.text);
    }
    let missing: Vec<String> = missing.iter().map(|text| redactor.redact(text)).collect();
    parts.push(Part::new("missing.txt", missing.join("\n")));
    archive::write(&file, &parts)
        .with_context(|| format!("cannot write the archive {}", file.display()))?;
    let entries = parts.into_iter().map(|part| Entry {
        name: part.name,
        bytes: part.text.len(),
    });
    Ok(Report {
        file,
        entries: entries.collect(),
        missing,
    })
}

pub fn print(report: &Report, args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    output::print(report, args.pinned.output, out)?;
    Ok(ExitCode::SUCCESS)
}

fn default_file() -> PathBuf {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.unwrap_or_default().as_secs();
    format!("overlay-bugreport-{}-{seconds}.tar.gz", host.trim()).into()
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}: {} texts", self.file.display(), self.entries.len())?;
        for sentence in &self.missing {
            writeln!(out, "missing: {sentence}")?;
        }
        writeln!(
            out,
            "passwords, keys and tokens are removed where they were recognised; addresses, names of interfaces and \
             rules are in it: look through it before you give it away"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn the_json_is_as_documented() {
        let report = Report {
            file: "bug.tar.gz".into(),
            entries: vec![Entry {
                name: "status.json".to_owned(),
                bytes: 17,
            }],
            missing: vec!["ethtool is not installed".to_owned()],
        };
        let mut out = Vec::new();
        output::print(&report, Format::Json, &mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }
}
