//! This node at a glance: what `ui` and `top` show, and how it is found out.

mod flows;
mod packet;
mod tap;

use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use overlay_common::outcome::{Counter, Hook, Kind, Outcome};
use serde::Serialize;
use tokio::task::spawn_blocking;

pub use self::flows::{FlowRate, TopFlows};
use self::flows::{Looks, Scene};
use super::{health::Health, peers, stats, status};
use crate::{
    datapath::{FastShare, PinDir},
    history, metrics, output, probe,
    view::{EbpfTier, Host, Snapshot},
};

/// A node at one time. Its JSON is documented and stable.
#[derive(Clone, Debug, Serialize)]
pub struct Glance {
    /// Seconds since 1970.
    pub at: f64,
    pub host: String,
    pub version: &'static str,
    /// Of the node's own pods.
    pub subnets: Vec<IpNetwork>,
    /// As `status` judges.
    pub health: Health,
    pub problems: Vec<String>,
    /// As `peers` tells.
    pub peers: peers::Report,
    /// Since the look before; `None` (JSON `null`) at the first one, and without programs.
    pub carried: Option<Carried>,
    /// What the agent remembers; `None` (JSON `null`) without one.
    pub history: Option<history::Told>,
    pub flows: TopFlows,
    /// What was dropped, or left to the kernel: drops first, then what there is most of now.
    pub packets: Vec<PacketRow>,
}

/// Packets between pods of different nodes, by who carried them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Carried {
    pub from_pods: Rates,
    pub to_pods: Rates,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    pub fast_per_second: f64,
    pub kernel_per_second: f64,
    /// `None` (JSON `null`) without packets.
    pub fast_percent: Option<f64>,
}

/// A counter, and how fast it grows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PacketRow {
    #[serde(flatten)]
    pub counter: stats::Row,
    /// `None` (JSON `null`) at the first look.
    pub per_second: Option<f64>,
}

/// Looks at the node again and again.
pub struct Glancer {
    pins: PinDir,
    before: Option<Before>,
    looks: Looks,
}

/// The counters as they were.
struct Before {
    at: Instant,
    counters: Vec<Counted>,
}

/// A counter, and what of.
type Counted = (Hook, Outcome, Counter);

impl Glancer {
    pub fn new(pins: PinDir) -> Self {
        Self {
            pins,
            before: None,
            looks: Looks::default(),
        }
    }

