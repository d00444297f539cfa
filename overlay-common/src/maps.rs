//! Names and capacities of the maps: the single source for the programs, the agent and the tests.

pub const ROUTES4: &str = "OVL_ROUTES4";
pub const NODES: &str = "OVL_NODES";
pub const NEXTHOPS: &str = "OVL_NEXTHOPS";
pub const FLOWS4: &str = "OVL_FLOWS4";
pub const CONFIG: &str = "OVL_CONFIG";
pub const STATS: &str = "OVL_STATS";
pub const PEERS4: &str = "OVL_PEERS4";
pub const GATEWAYS: &str = "OVL_GATEWAYS";
pub const PODS: &str = "OVL_PODS";
pub const LEARNED: &str = "OVL_LEARNED";
pub const MOVES: &str = "OVL_MOVES";
pub const LEAVING: &str = "OVL_LEAVING";
pub const ENTERED: &str = "OVL_ENTERED";
pub const ENTERED6: &str = "OVL_ENTERED6";
pub const DRAFT: &str = "OVL_DRAFT";
pub const SEEN: &str = "OVL_SEEN";
pub const SLOW: &str = "OVL_SLOW";
pub const ROUTES6: &str = "OVL_ROUTES6";
pub const NODES6: &str = "OVL_NODES6";
pub const NEXTHOPS6: &str = "OVL_NEXTHOPS6";
pub const PEERS6: &str = "OVL_PEERS6";
pub const FLOWS6: &str = "OVL_FLOWS6";
pub const CONFIG6: &str = "OVL_CONFIG6";

/// Every map, in the order a person reads them.
pub const ALL: [&str; 23] = [
    ROUTES4, NODES, NEXTHOPS, PEERS4, FLOWS4, CONFIG, ROUTES6, NODES6, NEXTHOPS6, PEERS6, FLOWS6,
    CONFIG6, GATEWAYS, PODS, LEARNED, MOVES, LEAVING, ENTERED, ENTERED6, DRAFT, SEEN, SLOW, STATS,
];

/// The maps of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyMaps {
    pub routes: &'static str,
    pub nodes: &'static str,
    pub nexthops: &'static str,
    pub peers: &'static str,
    pub flows: &'static str,
    pub config: &'static str,
}

pub const IPV4: FamilyMaps = FamilyMaps {
    routes: ROUTES4,
    nodes: NODES,
    nexthops: NEXTHOPS,
    peers: PEERS4,
    flows: FLOWS4,
    config: CONFIG,
};

pub const IPV6: FamilyMaps = FamilyMaps {
    routes: ROUTES6,
    nodes: NODES6,
    nexthops: NEXTHOPS6,
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
