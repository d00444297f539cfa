//! `overlay-agent stats`: what happened to packets, by hook and outcome.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use overlay_common::outcome::{Counter, Hook, Kind, Outcome};
use serde::Serialize;

use super::pinned::Pinned;
use crate::{
    datapath::FastShare,
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
    let counters = args.pinned.open()?.counters()?;
    let report = Report::new(&counters, args.all);
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
        let row = |&&(hook, outcome, counter): &&(Hook, Outcome, Counter)| Row {
            kind: outcome.kind().name(),
            hook: hook.name(),
            outcome: outcome.name(),
            description: outcome.describe(),
            packets: counter.packets,
            bytes: counter.bytes,
        };
        Self {
            fast_path: FastPath::new(counters),
            counters: shown.iter().map(row).collect(),
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
