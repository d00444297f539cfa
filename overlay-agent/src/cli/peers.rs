//! `overlay-agent peers`: which nodes are reached through the overlay, and why the others are not.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde::Serialize;

use super::{health::Health, pinned::Pinned};
use crate::{
    output::{self, Table},
    probe::{self, Told, ToldPeer},
};

/// Why nothing is known of the peers.
pub const NOBODY: &str = "no agent runs here, or it does not ask its peers (--peer-probe-port=0)";

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Only peers in trouble
    #[arg(long)]
    pub trouble: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub health: Health,
    /// Why nothing is known; `None` (JSON `null`) if something is.
    pub reason: Option<String>,
    pub interval_seconds: Option<f64>,
    pub peers: Vec<ToldPeer>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut report = Report::of(probe::ask()?);
    if args.trouble {
        report.peers.retain(|peer| peer.trouble);
    }
    output::print(&report, args.pinned.output, out)?;
    Ok(report.health.exit_code())
}

impl Report {
    pub fn of(told: Option<Told>) -> Self {
        let Some(told) = told else {
            return Self {
                health: Health::Unknown,
                reason: Some(NOBODY.to_owned()),
                interval_seconds: None,
                peers: Vec::new(),
            };
        };
        let health = if told.idle.is_some() {
            Health::Unknown
        } else if told.peers.iter().any(|peer| peer.trouble) {
            Health::Degraded
        } else {
            Health::Healthy
        };
        Self {
            health,
            reason: told.idle,
            interval_seconds: Some(told.interval_seconds),
            peers: told.peers,
        }
    }
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.health.name())?;
        if let Some(reason) = &self.reason {
            writeln!(out, "  nobody is asked: {reason}")?;
        }
        if self.peers.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        let mut table = Table::new(&[
            "SUBNET",
            "NODE",
            "STATE",
            "ANSWERED>",
            "P50>",
            "P99>",
            "LOSS>",
        ]);
        for peer in &self.peers {
            let time = |time: Option<f64>| time.map_or("-".to_owned(), |ms| format!("{ms:.2} ms"));
            let ago =
                |time: Option<f64>| time.map_or("never".to_owned(), |s| format!("{s:.0} s ago"));
            table.row([
                peer.subnet.to_string(),
                peer.public_ip.to_string(),
                peer.state.clone(),
                ago(peer.answered_seconds_ago),
                time(peer.rtt_p50_ms),
                time(peer.rtt_p99_ms),
                peer.loss_percent
                    .map_or("-".to_owned(), |loss| format!("{loss:.0} %")),
            ]);
        }
        table.write(out)?;
        for peer in self.peers.iter().filter(|peer| peer.trouble) {
            writeln!(
                out,
                "\n{} at {}: {}",
                peer.subnet, peer.public_ip, peer.meaning
            )?;
            if let Some((subnet, public_ip)) = &peer.answered_by {
                writeln!(out, "  the node of {subnet} at {public_ip} answered")?;
            }
        }
        Ok(())
    }
}

/// Peers as tests show them.
#[cfg(test)]
pub mod sample {
    use crate::probe::{Told, ToldPeer};

    pub fn told() -> Told {
        Told {
            idle: None,
            interval_seconds: 5.0,
            port: 8473,
            own: Vec::new(),
            peers: vec![peer(2, "healthy", false), peer(3, "blocked", true)],
        }
    }

    fn peer(last: u8, state: &str, trouble: bool) -> ToldPeer {
        ToldPeer {
            subnet: format!("10.1.{last}.0/24").parse().unwrap(),
            address: [10, 1, last, 0].into(),
            public_ip: [192, 168, 0, last].into(),
            state: state.to_owned(),
            trouble,
            meaning: "What it means.".to_owned(),
            answered_seconds_ago: (!trouble).then_some(3.2),
            asked_seconds_ago: (!trouble).then_some(1.5),
            rtt_p50_ms: (!trouble).then_some(0.25),
            rtt_p99_ms: (!trouble).then_some(1.5),
            loss_percent: Some(if trouble { 100.0 } else { 0.0 }),
            questions: 32,
            answered_by: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn text(format: Format) -> String {
        let report = Report::of(Some(sample::told()));
        assert_eq!(report.health, Health::Degraded);
        let mut out = Vec::new();
        output::print(&report, format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_explains_what_is_wrong() {
        insta::assert_snapshot!(text(Format::Table));
    }

    #[test]
    fn the_json_is_as_documented() {
        insta::assert_snapshot!(text(Format::Json));
    }

    #[test]
    fn without_an_agent_nothing_is_known() {
        let report = Report::of(None);
        assert_eq!(report.health, Health::Unknown);
        assert!(report.reason.is_some());
    }
}