    /// Takes a moment, for flows are watched meanwhile. What cannot be read is among the problems.
    pub async fn look(&mut self) -> Glance {
        let Snapshot { ebpf, kernel } = Snapshot::read(&self.pins).await;
        let host = Host::read().await;
        let missing = [&kernel.missing[..], &host.missing].concat();
        let judged = status::judge(&self.pins, &ebpf, kernel, &host);
        let (health, mut problems) =
            judged.unwrap_or_else(|error| (Health::Unknown, vec![output::one_line(&error)]));
        problems.extend(missing);
        let tier = ebpf.ok();
        let (carried, packets) = self.counted(tier.as_ref());
        let scene = tier.as_ref().map(Scene::of).unwrap_or_default();
        let subnets = tier.as_ref().map(EbpfTier::subnets).unwrap_or_default();
        let subnets = [
            subnets.ipv4.map(IpNetwork::from),
            subnets.ipv6.map(IpNetwork::from),
        ];
        drop(tier);
        let asked = spawn_blocking(move || (probe::ask(), history::ask(), scene.look())).await;
        let (peers, history, look) = match asked {
            Ok(asked) => asked,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let silent = [peers.as_ref().err(), history.as_ref().err()];
        let silent = silent.into_iter().flatten();
        problems.extend(silent.map(|error| format!("the agent does not answer: {error}")));
        Glance {
            at: metrics::unix_time(),
            host: host_name(),
            version: env!("CARGO_PKG_VERSION"),
            subnets: subnets.into_iter().flatten().collect(),
            peers: peers::Report::of(peers.unwrap_or_default()),
            carried,
            history: history.unwrap_or_default(),
            flows: self.looks.add(look),
            packets,
            health,
            problems,
        }
    }

    fn counted(&mut self, tier: Option<&EbpfTier>) -> (Option<Carried>, Vec<PacketRow>) {
        let now = tier.map(|tier| Before {
            at: Instant::now(),
            counters: tier.counters.clone(),
        });
        let before = std::mem::replace(&mut self.before, now);
        let Some(now) = &self.before else {
            return (None, Vec::new());
        };
        let time = before.as_ref().map(|before| now.at - before.at);
        let before = before.map(|before| before.counters);
        compare(before.as_deref().zip(time), &now.counters)
    }
}

/// What the counters say, with those of before and the time since then.
fn compare(
    before: Option<(&[Counted], Duration)>,
    now: &[Counted],
) -> (Option<Carried>, Vec<PacketRow>) {
    let carried = before.map(|(before, time)| {
        let rates = |hook| {
            let share = FastShare::at(hook, now).since(FastShare::at(hook, before));
            Rates {
                fast_per_second: rate(share.fast, time),
                kernel_per_second: rate(share.kernel, time),
                fast_percent: share.percent(),
            }
        };
        Carried {
            from_pods: rates(Hook::Egress),
            to_pods: rates(Hook::Ingress),
        }
    });
    let shown = |kind| [Kind::Drop, Kind::Decline].contains(&kind);
    let mut rows: Vec<(Kind, PacketRow)> = { now.iter() }
        .filter(|(_, outcome, counter)| shown(outcome.kind()) && counter.packets > 0)
        .map(|(hook, outcome, counter)| {
            let per_second = before.map(|(before, time)| {
                let mut before = before.iter();
                let same = before.find(|(at, was, _)| (at, was) == (hook, outcome));
                let was = same.map_or(0, |(.., counter)| counter.packets);
                let came = { counter.packets }.checked_sub(was);
                rate(came.unwrap_or(counter.packets), time)
            });
            let row = PacketRow {
                counter: stats::Row::of(*hook, *outcome, *counter),
                per_second,
            };
            (outcome.kind(), row)
        })
        .collect();
    rows.sort_by(|(kind, row), (other_kind, other)| {
        let speed = |row: &PacketRow| row.per_second.unwrap_or_default();
        other_kind
            .cmp(kind)
            .then(speed(other).total_cmp(&speed(row)))
            .then(other.counter.packets.cmp(&row.counter.packets))
    });
    let rows = rows.into_iter().map(|(_, row)| row);
    (carried, rows.collect())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to 2^53 packets between two looks"
)]
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(0.001)
}

#[cfg(test)]
pub mod sample;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_come_first_and_then_what_there_is_most_of_now() {
        let counter = |packets| Counter { packets, bytes: 0 };
        let before = [
            (Hook::Egress, Outcome::FastTunnel, counter(100)),
            (Hook::Egress, Outcome::NoPermit, counter(900)),
            (Hook::Egress, Outcome::Fragment, counter(10)),
            (Hook::Ingress, Outcome::PodTunnel, counter(0)),
        ];
        let now = [
            (Hook::Egress, Outcome::FastTunnel, counter(190)),
            (Hook::Egress, Outcome::NoPermit, counter(910)),
            (Hook::Egress, Outcome::Fragment, counter(50)),
            (Hook::Ingress, Outcome::PodTunnel, counter(4)),
        ];
        let (carried, rows) = compare(Some((&before, Duration::from_secs(2))), &now);
        let from_pods = carried.unwrap().from_pods;
        let rates = (from_pods.fast_per_second, from_pods.kernel_per_second);
        assert_eq!((rates, from_pods.fast_percent), ((45.0, 5.0), Some(90.0)));
        let rows: Vec<_> = { rows.iter() }
            .map(|row| (row.counter.outcome, row.counter.packets, row.per_second))
            .collect();
        let expected = [
            ("pod_tunnel", 4, Some(2.0)),
            ("fragment", 50, Some(20.0)),
            ("no_permit", 910, Some(5.0)),
        ];
        assert_eq!(rows, expected);
        let (carried, rows) = compare(None, &now);
        assert_eq!((carried, rows[1].counter.outcome), (None, "no_permit"));
        assert_eq!(rows[1].per_second, None);
    }

    #[test]
    fn the_json_is_as_documented() {
        let glance = sample::glance();
        insta::assert_snapshot!(serde_json::to_string_pretty(&glance).unwrap());
    }
}
