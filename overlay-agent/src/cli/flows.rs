//! `overlay-agent flows`: the flow table, with what is left of each lease.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    process::ExitCode,
    time::Duration,
};

use overlay_common::flow::{Flow, FlowKey4};
use serde::Serialize;

use super::{
    pinned::{Pinned, interface_label, interface_name},
    routes::mode_name,
};
use crate::{
    datapath::lease_clock,
    output::{self, Table, grouped},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Only flows of this pod, on either side
    #[arg(long, value_name = "ADDRESS")]
    pub pod: Option<Ipv4Addr>,
    /// Print entries without a live lease, too
    #[arg(long)]
    pub all: bool,
    /// Print at most this many
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub generation: u32,
    /// Entries in the table.
    pub entries: usize,
    /// Entries with a lease that counts.
    pub live: usize,
    /// Entries that match the command line.
    pub matching: usize,
    /// The first of them, as many as were asked for.
    pub flows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub protocol: String,
    pub local: Ipv4Addr,
    /// ICMP echo: the identifier on the side that asks, 0 on the other.
    pub local_port: u16,
    pub remote: Ipv4Addr,
    pub remote_port: u16,
    pub egress: Option<Lease>,
    pub ingress: Option<Lease>,
    /// `live`, `expired`, or `stale`: of a generation before the last flush.
    pub state: State,
    pub generation: u32,
    /// Host side of the pod's veth; 0 before the first ingress lease.
    pub pod_ifindex: u32,
    pub pod_ifname: Option<String>,
    /// UDP source port of the flow's tunnel packets.
    pub tunnel_source_port: u16,
}

/// What is left of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lease {
    pub seconds_left: f64,
    /// `tunnel` or `direct`.
    pub mode: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Live,
    Expired,
    Stale,
}

/// Which flows to show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    pub pod: Option<Ipv4Addr>,
    pub all: bool,
    pub limit: Option<usize>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let maps = args.pinned.open()?;
    let filter = Filter {
        pod: args.pod,
        all: args.all,
        limit: args.limit,
    };
    let flows = maps.ipv4.flows()?;
    let report = Report::new(
        flows,
        maps.ipv4.config()?.generation,
        lease_clock()?,
        filter,
        interface_name,
    );
    output::print(&report, args.pinned.output, out)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether `flow` has a lease that counts at `now`.
pub fn state(flow: &Flow, generation: u32, now: Duration) -> State {
    if flow.generation != generation {
        State::Stale
    } else if left(flow.egress_until, now)
        .or(left(flow.ingress_until, now))
        .is_some()
    {
        State::Live
    } else {
        State::Expired
    }
}

