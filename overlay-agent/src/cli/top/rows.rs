//! The rows of each table.

use std::net::SocketAddr;

use ratatui::layout::Constraint;

use super::{Tab, View};
use crate::{
    cli::glance::{FlowRate, Glance, PacketRow},
    datapath::FastShare,
    history::Sample,
    metrics::{Event, EventKind},
    output::grouped,
    probe::ToldPeer,
};

/// A line of a table, and whether something is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub cells: Vec<String>,
    pub trouble: bool,
}

/// Titles and widths.
pub fn columns(tab: Tab) -> Vec<(&'static str, Constraint)> {
    use Constraint::{Length, Min};
    match tab {
        Tab::Peers => vec![
            ("SUBNET", Length(18)),
            ("NODE", Length(15)),
            ("STATE", Length(11)),
            ("ANSWERED", Length(9)),
            ("P50", Length(9)),
            ("P99", Length(9)),
            ("LOSS", Length(5)),
            ("MEANING", Min(10)),
        ],
        Tab::Flows => vec![
            ("PROTOCOL", Length(8)),
            ("HERE", Length(22)),
            ("THERE", Length(22)),
            ("FROM POD", Length(12)),
            ("TO POD", Length(12)),
            ("PACKETS/S", Min(9)),
        ],
        Tab::Packets => vec![
            ("KIND", Length(7)),
            ("HOOK", Length(7)),
            ("OUTCOME", Length(15)),
            ("PACKETS", Length(14)),
            ("PER S", Length(9)),
            ("MEANING", Min(10)),
        ],
        Tab::Events => vec![
            ("AGO", Length(8)),
            ("KIND", Length(6)),
            ("TIMES", Length(5)),
            ("WHY", Min(30)),
            ("WHAT", Min(10)),
        ],
    }
}

impl View {
    pub fn rows(&self) -> Vec<Row> {
        let Some(glance) = &self.glance else {
            return Vec::new();
        };
        match self.tab {
            Tab::Peers => {
                let mut peers: Vec<_> = glance.peers.peers.iter().collect();
                peers.sort_by_key(|peer| !peer.trouble);
                peers.into_iter().map(peer).collect()
            }
            Tab::Flows => glance.flows.flows.iter().map(flow).collect(),
            Tab::Packets => glance.packets.iter().map(packets).collect(),
            Tab::Events => {
                let history = glance.history.iter();
                let events = history.flat_map(|history| &history.events);
                events.map(|event| happened(event, glance)).collect()
            }
        }
    }

    /// Why there are no rows.
    pub fn absence(&self) -> String {
        let Some(glance) = &self.glance else {
            return "looking …".to_owned();
        };
        let reason = match self.tab {
            Tab::Peers => glance.peers.reason.clone(),
            Tab::Flows => glance.flows.reason.clone(),
            Tab::Events if glance.history.is_none() => {
                Some("no agent runs that remembers any".to_owned())
            }
            Tab::Packets | Tab::Events => None,
        };
        reason.unwrap_or_else(|| "none".to_owned())
    }
}

fn peer(peer: &ToldPeer) -> Row {
    let time = |time: Option<f64>| time.map_or("-".to_owned(), |ms| format!("{ms:.2} ms"));
    let ago = peer.answered_seconds_ago;
    Row {
        cells: vec![
            peer.subnet.to_string(),
            peer.public_ip.to_string(),
            peer.state.clone(),
            ago.map_or("never".to_owned(), |seconds| format!("{seconds:.0} s ago")),
            time(peer.rtt_p50_ms),
            time(peer.rtt_p99_ms),
            { peer.loss_percent }.map_or("-".to_owned(), |loss| format!("{loss:.0} %")),
            peer.meaning.clone(),
        ],
        trouble: peer.trouble,
    }
}

fn flow(flow: &FlowRate) -> Row {
    Row {
        cells: vec![
            flow.protocol.clone(),
            SocketAddr::new(flow.local, flow.local_port).to_string(),
            SocketAddr::new(flow.remote, flow.remote_port).to_string(),
            bits(flow.from_pod_bytes_per_second),
            bits(flow.to_pod_bytes_per_second),
            number(flow.packets_per_second),
        ],
        trouble: false,
    }
}

fn packets(row: &PacketRow) -> Row {
    let counter = &row.counter;
    Row {
        cells: vec![
            counter.kind.to_owned(),
            counter.hook.to_owned(),
            counter.outcome.to_owned(),
            grouped(counter.packets),
            row.per_second.map_or("-".to_owned(), number),
            counter.description.to_owned(),
        ],
        trouble: counter.kind == "drop",
    }
}

fn happened(event: &Event, glance: &Glance) -> Row {
    let ago = (glance.at - event.at).max(0.0);
    Row {
        cells: vec![
            if ago < 120.0 {
                format!("{ago:.0} s")
            } else {
                format!("{:.0} min", ago / 60.0)
            },
            event.kind.name().to_owned(),
            event.times.to_string(),
            event.why.clone(),
            event.what.clone(),
        ],
        trouble: event.kind == EventKind::Repair,
    }
}

/// A rate of packets.
pub fn number(per_second: f64) -> String {
    if per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

fn bits(bytes_per_second: f64) -> String {
    let mut value = bytes_per_second * 8.0;
    for unit in ["bit/s", "kbit/s", "Mbit/s"] {
        if value < 1_000.0 {
            return format!("{value:.0} {unit}");
        }
        value /= 1_000.0;
    }
    format!("{value:.1} Gbit/s")
}

/// The fast share in percent over the samples, in so many columns at the most; `None` where nobody sent.
pub fn shares(
    samples: &[Sample],
    width: usize,
    pick: impl Fn(&Sample) -> FastShare,
) -> Vec<Option<u64>> {
    let together = samples.len().div_ceil(width.max(1)).max(1);
    let sum = |samples: &[Sample]| {
        let sum = samples
            .iter()
            .map(&pick)
            .fold(FastShare::default(), |sum, share| FastShare {
                fast: sum.fast.saturating_add(share.fast),
                kernel: sum.kernel.saturating_add(share.kernel),
            });
        sum.basis_points().map(|points| u64::from(points / 100))
    };
    samples.chunks(together).map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_fits_any_width() {
        let sample = |fast| Sample {
            at: 0.0,
            from_pods: FastShare {
                fast,
                kernel: 100 - fast,
            },
            to_pods: FastShare::default(),
            dropped: 0,
        };
        let samples: Vec<_> = (0..360).map(|number| sample(number % 101)).collect();
        for width in [0, 1, 7, 80, 359, 360, 1_000] {
            let columns = shares(&samples, width, |sample| sample.from_pods);
            assert!(columns.len() <= width.max(1), "{width}: {}", columns.len());
        }
        let two = [sample(100), sample(50)];
        let shown = |width| shares(&two, width, |sample| sample.from_pods);
        assert_eq!(
            (shown(1), shown(9)),
            (vec![Some(75)], vec![Some(100), Some(50)])
        );
        assert_eq!(shares(&two, 9, |sample| sample.to_pods), [None, None]);
    }

    #[test]
    fn rates_have_the_unit_that_people_can_read() {
        assert_eq!(bits(12.5), "100 bit/s");
        assert_eq!(bits(125_000.0), "1 Mbit/s");
        assert_eq!(bits(1_250_000_000.0), "10.0 Gbit/s");
    }
}
