//! What the pinned maps say, as metrics.

use std::{fmt, time::Duration};

use overlay_common::{
    ABI_VERSION,
    maps::{MAX_GATEWAYS, MAX_NODES, MAX_ROUTES},
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_DIRECT},
    outcome::{Counter, Hook, Outcome},
};

use super::{
    ebpf::{EbpfTier, Overlay},
    flows::{FlowState, FlowTable, FlowTables, left},
};
use crate::{
    datapath::{FastShare, Maps, PinDir},
    metrics::{Sheet, Source, UNLABELLED},
    model::Family,
};

/// The eBPF tier of this node. On a node without one there is nothing to tell but that.
#[derive(Debug)]
pub struct NodeMetrics {
    pins: PinDir,
}

/// What was read for one scrape.
struct Reading {
    tier: EbpfTier,
    families: Vec<Told>,
    gateways: usize,
}

/// What there is to tell of one family.
struct Told {
    family: &'static str,
    generation: u32,
    permits: [Row<f64>; 4],
    peers: [Row<u64>; 4],
    flows: [Row<u64>; 3],
    permits_left: Vec<Row<f64>>,
    /// Entries and capacity of its maps.
    fill: [Row<[u64; 2]>; 4],
}

/// A value of one family, with the labels of a metric that has one label more.
type Row<V> = ([(&'static str, &'static str); 2], V);

impl NodeMetrics {
    pub fn new(pins: PinDir) -> Self {
        Self { pins }
    }

    fn read(&self) -> Option<Reading> {
        let maps = Maps::open(&self.pins).ok()?;
        let tier = EbpfTier::of(&self.pins, &maps).ok()?;
        let FlowTables { ipv4, ipv6, now } = FlowTables::of(&maps).ok()?;
        let ipv4 = tier.ipv4.as_ref().zip(ipv4.as_ref());
        let ipv6 = tier.ipv6.as_ref().zip(ipv6.as_ref());
        let families = [
            ipv4.map(|(overlay, table)| Told::of(overlay, table, now)),
            ipv6.map(|(overlay, table)| Told::of(overlay, table, now)),
        ];
        Some(Reading {
            families: families.into_iter().flatten().collect(),
            gateways: maps.gateways().ok()?.len(),
            tier,
        })
    }
}

impl Source for NodeMetrics {
    fn tell(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        sheet.gauge("build_info", "This build", [(version, 1_u32)])?;
        sheet.gauge(
            "abi_version",
            "Version of the layout of the pinned maps",
            [(UNLABELLED, ABI_VERSION)],
        )?;
        let reading = self.read();
        sheet.gauge(
            "ebpf_tier",
            "1 with the eBPF tier, 0 where packets have the kernel tier alone",
            [(UNLABELLED, u32::from(reading.is_some()))],
        )?;
        let Some(reading) = reading else {
            return Ok(());
        };
        packets(sheet, &reading.tier.counters)?;
        let links = &reading.tier.links;
        let attached = |alive| links.iter().filter(move |link| link.alive == alive).count();
        sheet.gauge(
            "programs",
            "Places where the programs belong, by whether they are there",
            [("attached", true), ("detached", false)]
                .map(|(state, alive)| ([("state", state)], count(attached(alive)))),
        )?;
        reading.tell_families(sheet)
    }
}

impl Reading {
    /// What there is of each family.
    fn tell_families(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let families = &self.families;
        sheet.gauge(
            "permit_generation",
            "Flows of another generation do not count; each flush begins a new one",
            families
                .iter()
                .map(|told| ([("family", told.family)], told.generation)),
        )?;
        sheet.gauge(
            "permit_life_seconds",
            "How long a permit lasts, by protocol; 0: none is granted",
            families.iter().flat_map(|told| told.permits),
        )?;
        sheet.gauge(
            "peers",
            "Subnets of other nodes, by how packets get there: through the tunnel, directly, by a way that is not \
             known yet, or by the kernel tier alone",
            families.iter().flat_map(|told| told.peers),
        )?;
        sheet.gauge(
            "flows",
            "Entries of the flow table: with a permit that counts, with one that is over, of an earlier generation",
            families.iter().flat_map(|told| told.flows),
        )?;
        sheet.gauge(
            "flow_permit_left_seconds",
            "Time until the permits that count end: of the one that ends first, of the middle one, of the last one",
            families.iter().flat_map(|told| told.permits_left.clone()),
        )?;
        let gateways = (
            [("map", "gateways"), ("family", "any")],
            [count(self.gateways), count(MAX_GATEWAYS)],
        );
        let fill = families.iter().flat_map(|told| told.fill);
        let fill: Vec<Row<[u64; 2]>> = fill.chain([gateways]).collect();
        sheet.gauge(
            "map_entries",
            "Entries of the maps",
            fill.iter()
                .map(|(labels, [entries, _])| (*labels, *entries)),
        )?;
        sheet.gauge(
            "map_capacity",
            "How many entries the maps have room for",
            fill.iter()
                .map(|(labels, [_, capacity])| (*labels, *capacity)),
        )
    }
}

