//! `overlay-agent flows`: the flow table, with what is left of each permit.

use std::{
    io::{self, Write},
    mem::take,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use overlay_common::{
    addr::Address as _,
    flow::{Flow, FlowKey, MODE_BITS, REWRITE_DESTINATION, REWRITE_SOURCE},
};
use serde::Serialize;

use super::{
    pinned::{Generations, Pinned},
    routes::mode_name,
};
use crate::{
    model::Family,
    names::{interface_label, interface_name, protocol_name},
    output::{self, Table, grouped},
    view::{FlowState, FlowTable, FlowTables, left},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Only flows of this pod, on either side
    #[arg(long, value_name = "ADDRESS")]
    pub pod: Option<IpAddr>,
    /// Print entries without a live permit, too
    #[arg(long)]
    pub all: bool,
    /// Print at most this many
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<usize>,
}

/// Both flow tables, IPv4's first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub generations: Generations,
    /// Entries in the tables.
    pub entries: usize,
    /// Entries with a permit that counts.
    pub live: usize,
    /// Entries that match the command line.
    pub matching: usize,
    /// The first of them, as many as were asked for.
    pub flows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub protocol: String,
    pub local: IpAddr,
    /// ICMP echo: the identifier on the side that asks, 0 on the other.
    pub local_port: u16,
    pub remote: IpAddr,
    pub remote_port: u16,
    /// What the remote end becomes in packets that netfilter translates.
    pub translation: Option<Translation>,
    pub egress: Option<Permit>,
    pub ingress: Option<Permit>,
    /// `live`, `expired`, or `stale`: of a generation before the last flush.
    pub state: FlowState,
    pub generation: u32,
    /// Host side of the pod's veth; 0 before the first ingress permit.
    pub pod_ifindex: u32,
    pub pod_ifname: Option<String>,
    /// UDP source port of the flow's tunnel packets.
    pub tunnel_source_port: u16,
}

/// What is written into the packets of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Translation {
    pub rewritten: Rewritten,
    pub address: IpAddr,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rewritten {
    /// A service's address and port become a backend's, in what the pod sends.
    Destination,
    /// A backend's become the service's, in what the pod receives.
    Source,
}

/// What is left of a permit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Permit {
    pub seconds_left: f64,
    /// `tunnel` or `direct`.
    pub mode: &'static str,
}

/// Which flows to show.
#[derive(Clone, Copy, Debug, Default)]
struct Filter {
    pod: Option<IpAddr>,
    all: bool,
    limit: Option<usize>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let tables = FlowTables::read(&args.pinned.pins())?;
    let filter = Filter {
        pod: args.pod,
        all: args.all,
        limit: args.limit,
    };
    let report = Report::new(tables, filter, interface_name);
    output::print(&report, args.pinned.output, out)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(
        tables: FlowTables,
        filter: Filter,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let FlowTables { ipv4, ipv6, now } = tables;
        let mut report = Self::default();
        if let Some(table) = ipv4 {
            report.generations.ipv4 = Some(table.generation);
            report.add(table, now, filter, &interface_name);
        }
        if let Some(table) = ipv6 {
            report.generations.ipv6 = Some(table.generation);
            report.add(table, now, filter, &interface_name);
        }
        report
    }

    fn add<F: Family>(
        &mut self,
        mut table: FlowTable<F>,
        now: Duration,
        filter: Filter,
        interface_name: impl Fn(u32) -> Option<String>,
    ) {
        self.entries += table.flows.len();
        self.live += table.live(now);
        let mut flows = take(&mut table.flows);
        flows.sort_unstable_by_key(|(key, _)| *key);
        flows.retain(|(key, flow)| {
            let on_pod = |pod| {
                let pod = F::address(pod).map(Into::into);
                pod.is_some_and(|pod| [key.local, key.remote].contains(&pod))
            };
            filter.pod.is_none_or(on_pod)
                && (filter.all || table.state(flow, now) == FlowState::Live)
        });
        self.matching += flows.len();
        let address = |address: F::Be| F::Address::from(address).into();
        let row = |(key, flow): &(FlowKey<F>, Flow)| Row {
            protocol: protocol_name(key.protocol),
            local: address(key.local),
            local_port: u16::from_be_bytes(key.local_port),
            remote: address(key.remote),
            remote_port: u16::from_be_bytes(key.remote_port),
            translation: translation::<F>(flow),
            egress: Permit::new(flow.egress_until, flow.egress_mode, now),
            ingress: Permit::new(flow.ingress_until, flow.ingress_mode, now),
            state: table.state(flow, now),
            generation: flow.generation,
            pod_ifindex: flow.pod_ifindex,
            pod_ifname: interface_name(flow.pod_ifindex),
            tunnel_source_port: u16::from_be_bytes(flow.source_port),
        };
        let room = filter
            .limit
            .unwrap_or(usize::MAX)
            .saturating_sub(self.flows.len());
        self.flows.extend(flows.iter().take(room).map(row));
    }
}

fn translation<F: Family>(flow: &Flow) -> Option<Translation> {
    let rewritten = match flow.rewrite {
        REWRITE_DESTINATION => Rewritten::Destination,
        REWRITE_SOURCE => Rewritten::Source,
        _ => return None,
    };
    let address = F::Be::from_wide(bytemuck::cast(flow.rewrite_address));
    Some(Translation {
        rewritten,
        address: F::Address::from(address).into(),
        port: u16::from_be_bytes(flow.rewrite_port),
    })
}

