//! The pure part of the agent with more leases than a kernel here could take: the lease machine, the
//! table of leases, the peers made of them and the kernel tier's comparison. Etcd and the kernel are
//! values.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_agent::{
    backend::{self, Backend, Kind as _, Vxlan},
    core::{Core, Entry, Held, Input, Output, Renewal, Snapshot, WatchEvent},
    model::{
        ConfigText, Desired, LeaseAttrs, LeaseKey, LeaseTable, LeaseView, LocalNode, StoreState,
        Underlay, V4,
    },
    netlink::{Before, ObservedObjects, OnLink, Standing, diff},
};
use overlay_common::addr::MacAddr;
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use super::cluster::{CONFIG, Ghost};
use crate::sys::heap_in_use;

/// Single leases that change, one after the other.
const EVENTS: u32 = 1_000;
const DEVICE: u32 = 7;
const OWN_MAC: MacAddr = MacAddr::new([2, 0xff, 0, 0, 0, 1]);

/// What so many leases took.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub leases: u32,
    /// Reading keys and values.
    pub decoded: Duration,
    /// Until there is a plan for the kernel.
    pub planned: Duration,
    /// One lease that changes, from the event to the plan.
    pub event: Duration,
    /// A list of all leases that brings nothing new.
    pub listed: Duration,
    /// A comparison of all peers with the kernel that finds nothing to do.
    pub compared: Duration,
    /// Memory that all of it keeps.
    pub kept: usize,
    /// Memory of one list.
    pub list: usize,
}

impl Row {
    pub fn to_json(self) -> Value {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        json!({
            "leases": self.leases,
            "decoded_ms": ms(self.decoded),
            "planned_ms": ms(self.planned),
            "event_us": ms(self.event) * 1e3,
            "listed_ms": ms(self.listed),
            "compared_ms": ms(self.compared),
            "kept_bytes": self.kept,
            "list_bytes": self.list,
        })
    }
}

/// As a Markdown table.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::from(
        "### Without a kernel\n\n| leases | read (ms) | planned (ms) | one event (µs) | list (ms) | comparison (ms) | kept (MiB) | a list (MiB) |\n|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            row.leases,
            ms(row.decoded),
            ms(row.planned),
            ms(row.event) * 1e3,
            ms(row.listed),
            ms(row.compared),
            mib(row.kept),
            mib(row.list),
        );
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "one digit is wanted")]
fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub fn run(leases: u32) -> Result<Row> {
    let backend = Backend::from(Vxlan::DEFAULT);
    let at_first = heap_in_use();
    let began = Instant::now();
    let snapshot = snapshot(leases, 0)?;
    let decoded = began.elapsed();
    let list = heap_in_use().saturating_sub(at_first);

    let began = Instant::now();
    let now = Instant::now();
    let mut core = core(now, snapshot)?;
    let mut view = view(&core);
    let mut desired = node(&view, &backend)?;
    let mut standing = Standing::of(
        &desired,
        OnLink::<V4>::new(),
        Vec::new(),
        Some(DEVICE),
        backend::marks(&backend),
    );
    let plan = diff(&standing.wanted, &ObservedObjects::default());
    let planned = began.elapsed();
    let objects = 3 * usize::try_from(leases)? + 1;
    ensure!(
        plan.changes.len() == objects,
        "{} changes",
        plan.changes.len()
    );
    drop(plan);
    let kept = heap_in_use().saturating_sub(at_first);

    let began = Instant::now();
    for number in 0..EVENTS {
        let ghost = Ghost {
            index: number.wrapping_mul(7919) % leases,
            generation: u8::try_from(1 + number / leases)?,
        };
        let seen = view.peers.position();
        let put = WatchEvent::Put(entry(ghost, i64::from(leases + 2 + number))?);
        for output in core.handle(now, Input::Watch(put)) {
            if let Output::Peer { subnet, lease } = output {
                view.peers.insert(subnet, lease.context("a lease")?);
            }
        }
        let before = follow(&mut desired, &view, seen, &backend)?;
        let plan = standing.change(&desired, &before, Some(DEVICE));
        let changes = plan.context("a plan for one peer")?.changes.len();
        ensure!(changes == 3, "{changes} changes of one peer");
    }
    let event = began.elapsed() / EVENTS;

    let mut again = self::snapshot(leases, 0)?;
    again.entries = core
        .peers()
        .values()
        .map(|lease| Entry {
            key: lease.key,
            value: Ok(LeaseAttrs::clone(&lease.attrs)),
            lease_id: None,
            create_revision: 1,
            mod_revision: 1,
        })
        .collect();
    again.revision = i64::from(leases + 2 + EVENTS);
    let later = core.deadline();
    core.handle(later, Input::Tick);
    let began = Instant::now();
    let outputs = core.handle(later, Input::Listed(again));
    let listed = began.elapsed();
    let news = outputs
        .iter()
        .any(|output| matches!(output, Output::Peer { .. }));
    ensure!(!news, "a list that brings nothing new brings changes");

    let there = ObservedObjects::just(&standing.wanted);
    let began = Instant::now();
    let whole = Standing::of(
        &desired,
        OnLink::<V4>::new(),
        Vec::new(),
        Some(DEVICE),
        backend::marks(&backend),
    );
    let changes = diff(&whole.wanted, &there).changes;
    let compared = began.elapsed();
    ensure!(
        changes.is_empty(),
        "a comparison finds {} changes",
        changes.len()
    );
    Ok(Row {
        leases,
        decoded,
        planned,
        event,
        listed,
        compared,
        kept,
        list,
    })
}

