//! One measurement, and whether it may be believed: the machine did nothing else, the packets went
//! the way they should.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::Hook;
use serde_json::{Value, json};

use super::{
    figure::{Figure, Metric},
    load::{Kind, Outcome},
    machine::{FOREIGN_LIMIT, ProcessTime, ProgramStatistics, STEAL_LIMIT, share},
    programs::RunTime,
    rules::{ALTERED_PORT, service_of},
    site::Site,
    variant::Variant,
    wire::{self, Sent},
};
use crate::{lab::counters::Counters, netns::checked, traffic::Endpoint};

/// A veth with NAPI, which an XDP program or GRO gives it, counts frames without it.
const ETHERNET_HEADER: u64 = 14;
/// Ethernet, IPv4, UDP and payload of the measured datagrams.
const DATAGRAM_FRAME: u64 = ETHERNET_HEADER + 20 + 8 + 64;
const DATAGRAM_FRAME_IPV6: u64 = ETHERNET_HEADER + 40 + 8 + 64;
/// The fast path carries at least this share, where it is to carry the flow.
const FAST_LEAST: f64 = 0.99;
/// And at most this share where it is not.
const FAST_MOST: f64 = 0.01;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    pub load_program: PathBuf,
    pub seconds: f64,
    pub warm_up: f64,
    /// The core that is measured.
    pub cpu: usize,
    /// The core for everything else.
    pub sender_cpu: usize,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Sample {
    pub variant: &'static Variant,
    pub metric: Metric,
    pub round: usize,
    pub outcome: Outcome,
    /// What carrying packets took of processes, where they do.
    pub forwarders: Option<ProcessTime>,
    pub egress: Option<RunTime>,
    pub ingress: Option<RunTime>,
    /// Share of the pods' packets that the fast path carried.
    pub fast_share: Option<f64>,
    /// Share of the machine that others used.
    pub foreign: f64,
    pub steal: f64,
}

impl Sample {
    /// Takes a measurement; an error when the packets did not go the way of the variant.
    pub fn take(site: &Site, metric: Metric, round: usize, settings: &Settings) -> Result<Self> {
        let segmented = metric == Metric::BulkSegmented;
        if segmented {
            wire::set_segmented(&site.lab, true)?;
        }
        let sample = Self::measure(site, metric, round, settings)
            .with_context(|| format!("{}, {metric:?}, round {round}", site.variant.name));
        if segmented {
            wire::set_segmented(&site.lab, false)?;
        }
        sample
    }

    fn measure(site: &Site, metric: Metric, round: usize, settings: &Settings) -> Result<Self> {
        let statistics = match metric {
            Metric::Programs => Some(ProgramStatistics::enable()?),
            _ => None,
        };
        let before = Readings::take(site, metric)?;
        let outcome = run_load(site, metric.load(), settings)?;
        let readings = Readings::take(site, metric)?.since(&before);
        drop(statistics);
        ensure!(outcome.operations > 0, "nothing arrived");
        if metric.load() == Kind::Udp {
            check_frames(site.variant, readings.sent)?;
        }
        if let Some(fast) = readings.fast_share
            && metric.is_established()
        {
            check_share(site.variant, fast)?;
        }
        let machine_ns = outcome.machine_busy_ns + outcome.machine_idle_ns + outcome.steal_ns;
        let foreign_ns = match metric.load() {
            // Softirqs of a core that waits are nobody's time: only user mode tells others apart.
            Kind::Flood => outcome
                .machine_user_ns
                .saturating_sub(outcome.process_user_ns)
                .saturating_sub(readings.forwarders.map_or(0, |time| time.user_ns)),
            _ => outcome.machine_busy_ns.saturating_sub(outcome.cpu_ns()),
        };
        Ok(Self {
            variant: site.variant,
            metric,
            round,
            foreign: share(foreign_ns, machine_ns),
            steal: share(outcome.steal_ns, machine_ns),
            outcome,
            forwarders: readings.forwarders,
            egress: readings.egress,
            ingress: readings.ingress,
            fast_share: readings.fast_share,
        })
    }

    /// Whether the machine did nothing else.
    pub fn is_clean(&self) -> bool {
        self.foreign <= FOREIGN_LIMIT && self.steal <= STEAL_LIMIT
    }

    pub fn figure(&self, figure: Figure) -> Option<f64> {
        if figure.metric() != self.metric {
            return None;
        }
        let outcome = &self.outcome;
        let per_second = 1e9 * share(outcome.operations, outcome.wall_ns);
        let cpu_per_operation = share(outcome.cpu_ns(), outcome.operations);
        let per_run = |time: Option<RunTime>| time.map(|time| share(time.ns, time.runs));
        match figure {
            // Nanoseconds per byte are seconds per gigabyte.
            Figure::UdpCpu | Figure::BulkCpu | Figure::SegmentedCpu => Some(cpu_per_operation),
            Figure::UdpReceived | Figure::Connections | Figure::Questions => Some(per_second),
            Figure::ForwarderCpu => self
                .forwarders
                .map(|time| share(time.user_ns + time.system_ns, outcome.operations)),
            Figure::PingP50 => outcome.latency.map(|latency| share(latency.p50_ns, 1)),
            Figure::PingP99 => outcome.latency.map(|latency| share(latency.p99_ns, 1)),
            Figure::EgressTime => per_run(self.egress),
            Figure::IngressTime => per_run(self.ingress),
        }
    }

