//! `overlay-agent check`: which of the known pitfalls this host is in, and what to do about them.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use serde::Serialize;

use super::{health::Health, peers::NOBODY, pinned::Pinned};
use crate::{
    check::{self, Facts, Finding, Places, Severity},
    config::options::DEFAULT_SUBNET_FILE,
    output,
    probe::{self, Mesh},
    view::Snapshot,
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Subnet file of the agent
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Where the host's /etc, /run and /usr are, in a container that has them elsewhere
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Also ask the agents of all nodes which of the others they reach
    #[arg(long)]
    pub mesh: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    health: Health,
    findings: Vec<Finding>,
    /// What could not be looked at, in sentences.
    not_checked: Vec<String>,
    /// `None` (JSON `null`) unless it was asked for, or if there is no agent to begin with.
    mesh: Option<Mesh>,
}

pub async fn look(args: &Args) -> Report {
    let snapshot = Snapshot::read(&args.pinned.pins()).await;
    let places = Places {
        subnet_file: args.subnet_file.clone(),
        root: args.root.clone(),
    };
    let (facts, mut not_checked) = check::gather(&snapshot, &places).await;
    if !facts.is_a_node()
        && let Err(error) = snapshot.ebpf
    {
        not_checked.insert(0, error.to_string());
    }
    let mesh = if args.mesh {
        mesh(&mut not_checked).await
    } else {
        None
    };
    Report::new(&facts, not_checked, mesh)
}

async fn mesh(not_checked: &mut Vec<String>) -> Option<Mesh> {
    let why = match probe::ask() {
        Ok(Some(told)) => match told.idle.clone() {
            Some(idle) => idle,
            None => match probe::survey(&told).await {
                Ok(mesh) => return Some(mesh),
                Err(error) => error.to_string(),
            },
        },
        Ok(None) => NOBODY.to_owned(),
        Err(error) => error.to_string(),
    };
    not_checked.push(format!("whom the nodes reach is left out: {why}"));
    None
}

pub fn print(report: &Report, args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    output::print(report, args.pinned.output, out)?;
    Ok(report.health.exit_code())
}

impl Report {
    fn new(facts: &Facts, not_checked: Vec<String>, mesh: Option<Mesh>) -> Self {
        let mut findings = check::examine(facts);
        findings.extend(mesh.iter().flat_map(check::examine_mesh));
        findings.sort_by_key(|finding| (finding.severity, finding.name));
        let is_bad = |finding: &Finding| finding.severity != Severity::Note;
        let health = if findings.iter().any(is_bad) {
            Health::Degraded
        } else if facts.is_a_node() {
            Health::Healthy
        } else {
            Health::Unknown
        };
        Self {
            health,
            findings,
            not_checked,
            mesh,
        }
    }
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.health.name())?;
        for finding in &self.findings {
            writeln!(out, "\n{} {}", finding.severity.name(), finding.name)?;
            writeln!(out, "  {}", finding.seen)?;
            writeln!(out, "  do: {}", finding.advice)?;
        }
        if let Some(mesh) = &self.mesh {
            let (nodes, silent) = (mesh.nodes.len(), mesh.silent().count());
            writeln!(
                out,
                "\nmesh: {} of {nodes} nodes told, {} of {} ways in trouble",
                nodes - silent,
                mesh.in_trouble,
                mesh.ways
            )?;
        }
        if !self.not_checked.is_empty() {
            writeln!(out)?;
        }
        for sentence in &self.not_checked {
            writeln!(out, "not checked: {sentence}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn finding(severity: Severity) -> Finding {
        Finding {
            name: "ip_forward",
            severity,
            seen: "net.ipv4.ip_forward is 0".to_owned(),
            advice: "sysctl -w net.ipv4.ip_forward=1".to_owned(),
        }
    }

    fn text(format: Format) -> String {
        let report = Report {
            health: Health::Degraded,
            findings: vec![finding(Severity::Error), finding(Severity::Note)],
            not_checked: vec![
                "drivers and offloads are left out: ethtool is not installed".to_owned(),
            ],
            mesh: None,
        };
        let mut out = Vec::new();
        output::print(&report, format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_says_what_to_do() {
        insta::assert_snapshot!(text(Format::Table));
    }

    #[test]
    fn the_json_is_as_documented() {
        insta::assert_snapshot!(text(Format::Json));
    }

    #[test]
    fn of_a_host_without_an_overlay_nothing_can_be_told() {
        let report = Report::new(&Facts::default(), Vec::new(), None);
        assert_eq!((report.health, report.findings.len()), (Health::Unknown, 0));
    }
}
