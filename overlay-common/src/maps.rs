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

/// Every map, in the order a person reads them.
pub const ALL: [&str; 9] = [
    ROUTES4, NODES, NEXTHOPS, PEERS4, FLOWS4, GATEWAYS, PODS, CONFIG, STATS,
];

/// Remote nodes; index 0 is never used.
pub const MAX_NODES: usize = 16_384;
/// Routes: one per remote node and room for nodes with several leases during a move.
pub const MAX_ROUTES: usize = 2 * MAX_NODES;
pub const MAX_FLOWS: usize = 262_144;
/// Bridges and point-to-point veths.
pub const MAX_GATEWAYS: usize = 4_096;
/// MAC addresses seen in frames from pods.
pub const MAX_PODS: usize = 16_384;

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