    pub fn to_json(&self) -> Value {
        let figures: serde_json::Map<_, _> = Figure::ALL
            .into_iter()
            .filter_map(|figure| Some((figure.name().to_owned(), json!(self.figure(figure)?))))
            .collect();
        json!({
            "variant": self.variant.name,
            "metric": format!("{:?}", self.metric),
            "round": self.round,
            "figures": figures,
            "load": self.outcome.to_json(),
            "fast_share": self.fast_share,
            "foreign": self.foreign,
            "steal": self.steal,
            "clean": self.is_clean(),
        })
    }
}

/// What is read before and after a load.
#[derive(Clone, Debug)]
struct Readings {
    sent: Sent,
    counters: Option<Counters>,
    forwarders: Option<ProcessTime>,
    egress: Option<RunTime>,
    ingress: Option<RunTime>,
    fast_share: Option<f64>,
}

impl Readings {
    fn take(site: &Site, metric: Metric) -> Result<Self> {
        let (first, second) = (site.lab.node(0), site.lab.node(1));
        let counters = if site.variant.is_agent() {
            Some(first.counters()?.plus(&second.counters()?))
        } else {
            None
        };
        let programs = metric == Metric::Programs;
        Ok(Self {
            sent: Sent::read(first)?,
            counters,
            forwarders: site.forwarders()?,
            egress: programs.then(|| RunTime::egress(first)).transpose()?,
            ingress: programs.then(|| RunTime::ingress(second)).transpose()?,
            fast_share: None,
        })
    }

    fn since(self, earlier: &Self) -> Self {
        let difference = |now: Option<RunTime>, before: Option<RunTime>| {
            now.zip(before).map(|(now, before)| now.since(before))
        };
        let counters = self
            .counters
            .zip(earlier.counters.as_ref())
            .map(|(now, before)| now.since(before));
        Self {
            sent: Sent {
                frames: self.sent.frames - earlier.sent.frames,
                bytes: self.sent.bytes - earlier.sent.bytes,
            },
            forwarders: self
                .forwarders
                .zip(earlier.forwarders)
                .map(|(now, before)| now.since(before)),
            egress: difference(self.egress, earlier.egress),
            ingress: difference(self.ingress, earlier.ingress),
            fast_share: counters.as_ref().map(fast_share),
            counters,
        }
    }
}

/// The smaller of the shares at both hooks.
fn fast_share(counters: &Counters) -> f64 {
    let at = |hook| share(counters.fast(hook), counters.overlay(hook));
    at(Hook::Egress).min(at(Hook::Ingress))
}

/// Frames on the wire have the size that the variant gives them. Without this, packets that some
/// other route carries look like a fast overlay.
fn check_frames(variant: &Variant, sent: Sent) -> Result<()> {
    let datagram = if variant.ipv6 {
        DATAGRAM_FRAME_IPV6
    } else {
        DATAGRAM_FRAME
    };
    let expected = datagram + u64::from(variant.headers());
    let average = share(sent.bytes, sent.frames);
    let near = |size: u64| (average - share(size, 1)).abs() < 1.0;
    ensure!(
        near(expected) || near(expected - ETHERNET_HEADER),
        "frames on the wire have {average:.1} bytes instead of {expected}"
    );
    Ok(())
}

fn check_share(variant: &Variant, fast: f64) -> Result<()> {
    if variant.from_host {
        // The pod's node has fast packets, the client's has none.
        Ok(())
    } else if variant.is_fast() {
        ensure!(
            fast >= FAST_LEAST,
            "the fast path carried {:.1} % of the packets, not {:.0} %",
            100.0 * fast,
            100.0 * FAST_LEAST
        );
        Ok(())
    } else {
        ensure!(
            fast <= FAST_MOST,
            "the fast path carried {:.1} % of packets it should leave alone",
            100.0 * fast
        );
        Ok(())
    }
}

/// Runs the load generator to its end.
fn run_load(site: &Site, kind: Kind, settings: &Settings) -> Result<Outcome> {
    let (client, server) = site.ends()?;
    let end = |end: &Endpoint<IpAddr>| format!("{}/{}", end.namespace.name(), end.address);
    let mut command = Command::new(&settings.load_program);
    command
        .arg(match kind {
            Kind::Udp => "udp",
            Kind::Flood => "flood",
            Kind::Ping => "ping",
            Kind::Connect => "connect",
            Kind::Question => "question",
            Kind::Bulk => "bulk",
        })
        .args(["--client", &end(&client), "--server", &end(&server)])
        .args(["--cpu", &settings.cpu.to_string()])
        .args(["--sender-cpu", &settings.sender_cpu.to_string()])
        .args(["--seconds", &settings.seconds.to_string()])
        .args(["--warm-up", &settings.warm_up.to_string()]);
    if site.variant.altered {
        let target = SocketAddr::new(server.address, ALTERED_PORT);
        let arrives = ALTERED_PORT + 2;
        command
            .args(["--target", &target.to_string()])
            .args(["--port", &arrives.to_string()]);
    }
    if site.variant.service {
        let target = service_of(server.address);
        command
            .args(["--target", &target.to_string()])
            .args(["--port", &target.port().to_string()]);
    }
    let printed = checked(&mut command)?;
    Outcome::from_json(&serde_json::from_str(&printed)?)
}