impl Row {
    /// The remote end; of a translated flow the service's address first, and an arrow the way its packets go.
    fn remote_text(&self) -> String {
        let remote = SocketAddr::new(self.remote, self.remote_port);
        let Some(Translation {
            rewritten,
            address,
            port,
        }) = self.translation
        else {
            return remote.to_string();
        };
        let other = SocketAddr::new(address, port);
        match rewritten {
            Rewritten::Destination => format!("{remote} → {other}"),
            Rewritten::Source => format!("{other} ← {remote}"),
        }
    }
}

impl Permit {
    fn new(until_ns: u64, mode: u8, now: Duration) -> Option<Self> {
        let left = left(until_ns, now)?;
        Some(Self {
            seconds_left: f64::from(u32::try_from(left.as_millis()).unwrap_or(u32::MAX)) / 1e3,
            mode: mode_name(mode & MODE_BITS),
        })
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
                let mode =
                    |permit: Option<Permit>| permit.map_or("-", |permit| permit.mode).to_owned();
                let left = |permit: Option<Permit>| {
                    permit.map_or_else(String::new, |permit| {
                        format!("{:.1} s", permit.seconds_left)
                    })
                };
                table.row([
                    row.protocol.clone(),
                    SocketAddr::new(row.local, row.local_port).to_string(),
                    row.remote_text(),
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
            "{} of {} matching flows; {} live of {} entries ({})",
            grouped(self.flows.len() as u64),
            grouped(self.matching as u64),
            grouped(self.live as u64),
            grouped(self.entries as u64),
            self.generations
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use overlay_common::{
        flow::{FlowKey4, FlowKey6},
        node::{MODE_DIRECT, MODE_TUNNEL},
    };

    use super::*;
    use crate::{
        model::{V4, V6},
        output::Format,
    };

    const NOW: Duration = Duration::from_secs(100);
    const SECOND: u64 = 1_000_000_000;

    fn flow(egress_until: u64, ingress_until: u64, generation: u32) -> Flow {
        Flow {
            egress_until,
            ingress_until,
            generation,
            egress_mode: MODE_TUNNEL,
            ingress_mode: MODE_DIRECT,
            pod_ifindex: 7,
            source_port: 50_123u16.to_be_bytes(),
            ..Flow::default()
        }
    }

    fn translated(rewrite: u8) -> Flow {
        let mut rewrite_address = [0; 16];
        rewrite_address[..4].copy_from_slice(&[10, 96, 0, 10]);
        Flow {
            rewrite,
            rewrite_address,
            rewrite_port: 53u16.to_be_bytes(),
            ..flow(101 * SECOND, 0, 5)
        }
    }

    fn ipv4() -> FlowTable<V4> {
        let key = |last: u8, protocol| FlowKey4 {
            local: Ipv4Addr::new(10, 1, 1, last).into(),
            remote: Ipv4Addr::new(10, 1, 2, 9).into(),
            local_port: 40_000u16.to_be_bytes(),
            remote_port: 80u16.to_be_bytes(),
            protocol,
            ..FlowKey4::default()
        };
        FlowTable {
            flows: vec![
                (key(4, 17), flow(101 * SECOND, 102 * SECOND, 4)),
                (key(3, 1), flow(99 * SECOND, 0, 5)),
                (key(2, 6), flow(112 * SECOND + SECOND / 2, 0, 5)),
                (key(5, 6), translated(REWRITE_DESTINATION)),
                (key(6, 6), translated(REWRITE_SOURCE)),
            ],
            generation: 5,
            capacity: 8,
        }
    }

    fn ipv6() -> FlowTable<V6> {
        let address = |text: &str| -> Ipv6Addr { text.parse().unwrap() };
        let key = |local, protocol, local_port: u16| FlowKey6 {
            local: address(local).into(),
            remote: address("fd00:10:5:2::9").into(),
            local_port: local_port.to_be_bytes(),
            protocol,
            ..FlowKey6::default()
        };
        FlowTable {
            flows: vec![
                (key("fd00:10:5:1::3", 6, 40_000), flow(0, 0, 5)),
                (key("fd00:10:5:1::2", 58, 4115), flow(115 * SECOND, 0, 3)),
            ],
            generation: 3,
            capacity: 8,
        }
    }

    fn tables(ipv4: Option<FlowTable<V4>>, ipv6: Option<FlowTable<V6>>) -> FlowTables {
        FlowTables {
            ipv4,
            ipv6,
            now: NOW,
        }
    }

    /// Of a node that serves both families.
    fn report(filter: Filter) -> Report {
        let name = |_| Some("vethb2".into());
        Report::new(tables(Some(ipv4()), Some(ipv6())), filter, name)
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
    fn a_node_of_one_family_shows_that_alone() {
        let of = |ipv4, ipv6| Report::new(tables(ipv4, ipv6), Filter::default(), |_| None);
        let last = |report: &Report| {
            let text = text(report, Format::Table);
            text.lines().last().unwrap_or_default().to_owned()
        };
        assert_eq!(
            last(&of(Some(ipv4()), None)),
            "3 of 3 matching flows; 3 live of 5 entries (generation 5)"
        );
        assert_eq!(
            last(&of(None, Some(ipv6()))),
            "1 of 1 matching flows; 1 live of 2 entries (IPv6 generation 3)"
        );
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
        assert_eq!(shown(Filter::default()), (7, 4, 4, 4));
        for pod in ["10.1.1.3", "fd00:10:5:1::3"] {
            let pod = pod.parse().ok();
            let live = Filter {
                pod,
                ..Filter::default()
            };
            assert_eq!(shown(live), (7, 4, 0, 0));
            assert_eq!(shown(Filter { all: true, ..live }), (7, 4, 1, 1));
        }
        for limit in 0..=7 {
            let filter = Filter {
                pod: None,
                all: true,
                limit: Some(limit),
            };
            assert_eq!(shown(filter), (7, 4, 7, limit));
        }
    }
}
