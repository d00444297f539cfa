//! What a node has, agent or no agent: the eBPF tier as it is pinned, the kernel tier as the kernel has
//! it, and the host's interfaces. Whoever presents it, to people or to programs, looks here.

mod ebpf;
mod flows;
mod host;
mod kernel;
mod leases;
mod metrics;

pub use self::{
    ebpf::{EbpfTier, Overlay},
    flows::{FlowState, FlowTable, FlowTables, left},
    host::Host,
    kernel::{Device, KernelTier, PeerRoute, Tier},
    leases::LeaseMetrics,
    metrics::NodeMetrics,
};
use crate::datapath::{DatapathError, PinDir};

/// Both tiers of a node.
pub struct Snapshot {
    /// Or why it cannot be read: there may be none.
    pub ebpf: Result<EbpfTier, DatapathError>,
    pub kernel: KernelTier,
}

impl Snapshot {
    /// Looks at what is pinned and at the network namespace of the calling thread. Needs a tokio
    /// runtime.
    pub async fn read(pins: &PinDir) -> Self {
        // In this order a peer that comes meanwhile is not taken for one that the maps lack.
        let kernel = KernelTier::read().await;
        let ebpf = EbpfTier::read(pins);
        Self { ebpf, kernel }
    }
}
