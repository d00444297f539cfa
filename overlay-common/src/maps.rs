//! The maps: names, kinds, types and capacities. The single source for the programs, the agent, the
//! documents and the tests; the declarations in the programs are compared with it.

use crate::{
    addr::{Ipv4Be, Ipv6Be},
    config::Config,
    family::V6,
    flow::{Entered, Flow, FlowKey},
    node::{Gateway, Leaving, MOVE_SLOTS, Nexthop, Node, Peer, PodKey, PodPort},
    outcome::{COUNTERS, Counter},
    route::RouteEntry,
    short::{BULK_SLOTS, Short},
    slow::Slow,
};

/// What a map is to the kernel, by the numbers of `enum bpf_map_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    LpmTrie = 11,
}

/// A type as the table names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeSpec {
    pub name: &'static str,
    pub size: usize,
}

/// What a map must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    pub name: &'static str,
    pub kind: Kind,
    /// Of a trie what follows the prefix length.
    pub key: TypeSpec,
    pub value: TypeSpec,
    pub max_entries: usize,
}

impl MapSpec {
    /// As the kernel counts.
    pub const fn key_size(&self) -> usize {
        match self.kind {
            Kind::LpmTrie => size_of::<u32>() + self.key.size,
            Kind::Hash | Kind::Array | Kind::PerCpuArray | Kind::LruHash => self.key.size,
        }
    }
}

/// Makes the constants of the names, and the lists.
macro_rules! maps {
    ($($constant:ident = $name:literal, $kind:ident, $key:ty, $value:ty, $max_entries:expr;)+) => {
        $(pub const $constant: &str = $name;)+

        const COUNT: usize = [$($name),+].len();

        /// Every map, in the order a person reads them.
        pub const TABLE: [MapSpec; COUNT] = [$(MapSpec {
            name: $name,
            kind: Kind::$kind,
            key: TypeSpec { name: stringify!($key), size: size_of::<$key>() },
            value: TypeSpec { name: stringify!($value), size: size_of::<$value>() },
            max_entries: $max_entries,
        }),+];

        /// The names, in the same order.
        pub const ALL: [&str; COUNT] = [$($name),+];
    };
}

maps! {
    ROUTES4 = "OVL_ROUTES4", LpmTrie, Ipv4Be, RouteEntry, MAX_ROUTES;
    NODES = "OVL_NODES", Array, u32, Node, MAX_NODES;
    NEXTHOPS = "OVL_NEXTHOPS", Array, u32, Nexthop, MAX_NODES;
    PEERS4 = "OVL_PEERS4", Hash, Ipv4Be, Peer, MAX_NODES;
    FLOWS4 = "OVL_FLOWS4", LruHash, FlowKey, Flow, MAX_FLOWS;
    CONFIG = "OVL_CONFIG", Array, u32, Config, 1;
    ROUTES6 = "OVL_ROUTES6", LpmTrie, Ipv6Be, RouteEntry, MAX_ROUTES;
    NODES6 = "OVL_NODES6", Array, u32, Node<V6>, MAX_NODES;
    NEXTHOPS6 = "OVL_NEXTHOPS6", Array, u32, Nexthop, MAX_NODES;
    PEERS6 = "OVL_PEERS6", Hash, Ipv6Be, Peer, MAX_NODES;
    FLOWS6 = "OVL_FLOWS6", LruHash, FlowKey<V6>, Flow, MAX_FLOWS;
    CONFIG6 = "OVL_CONFIG6", Array, u32, Config<V6>, 1;
    SHORT = "OVL_SHORT", Array, u32, Short, MAX_NODES;
    SHORT6 = "OVL_SHORT6", Array, u32, Short, MAX_NODES;
    BULK = "OVL_BULK", Array, u32, u32, BULK_SLOTS;
    GATEWAYS = "OVL_GATEWAYS", Hash, u32, Gateway, MAX_GATEWAYS;
    PODS = "OVL_PODS", LruHash, PodKey, PodPort, MAX_PODS;
    LEARNED = "OVL_LEARNED", LruHash, u32, u64, MAX_PODS;
    MOVES = "OVL_MOVES", Array, u32, u32, MOVE_SLOTS;
    LEAVING = "OVL_LEAVING", PerCpuArray, u32, Leaving, 1;
    ENTERED = "OVL_ENTERED", PerCpuArray, u32, Entered, ENTERED_SLOTS;
    ENTERED6 = "OVL_ENTERED6", PerCpuArray, u32, Entered<V6>, ENTERED_SLOTS;
    DRAFT = "OVL_DRAFT", PerCpuArray, u32, [u64; 16], 1;
    SEEN = "OVL_SEEN", Array, u32, u32, SEEN_SLOTS;
    TRANSLATED = "OVL_TRANSLATED", Array, u32, u32, PAIR_SLOTS;
    SLOW = "OVL_SLOW", Array, u32, Slow, 1;
    STATS = "OVL_STATS", PerCpuArray, u32, Counter, COUNTERS;
}

/// The maps of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyMaps {
    pub routes: &'static str,
    pub nodes: &'static str,
    pub nexthops: &'static str,
    pub short: &'static str,
    pub peers: &'static str,
    pub flows: &'static str,
    pub config: &'static str,
}

pub const IPV4: FamilyMaps = FamilyMaps {
    routes: ROUTES4,
    nodes: NODES,
    nexthops: NEXTHOPS,
    short: SHORT,
    peers: PEERS4,
    flows: FLOWS4,
    config: CONFIG,
};

pub const IPV6: FamilyMaps = FamilyMaps {
    routes: ROUTES6,
    nodes: NODES6,
    nexthops: NEXTHOPS6,
    short: SHORT6,
    peers: PEERS6,
    flows: FLOWS6,
    config: CONFIG6,
};

/// Remote nodes; index 0 is never used.
pub const MAX_NODES: usize = 16_384;
/// Routes: one per remote node and room for nodes with several leases during a move.
pub const MAX_ROUTES: usize = 2 * MAX_NODES;
pub const MAX_FLOWS: usize = 262_144;
/// Bridges and point-to-point veths.
pub const MAX_GATEWAYS: usize = 4_096;
/// MAC addresses seen in frames from pods.
pub const MAX_PODS: usize = 16_384;
/// New MAC addresses that count per interface in a period of 2^[`LEARN_PERIOD_BITS`] ns, 17 s.
pub const LEARN_BUDGET: u64 = 64;
pub const LEARN_PERIOD_BITS: u32 = 34;

/// Packets on their way through the host that each CPU remembers the tuples of.
pub const ENTERED_SLOTS: usize = 64;
/// Stamps of packets that may have been the only ones of their flows.
pub const SEEN_SLOTS: usize = 65_536;

/// Pairs of pods that a translation may connect. Two that share a slot are taken for such if one is.
pub const PAIR_SLOTS: usize = 131_072;

/// The kernel cuts BPF object names to 15 bytes.
const NAME_MAX: usize = 15;

const _: () = {
    let mut index = 0;
    while index < ALL.len() {
        assert!(
            ALL[index].len() <= NAME_MAX,
            "a map name is longer than the kernel keeps"
        );
        index += 1;
    }
};