fn snapshot(leases: u32, generation: u8) -> Result<Snapshot> {
    let ghosts = (0..leases).map(|index| Ghost { index, generation });
    let entries = ghosts.map(|ghost| entry(ghost, i64::from(ghost.index) + 1));
    Ok(Snapshot {
        revision: i64::from(leases) + 1,
        entries: entries.collect::<Result<_>>()?,
        config: Some(config()),
    })
}

fn entry(ghost: Ghost, revision: i64) -> Result<Entry> {
    let subnet = ghost.subnet();
    let key = LeaseKey::parse(&format!("{}-{}", subnet.ip(), subnet.prefix()));
    Ok(Entry {
        key: key.context("a lease key")?,
        value: LeaseAttrs::decode(ghost.value().as_bytes()),
        lease_id: None,
        create_revision: revision,
        mod_revision: revision,
    })
}

fn config() -> ConfigText {
    ConfigText {
        text: CONFIG.to_owned(),
        mod_revision: 1,
    }
}

fn core(now: Instant, snapshot: Snapshot) -> Result<Core<StdRng>> {
    let held = Held {
        key: LeaseKey::parse("10.1.0.0-24").context("a lease key")?,
        attrs: LeaseAttrs::vxlan(Ipv4Addr::new(172, 30, 0, 11), 1, OWN_MAC),
        create_revision: 1,
        mod_revision: 1,
        lease: None,
    };
    let renewal = Renewal {
        ttl: Renewal::TTL,
        margin: Duration::from_hours(1),
    };
    let rng = StdRng::seed_from_u64(1);
    let mut core = Core::new(now, held, snapshot, renewal, config(), rng);
    core.handle(now, Input::Start);
    let revision = core.revision();
    core.handle(now, Input::Watch(WatchEvent::Opened { revision }));
    Ok(core)
}

fn view(core: &Core<StdRng>) -> LeaseView {
    let peers = core.peers().iter();
    LeaseView {
        own: core.own(),
        peers: peers
            .map(|(subnet, lease)| (*subnet, lease.clone()))
            .collect::<LeaseTable>(),
        store: StoreState::default(),
        config: None,
        alarms: std::collections::BTreeSet::new(),
    }
}

fn node(view: &LeaseView, backend: &Backend) -> Result<Desired> {
    let (network, subnet) = ("10.0.0.0/8".parse()?, "10.1.0.0/24".parse()?);
    let address = Ipv4Addr::new(172, 30, 0, 11);
    Ok(Desired {
        local: LocalNode {
            network,
            subnet,
            underlay: Underlay {
                ifindex: 2,
                name: "eth0".to_owned(),
                mtu: 1500,
                hardware: true,
                ethernet: true,
                address,
                public_ip: address,
            },
            forwarding: Vxlan::DEFAULT.forwarding::<V4>(),
            device: backend.own_device(network, subnet),
            vtep_mac: OWN_MAC,
            lease_data: None,
        },
        peers: view.usable_peers(backend),
    })
}

/// Takes over what changed about the leases since `seen`. Returns what the peers were before.
fn follow(
    desired: &mut Desired,
    view: &LeaseView,
    seen: u64,
    backend: &Backend,
) -> Result<Before<V4>> {
    let keys = view.peers.changed_since(seen).context("the journal")?;
    let mut before = Before::<V4>::new();
    for subnet in keys.iter().filter_map(LeaseKey::subnet_of::<V4>) {
        let was = match view.usable_peer(subnet, backend) {
            Some(peer) => desired.peers.insert(subnet, peer),
            None => desired.peers.remove(&subnet),
        };
        before.insert(subnet, was);
    }
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_can_be_simulated() {
        let row = run(300).unwrap();
        assert!(row.kept > 0 && row.event > Duration::ZERO);
        assert_eq!(render(&[row]).lines().count(), 5);
    }
}
