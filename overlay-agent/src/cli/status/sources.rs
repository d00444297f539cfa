//! What the command looks at.

use crate::view::{EbpfTier, FlowTables};

/// What is said about the eBPF tier is made of this.
pub struct Sources {
    pub tier: EbpfTier,
    pub flows: FlowTables,
    /// The underlay interface, if it has no Ethernet headers.
    pub bare_underlay: Option<String>,
}