impl Report {
    pub fn new(
        mut flows: Vec<(FlowKey4, Flow)>,
        generation: u32,
        now: Duration,
        filter: Filter,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Self {
        flows.sort_unstable_by_key(|(key, _)| *key);
        let is_live = |flow: &Flow| state(flow, generation, now) == State::Live;
        let live = flows.iter().filter(|(_, flow)| is_live(flow)).count();
        let entries = flows.len();
        flows.retain(|(key, flow)| {
            let on_pod = |pod: Ipv4Addr| [key.local, key.remote].contains(&pod.into());
            filter.pod.is_none_or(on_pod) && (filter.all || is_live(flow))
        });
        let row = |(key, flow): &(FlowKey4, Flow)| Row {
            protocol: protocol_name(key.protocol),
            local: key.local.into(),
            local_port: u16::from_be_bytes(key.local_port),
            remote: key.remote.into(),
            remote_port: u16::from_be_bytes(key.remote_port),
            egress: Lease::new(flow.egress_until, flow.egress_mode, now),
            ingress: Lease::new(flow.ingress_until, flow.ingress_mode, now),
            state: state(flow, generation, now),
            generation: flow.generation,
            pod_ifindex: flow.pod_ifindex,
            pod_ifname: interface_name(flow.pod_ifindex),
            tunnel_source_port: u16::from_be_bytes(flow.source_port),
        };
        Self {
            generation,
            entries,
            live,
            matching: flows.len(),
            flows: flows
                .iter()
                .take(filter.limit.unwrap_or(usize::MAX))
                .map(row)
                .collect(),
        }
    }
}

impl Lease {
    fn new(until_ns: u64, mode: u8, now: Duration) -> Option<Self> {
        let left = left(until_ns, now)?;
        Some(Self {
            seconds_left: f64::from(u32::try_from(left.as_millis()).unwrap_or(u32::MAX)) / 1e3,
            mode: mode_name(mode),
        })
    }
}

/// Time until a deadline; `None` if it is over.
fn left(until_ns: u64, now: Duration) -> Option<Duration> {
    Duration::from_nanos(until_ns)
        .checked_sub(now)
        .filter(|left| !left.is_zero())
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        other => other.to_string(),
    }
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        if !self.flows.is_empty() {
            let mut table = Table::new(&[
                "PROTOCOL", "LOCAL", "REMOTE", "EGRESS", "LEFT>", "INGRESS", "LEFT>", "POD",
                "STATE",
            ]);
            for row in &self.flows {
                let mode = |lease: Option<Lease>| lease.map_or("-", |lease| lease.mode).to_owned();
                let left = |lease: Option<Lease>| {
                    lease.map_or_else(String::new, |lease| format!("{:.1} s", lease.seconds_left))
                };
                table.row([
                    row.protocol.clone(),
                    format!("{}:{}", row.local, row.local_port),
                    format!("{}:{}", row.remote, row.remote_port),
                    mode(row.egress),
                    left(row.egress),
                    mode(row.ingress),
                    left(row.ingress),
                    match row.pod_ifindex {
                        0 => "-".into(),
                        ifindex => interface_label(ifindex, row.pod_ifname.as_deref()),
                    },
                    row.state.name().into(),
                ]);
            }
            table.write(out)?;
            writeln!(out)?;
        }
        writeln!(
            out,
            "{} of {} matching flows; {} live of {} entries (generation {})",
            grouped(self.flows.len() as u64),
            grouped(self.matching as u64),
            grouped(self.live as u64),
            grouped(self.entries as u64),
            self.generation
        )
    }
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Expired => "expired",
            Self::Stale => "stale",
        }
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::node::{MODE_DIRECT, MODE_TUNNEL};

    use super::*;
    use crate::output::Format;

    const NOW: Duration = Duration::from_secs(100);
    const SECOND: u64 = 1_000_000_000;

    fn flows() -> Vec<(FlowKey4, Flow)> {
        let key = |last: u8, protocol| FlowKey4 {
            local: Ipv4Addr::new(10, 1, 1, last).into(),
            remote: Ipv4Addr::new(10, 1, 2, 9).into(),
            local_port: 40_000u16.to_be_bytes(),
            remote_port: 80u16.to_be_bytes(),
            protocol,
            ..FlowKey4::default()
        };
        let flow = |egress_until, ingress_until, generation| Flow {
            egress_until,
            ingress_until,
            generation,
            egress_mode: MODE_TUNNEL,
            ingress_mode: MODE_DIRECT,
            pod_ifindex: 7,
            source_port: 50_123u16.to_be_bytes(),
            ..Flow::default()
        };
        vec![
            (key(4, 17), flow(101 * SECOND, 102 * SECOND, 4)),
            (key(3, 1), flow(99 * SECOND, 0, 5)),
            (key(2, 6), flow(112 * SECOND + SECOND / 2, 0, 5)),
        ]
    }

    fn report(filter: Filter) -> Report {
        Report::new(flows(), 5, NOW, filter, |_| Some("vethb2".into()))
    }

    fn text(report: &Report, format: Format) -> String {
        let mut out = Vec::new();
        output::print(report, format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_tells_live_expired_and_stale_flows_apart() {
        let all = Filter {
            all: true,
            ..Filter::default()
        };
        insta::assert_snapshot!(text(&report(all), Format::Table));
    }

    #[test]
    fn the_json_is_as_documented() {
        insta::assert_snapshot!(text(&report(Filter::default()), Format::Json));
    }

    #[test]
    fn filters_narrow_and_totals_stay() {
        let shown = |filter| {
            let report = report(filter);
            (
                report.entries,
                report.live,
                report.matching,
                report.flows.len(),
            )
        };
        assert_eq!(shown(Filter::default()), (3, 1, 1, 1));
        let pod = Some(Ipv4Addr::new(10, 1, 1, 3));
        assert_eq!(
            shown(Filter {
                pod,
                ..Filter::default()
            }),
            (3, 1, 0, 0)
        );
        assert_eq!(
            shown(Filter {
                pod,
                all: true,
                limit: None
            }),
            (3, 1, 1, 1)
        );
        assert_eq!(
            shown(Filter {
                pod: None,
                all: true,
                limit: Some(2)
            }),
            (3, 1, 3, 2)
        );
    }
}
