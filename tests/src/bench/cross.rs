//! The same comparison by tools that this project did not write, as a check on its own load
//! generator: `sockperf` for the TCP ping-pong, `iperf3` for bulk TCP.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    report::Series,
    sample::Settings,
    site::Site,
    table,
    variant::{self, Variant},
};
use crate::{
    netns::checked,
    process::{Daemon, Lifetime},
    traffic::Endpoint,
    wait::wait_for,
};

/// Each measurement takes the next port: the one before waits for stragglers.
const FIRST_PORT: u16 = 7100;
const PATIENCE: Duration = Duration::from_secs(10);

/// A foreign tool, and what it measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Median of half a round trip, client and server on the measured core (µs).
    Sockperf,
    /// Received from one flow, client and server on the measured core (Gbit/s).
    Iperf,
}

/// What one tool said in one round.
#[derive(Clone, Debug)]
pub struct CrossSample {
    pub tool: Tool,
    pub variant: &'static Variant,
    pub value: f64,
}

impl Tool {
    pub const ALL: [Self; 2] = [Self::Sockperf, Self::Iperf];

    pub fn title(self) -> &'static str {
        match self {
            Self::Sockperf => "sockperf, TCP ping-pong, one core, p50 of half a round trip (µs)",
            Self::Iperf => "iperf3, bulk TCP, one core, GSO wire (Gbit/s)",
        }
    }

    fn server(self, address: &str, port: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Sockperf => &["sockperf", "server", "--tcp", "-i", address, "-p", port],
            Self::Iperf => &["iperf3", "-s", "-B", address, "-p", port],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn client(self, address: &str, port: &str, seconds: f64) -> Vec<String> {
        let seconds = format!("{:.0}", seconds.max(1.0));
        let words: &[&str] = match self {
            Self::Sockperf => &[
                "sockperf",
                "ping-pong",
                "--tcp",
                "-i",
                address,
                "-p",
                port,
                "-t",
                &seconds,
            ],
            Self::Iperf => &[
                "iperf3", "-c", address, "-p", port, "-t", &seconds, "-J", "-C", "cubic",
            ],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn read(self, printed: &str) -> Result<f64> {
        match self {
            Self::Sockperf => printed
                .lines()
                .find_map(|line| {
                    line.split_once("percentile 50.000 =")?
                        .1
                        .trim()
                        .parse()
                        .ok()
                })
                .with_context(|| format!("no median in\n{printed}")),
            Self::Iperf => {
                let report: Value = serde_json::from_str(printed)?;
                let rate = &report["end"]["sum_received"]["bits_per_second"];
                let rate = rate
                    .as_f64()
                    .with_context(|| format!("no rate in\n{printed}"))?;
                Ok(rate / 1e9)
            }
        }
    }
}

/// Whether foreign tools say anything about a variant: what has a crowd, a service, an altered port or a client on the
/// host is a comparison within this project.
pub fn applies_to(variant: &Variant) -> bool {
    !variant.crowded && variant.is_plain()
}

/// Runs one tool between the ends of a site, in the `round`-th round.
pub fn measure(site: &Site, tool: Tool, round: usize, settings: &Settings) -> Result<CrossSample> {
    let (client, server) = site.ends()?;
    let address = server.address.to_string();
    let log = site.lab.dir().join("cross-check.log");
    let port = u16::try_from(2 * round + usize::from(tool == Tool::Iperf))?;
    let port = FIRST_PORT.saturating_add(port).to_string();
    let words = tool.server(&address, &port);
    let daemon = Daemon::start(
        &words[0],
        pinned(&server, &words, settings),
        &log,
        Lifetime::Bound,
    )?;
    wait_for("the server to listen", PATIENCE, || {
        daemon.check_running()?;
        let filter = format!("sport = :{port}");
        let listening = server.namespace.run("ss", ["-Hltn", &filter])?;
        ensure!(!listening.is_empty(), "nobody listens on port {port}");
        Ok(())
    })?;
    let words = tool.client(&address, &port, settings.seconds);
    let start = Instant::now();
    let printed = checked(&mut pinned(&client, &words, settings))
        .with_context(|| format!("{} after {:?}", site.variant.name, start.elapsed()))?;
    daemon.kill()?;
    Ok(CrossSample {
        tool,
        variant: site.variant,
        value: tool.read(&printed)?,
    })
}

fn pinned(end: &Endpoint<IpAddr>, words: &[String], settings: &Settings) -> std::process::Command {
    let mut command = end.namespace.command("taskset");
    command.args(["-c", &settings.cpu.to_string()]).args(words);
    command
}

/// The samples as Markdown tables.
pub fn render(samples: &[CrossSample]) -> String {
    Tool::ALL
        .map(|tool| {
            let rows = variant::ALL
                .iter()
                .map(|variant| (variant.name, series(samples, tool, variant)))
                .filter(|(_, series)| series.count() > 0);
            table::of_variants(tool.title(), rows, 2)
        })
        .concat()
}

fn series(samples: &[CrossSample], tool: Tool, variant: &Variant) -> Series {
    let values = samples
        .iter()
        .filter(|sample| sample.tool == tool && sample.variant == variant)
        .map(|sample| sample.value);
    Series::new(values.collect())
}

pub fn to_json(samples: &[CrossSample]) -> Value {
    samples
        .iter()
        .map(|sample| {
            json!({
                "tool": format!("{:?}", sample.tool),
                "variant": sample.variant.name,
                "value": sample.value,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_print_is_read() {
        let sockperf = "sockperf: ---> percentile 75.000 =    7.170\n\
                        sockperf: ---> percentile 50.000 =    7.085\n";
        assert_eq!(Tool::Sockperf.read(sockperf).ok(), Some(7.085));
        let iperf = r#"{"end":{"sum_received":{"bits_per_second":2.5e9}}}"#;
        assert_eq!(Tool::Iperf.read(iperf).ok(), Some(2.5));
        for tool in Tool::ALL {
            assert!(tool.read("{}").is_err());
        }
    }
}
