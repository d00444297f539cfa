//! `overlay-agent stats`: what happened to packets, by hook and outcome.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use overlay_common::outcome::{Counter, Hook, Kind, Outcome};
use serde::Serialize;

use super::pinned::Pinned;
use crate::{
    backend::udp::{self, Count},
    datapath::{DatapathError, FastShare},
    output::{self, Table, grouped},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Print counters that are zero, too
    #[arg(long)]
    pub all: bool,
}

/// Counters since the maps were created, grouped by what they mean for the packet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub fast_path: FastPath,
    pub counters: Vec<Row>,
    /// What the agent's forwarder did since the agent was started; `None` (JSON `null`) with other backends
    /// than udp, and without an agent.
    pub forwarder: Option<Vec<Count>>,
}

/// The share of pod packets between nodes that took the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FastPath {
    /// Packets from local pods.
    pub egress: Share,
    /// Packets to local pods.
    pub ingress: Share,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    pub fast_packets: u64,
    pub kernel_packets: u64,
    /// `None` (JSON `null`) without packets.
    pub fast_percent: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub kind: &'static str,
    pub hook: &'static str,
    pub outcome: &'static str,
    pub description: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let forwarder = udp::counted()?;
    let counters = match args.pinned.open() {
        Ok(maps) => maps.counters()?,
        // The forwarder does not need them.
        Err(DatapathError::NotPinned { .. } | DatapathError::KernelTier { .. })
            if forwarder.is_some() =>
        {
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    let report = Report::new(&counters, args.all).with_forwarder(forwarder, args.all);
    output::print(&report, args.pinned.output, out)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    /// With `all`, also what never happened.
    pub fn new(counters: &[(Hook, Outcome, Counter)], all: bool) -> Self {
        let mut shown: Vec<_> = counters
            .iter()
            .filter(|(.., counter)| all || counter.packets > 0)
            .collect();
        shown.sort_by_key(|(hook, outcome, _)| (outcome.kind(), *hook, *outcome));
        let rows =
            { shown.iter() }.map(|(hook, outcome, counter)| Row::of(*hook, *outcome, *counter));
        Self {
            fast_path: FastPath::new(counters),
            counters: rows.collect(),
            forwarder: None,
        }
    }

    fn with_forwarder(self, mut counts: Option<Vec<Count>>, all: bool) -> Self {
        if let Some(counts) = &mut counts {
            counts.retain(|count| all || count.packets > 0);
        }
        Self {
            forwarder: counts,
            ..self
        }
    }
}

impl Row {
    pub const fn of(hook: Hook, outcome: Outcome, counter: Counter) -> Self {
        Self {
            kind: outcome.kind().name(),
            hook: hook.name(),
            outcome: outcome.name(),
            description: outcome.describe(),
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

impl FastPath {
    pub fn new(counters: &[(Hook, Outcome, Counter)]) -> Self {
        let share = |hook| {
            let share = FastShare::at(hook, counters);
            Share {
                fast_packets: share.fast,
                kernel_packets: share.kernel,
                fast_percent: share.percent(),
            }
        };
        Self {
            egress: share(Hook::Egress),
            ingress: share(Hook::Ingress),
        }
    }
}

impl Share {
    /// `99.12 % of 1 234 packets`.
    pub fn describe(&self) -> String {
        let all = self.fast_packets.saturating_add(self.kernel_packets);
        match self.fast_percent {
            Some(percent) => format!("{percent:.2} % of {} packets", grouped(all)),
            None => "no pod packets yet".into(),
        }
    }
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut first = true;
        for kind in [
            Kind::Drop,
            Kind::Decline,
            Kind::Permit,
            Kind::Short,
            Kind::Fast,
        ] {
            let rows = self.counters.iter().filter(|row| row.kind == kind.name());
            let mut table = Table::new(&["HOOK", "OUTCOME", "PACKETS>", "BYTES>", "MEANING"]);
            for row in rows {
                table.row([
                    row.hook.into(),
                    row.outcome.into(),
                    grouped(row.packets),
                    grouped(row.bytes),
                    row.description.into(),
                ]);
            }
            if table.is_empty() {
                continue;
            }
            if !first {
                writeln!(out)?;
            }
            first = false;
            writeln!(out, "{}", heading(kind))?;
            table.write(out)?;
        }
        if !first {
            writeln!(out)?;
        }
        if let Some(forwarder) = &self.forwarder {
            writeln!(out, "Carried by the agent, or not")?;
            let mut table = Table::new(&["EVENT", "PACKETS>", "MEANING"]);
            for count in forwarder {
                table.row([
                    count.event.clone(),
                    grouped(count.packets),
                    count.description.clone(),
                ]);
            }
            table.write(out)?;
            writeln!(out)?;
        }
        output::write_pairs(
            out,
            &[
                ("fast path from pods", self.fast_path.egress.describe()),
                ("fast path to pods", self.fast_path.ingress.describe()),
            ],
        )
    }
}

const fn heading(kind: Kind) -> &'static str {
    match kind {
        Kind::Fast => "Forwarded by the fast path",
        Kind::Short => "Carried by the kernel, past its tunnel device",
        Kind::Permit => "Carried by the kernel, with a change to the flow table or a way",
        Kind::Decline => "Left to the kernel",
        Kind::Drop => "Dropped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn sample() -> Report {
        let counter = |packets, bytes| Counter { packets, bytes };
        Report::new(
            &[
                (
                    Hook::Egress,
                    Outcome::FastTunnel,
                    counter(12_345, 1_234_500),
                ),
                (Hook::Egress, Outcome::NoPermit, counter(5, 490)),
                (Hook::Egress, Outcome::Ttl, counter(0, 0)),
                (Hook::Egress, Outcome::PodTunnel, counter(1, 120)),
                (Hook::Deliver, Outcome::PermitGranted, counter(7, 686)),
                (Hook::Confirm, Outcome::ShortWay, counter(3, 294)),
            ],
            false,
        )
    }

    fn text(report: &Report, format: Format) -> String {
        let mut out = Vec::new();
        output::print(report, format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_groups_what_happened_and_ends_with_the_share() {
        insta::assert_snapshot!(text(&sample(), Format::Table));
    }

    #[test]
    fn the_json_is_as_documented() {
        insta::assert_snapshot!(text(&sample(), Format::Json));
    }

    #[test]
    fn what_the_forwarder_did_has_a_table_of_its_own() {
        let count = |event: &str, packets| Count {
            kind: "drop".to_owned(),
            event: event.to_owned(),
            description: "Of a kind.".to_owned(),
            packets,
        };
        let counts = || Some(vec![count("in_ttl", 1_234), count("no_node", 0)]);
        let shown = text(&sample().with_forwarder(counts(), false), Format::Table);
        let row = shown.lines().find(|line| line.starts_with("in_ttl"));
        assert!(row.unwrap().contains("1 234  Of a kind."), "{shown}");
        assert!(!shown.contains("no_node"), "{shown}");
        let all = text(&sample().with_forwarder(counts(), true), Format::Json);
        assert!(all.contains("no_node"), "{all}");
    }

    #[test]
    fn zeros_are_shown_on_request_and_an_idle_node_says_so() {
        let zero = [(Hook::Ingress, Outcome::Mtu, Counter::default())];
        assert_eq!(Report::new(&zero, true).counters.len(), 1);
        let idle = text(&Report::new(&zero, false), Format::Table);
        assert!(
            idle.starts_with("fast path from pods: no pod packets yet"),
            "{idle}"
        );
    }
}
