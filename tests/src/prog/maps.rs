//! The maps of a bench: what is written to them before a run, and read after it.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key};
use bytemuck::{Zeroable as _, cast_slice};
use nix::{
    mount::{MsFlags, mount},
    sched::sched_getcpu,
};
use overlay_common::{
    config::Config,
    flow::{Flow, FlowKey, FlowWords},
    maps,
    node::{Gateway, Leaving, Nexthop, Node, Peer, PodKey, PodPort, move_slot},
    outcome::{Counter, Hook, OUTCOMES_PER_HOOK, Outcome, slot},
    pair,
    route::RouteEntry,
    short::Short,
    slow::Slow,
    stamp::seen_slot,
};

use super::{
    bench::Bench,
    fixture::{Cluster, Fixture, NODES, POD_MAC},
    run::Seen,
};
use crate::sys::bpf;

/// More than any hash map holds in a test.
const MAX_ENTRIES: usize = 2048;

/// Counters of the hooks there are.
pub(super) const SLOTS: usize = Hook::ALL.len() * OUTCOMES_PER_HOOK as usize;

impl<F: Cluster> Bench<F> {
    /// Makes the maps hold `fixture`, whatever a program or an earlier fixture left in them.
    pub fn set(&mut self, fixture: &Fixture<F>) -> Result<()> {
        if fixture.config.notes_translations() {
            self.set_translated(fixture)?;
        }
        let is_written = self.written.as_ref() == Some(fixture);
        if is_written && !self.touched {
            return Ok(());
        }
        if !is_written {
            self.as_written.clear();
            self.write_constant(fixture)?;
        }
        self.hash::<FlowKey<F>, Flow>(F::MAPS.flows, &fixture.flows)?;
        self.hash::<PodKey, PodPort>(maps::PODS, &fixture.pods)?;
        let mut moves: Array<_, u32> = self.map(maps::MOVES)?.try_into()?;
        let pod = PodKey {
            mac: POD_MAC,
            ..PodKey::default()
        };
        moves.set(move_slot(bytemuck::cast(pod)), 0, 0)?;
        let mut nexthops: Array<_, Nexthop> = self.map(F::MAPS.nexthops)?.try_into()?;
        for index in 0..NODES {
            let wanted = fixture.nexthops.get(&index).copied().unwrap_or_default();
            if nexthops.get(&index, 0)? != wanted {
                nexthops.set(index, wanted, 0)?;
            }
        }
        let mut shorts: Array<_, Short> = self.map(F::MAPS.short)?.try_into()?;
        for index in 0..NODES {
            let wanted = fixture.short.get(&index).copied().unwrap_or_default();
            if shorts.get(&index, 0)? != wanted {
                shorts.set(index, wanted, 0)?;
            }
        }
        let mut config: Array<_, Config<F>> = self.map(F::MAPS.config)?.try_into()?;
        config.set(0, fixture.config, 0)?;
        if !is_written {
            self.written = Some(fixture.clone());
        }
        self.touched = false;
        Ok(())
    }

    /// Says of the pairs that have flows which of them a translation connects.
    fn set_translated(&mut self, fixture: &Fixture<F>) -> Result<()> {
        let mut translated: Array<_, u32> = self.map(maps::TRANSLATED)?.try_into()?;
        for &flow in fixture.flows.keys() {
            translated.set(pair::slot(FlowWords::from(flow)), 0, 0)?;
        }
        for &pods in &fixture.translated {
            translated.set(pair::slot(FlowWords::from(pods)), pair::MARKED, 0)?;
        }
        Ok(())
    }

    /// Writes the maps that programs only read.
    fn write_constant(&mut self, fixture: &Fixture<F>) -> Result<()> {
        let old = self.written.take();
        self.hash::<F::Be, Peer>(F::MAPS.peers, &fixture.peers)?;
        self.hash::<u32, Gateway>(maps::GATEWAYS, &fixture.gateways)?;
        let mut slow: Array<_, Slow> = self.map(maps::SLOW)?.try_into()?;
        slow.set(0, fixture.slow, 0)?;
        let mut routes: LpmTrie<_, F::Be, RouteEntry> = self.map(F::MAPS.routes)?.try_into()?;
        let key = |&(subnet, prefix_len): &(F::Octets, u8)| {
            Key::new(u32::from(prefix_len), F::be(subnet))
        };
        for subnet in old.iter().flat_map(|old| old.routes.keys()) {
            routes.remove(&key(subnet))?;
        }
        for (subnet, route) in &fixture.routes {
            routes.insert(&key(subnet), route, 0)?;
        }
        let mut nodes: Array<_, Node<F>> = self.map(F::MAPS.nodes)?.try_into()?;
        for &index in old.iter().flat_map(|old| old.nodes.keys()) {
            nodes.set(index, Node::zeroed(), 0)?;
        }
        for (&index, node) in &fixture.nodes {
            nodes.set(index, node, 0)?;
        }
        Ok(())
    }

    /// What is noted on this CPU of the packet that passed to the vxlan device last. Programs run on the
    /// thread's own CPU, which is the same all the time on a [node](super::node::on_node).
    pub fn leaving(&mut self) -> Result<Leaving> {
        let map: PerCpuArray<_, Leaving> = self.map(maps::LEAVING)?.try_into()?;
        let values = map.get(&0, 0)?;
        let value = values.get(sched_getcpu()?);
        value.copied().context("there is one for each CPU")
    }