impl Told {
    fn of<F: Family>(overlay: &Overlay<F>, table: &FlowTable<F>, now: Duration) -> Self {
        let config = &overlay.config;
        let permits = [
            ("tcp", config.tcp_permit_ns),
            ("udp", config.udp_permit_ns),
            ("icmp", config.icmp_permit_ns),
            ("sctp", config.sctp_permit_ns),
        ];
        Self {
            family: F::NAME,
            generation: config.generation,
            permits: permits.map(|(protocol, ns)| {
                let seconds = Duration::from_nanos(ns).as_secs_f64();
                ([("family", F::NAME), ("protocol", protocol)], seconds)
            }),
            peers: peers_of(overlay),
            flows: flows_of(table, now),
            permits_left: permits_left(table, now),
            fill: fill_of(overlay, table),
        }
    }
}

/// What happened to packets. Outcomes that never were are left out, or most of the text would be zeros.
fn packets(sheet: &mut Sheet<'_>, counters: &[(Hook, Outcome, Counter)]) -> fmt::Result {
    let seen = || counters.iter().filter(|(.., counter)| counter.packets > 0);
    let labels = |hook: Hook, outcome: Outcome| {
        [
            ("hook", hook.name()),
            ("outcome", outcome.name()),
            ("kind", outcome.kind().name()),
        ]
    };
    sheet.counter(
        "packets",
        "Packets the programs saw, by hook and by what became of them",
        seen().map(|(hook, outcome, counter)| (labels(*hook, *outcome), counter.packets)),
    )?;
    sheet.counter(
        "bytes",
        "Bytes of those packets",
        seen().map(|(hook, outcome, counter)| (labels(*hook, *outcome), counter.bytes)),
    )?;
    let directions = [("from_pods", Hook::Egress), ("to_pods", Hook::Ingress)];
    let shares = directions.map(|(direction, hook)| (direction, FastShare::at(hook, counters)));
    sheet.counter(
        "pod_packets",
        "Packets between pods of different nodes, by direction and by who carried them",
        shares.into_iter().flat_map(|(direction, share)| {
            [("fast", share.fast), ("kernel", share.kernel)]
                .map(|(path, packets)| ([("direction", direction), ("path", path)], packets))
        }),
    )
}

fn peers_of<F: Family>(overlay: &Overlay<F>) -> [Row<u64>; 4] {
    let is_direct = |index| {
        let node = overlay.nodes.get(&index);
        node.is_some_and(|node| node.flags & NODE_DIRECT != 0)
    };
    let mut counts = [0_u64; 4];
    for route in overlay.routes.values() {
        let state = match overlay.next_hop(route.node).map(|hop| hop.mode) {
            Some(MODE_TUNNEL) => 0,
            Some(MODE_DIRECT) => 1,
            _ if overlay.takes_tunnel_packets(route.node) || is_direct(route.node) => 2,
            _ => 3,
        };
        counts[state] += 1;
    }
    let states = ["tunnel", "direct", "unresolved", "kernel"];
    let mut rows = states.into_iter().zip(counts);
    std::array::from_fn(|_| {
        let (state, count) = rows.next().unwrap_or_default();
        ([("family", F::NAME), ("state", state)], count)
    })
}

fn fill_of<F: Family>(overlay: &Overlay<F>, table: &FlowTable<F>) -> [Row<[u64; 2]>; 4] {
    [
        ("nodes", overlay.nodes.len(), count(MAX_NODES)),
        ("peers", overlay.peers, count(MAX_NODES)),
        ("routes", overlay.routes.len(), count(MAX_ROUTES)),
        ("flows", table.flows.len(), table.capacity.into()),
    ]
    .map(|(map, entries, capacity)| {
        let labels = [("map", map), ("family", F::NAME)];
        (labels, [count(entries), capacity])
    })
}

fn flows_of<F: Family>(table: &FlowTable<F>, now: Duration) -> [Row<u64>; 3] {
    [FlowState::Live, FlowState::Expired, FlowState::Stale].map(|state| {
        let flows = table.flows.iter();
        let of_state = flows.filter(|(_, flow)| table.state(flow, now) == state);
        (
            [("family", F::NAME), ("state", state.name())],
            count(of_state.count()),
        )
    })
}

/// The shortest, the middle and the longest of the times; nothing without permits.
fn permits_left<F: Family>(table: &FlowTable<F>, now: Duration) -> Vec<Row<f64>> {
    let live = table
        .flows
        .iter()
        .filter(|(_, flow)| table.state(flow, now) == FlowState::Live);
    let mut times: Vec<Duration> = live
        .flat_map(|(_, flow)| [flow.egress_until, flow.ingress_until])
        .filter_map(|until| left(until, now))
        .collect();
    times.sort_unstable();
    let (Some(first), Some(last)) = (times.first(), times.last()) else {
        return Vec::new();
    };
    let middle = times.get(times.len() / 2).unwrap_or(last);
    [("0", first), ("0.5", middle), ("1", last)]
        .map(|(quantile, time)| {
            (
                [("family", F::NAME), ("quantile", quantile)],
                time.as_secs_f64(),
            )
        })
        .to_vec()
}

pub(super) fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