    /// Whether a translation is noted to connect the pods of a flow.
    pub fn is_translated(&mut self, flow: FlowKey<F>) -> Result<bool> {
        let translated: Array<_, u32> = self.map(maps::TRANSLATED)?.try_into()?;
        Ok(translated.get(&pair::slot(FlowWords::from(flow)), 0)? == pair::MARKED)
    }

    /// Has packets with this stamp seen before or not, in both directions.
    pub(super) fn set_seen(&mut self, stamp: u32, seen: Seen) -> Result<()> {
        let noted = match seen {
            Seen::Before => stamp,
            Seen::Never => 0,
            Seen::AsItIs => return Ok(()),
        };
        let mut map: Array<_, u32> = self.map(maps::SEEN)?.try_into()?;
        for is_inbound in [false, true] {
            map.set(seen_slot(stamp, is_inbound), noted, 0)?;
        }
        Ok(())
    }

    /// The flow table's entry, of which there must be one.
    pub fn entry(&mut self, key: FlowKey<F>) -> Result<Flow> {
        self.flow(key)?
            .with_context(|| format!("no entry for {key:?}"))
    }

    /// The flow table's entry, if there is one.
    pub fn flow(&mut self, key: FlowKey<F>) -> Result<Option<Flow>> {
        let flows: HashMap<_, FlowKey<F>, Flow> = self.map(F::MAPS.flows)?.try_into()?;
        match flows.get(&key, 0) {
            Ok(flow) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn nexthop(&mut self, index: u32) -> Result<Nexthop> {
        let nexthops: Array<_, Nexthop> = self.map(F::MAPS.nexthops)?.try_into()?;
        Ok(nexthops.get(&index, 0)?)
    }

    /// What the programs counted since the last run, or the last call of this.
    pub fn counted(&mut self) -> Result<Vec<(Hook, Outcome, Counter)>> {
        let counters = self.counters()?;
        let counted = difference(&self.counters, &counters)?;
        self.counters = counters;
        Ok(counted)
    }

    /// All counters, each summed over the CPUs.
    fn counters(&self) -> Result<Vec<Counter>> {
        let map = self.ebpf.map(maps::STATS).context("OVL_STATS is missing")?;
        let Map::PerCpuArray(map) = map else {
            bail!("OVL_STATS is no per-CPU array: {map:?}");
        };
        let (_, per_cpu) = bpf::entries::<u32, Counter>(map.fd().as_fd(), SLOTS, self.cpus)?;
        Ok(per_cpu
            .chunks(self.cpus)
            .map(|cpus| Counter {
                packets: cpus.iter().map(|counter| counter.packets).sum(),
                bytes: cpus.iter().map(|counter| counter.bytes).sum(),
            })
            .collect())
    }

    pub(super) fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))
    }

    /// Makes a hash map hold exactly `wanted`.
    fn hash<K, V>(&mut self, name: &'static str, wanted: &BTreeMap<K, V>) -> Result<()>
    where
        K: aya::Pod + bytemuck::Pod + Ord,
        V: aya::Pod + bytemuck::Pod + PartialEq,
    {
        let map = self.map(name)?;
        let (Map::HashMap(data) | Map::LruHashMap(data)) = &*map else {
            bail!("{name} is no hash map: {map:?}");
        };
        let (keys, values) = bpf::entries::<K, V>(data.fd().as_fd(), MAX_ENTRIES, 1)?;
        let found = [cast_slice::<K, u8>(&keys), cast_slice(&values)].concat();
        if self.as_written.get(name) == Some(&found) {
            return Ok(());
        }
        let present: BTreeMap<K, V> = keys.into_iter().zip(values).collect();
        if present == *wanted {
            self.as_written.insert(name, found);
            return Ok(());
        }
        let mut map: HashMap<_, K, V> = self.map(name)?.try_into()?;
        for key in present.keys().filter(|key| !wanted.contains_key(key)) {
            map.remove(key)?;
        }
        for (key, value) in wanted {
            if present.get(key) != Some(value) {
                map.insert(key, value, 0)?;
            }
        }
        Ok(())
    }
}

/// Mounts a BPF file system that goes with the mount namespace, and pins a plain hash table for
/// one flow in it.
pub(super) fn pin_refusing_flow_table<F: Cluster>() -> Result<PathBuf> {
    let mount_point = Path::new("/sys/fs/bpf");
    let nothing = None::<&str>;
    mount(
        Some("bpf"),
        mount_point,
        Some("bpf"),
        MsFlags::empty(),
        nothing,
    )?;
    let path = mount_point.join(F::MAPS.flows);
    HashMap::<MapData, FlowKey<F>, Flow>::create(1, 0)?.pin(&path)?;
    Ok(path)
}

/// The counters that changed.
fn difference(before: &[Counter], after: &[Counter]) -> Result<Vec<(Hook, Outcome, Counter)>> {
    before
        .iter()
        .zip(after)
        .enumerate()
        .filter(|(_, (before, after))| before != after)
        .map(|(index, (before, after))| {
            let (hook, outcome) = named(index)
                .with_context(|| format!("a counter without a name counted: slot {index}"))?;
            let counter = Counter {
                packets: after.packets - before.packets,
                bytes: after.bytes - before.bytes,
            };
            Ok((hook, outcome, counter))
        })
        .collect()
}

/// What the counter at `index` counts.
fn named(index: usize) -> Option<(Hook, Outcome)> {
    let pairs = Hook::ALL
        .iter()
        .flat_map(|&hook| Outcome::ALL.iter().map(move |&outcome| (hook, outcome)));
    pairs
        .into_iter()
        .find(|&(hook, outcome)| slot(hook, outcome) as usize == index)
}
