//! What the maps of a family hold, as a whole.

use std::collections::BTreeMap;

use overlay_common::node::Node;

use crate::model::{Family, V4};

/// Content of a family's nodes (valid entries), routes and peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables<F: Family = V4> {
    pub nodes: BTreeMap<u32, Node<F>>,
    /// Subnet to node index.
    pub routes: BTreeMap<F::Network, u32>,
    /// VTEP address to node index.
    pub peers: BTreeMap<F::Be, u32>,
}

impl<F: Family> Default for Tables<F> {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            routes: BTreeMap::new(),
            peers: BTreeMap::new(),
        }
    }
}

/// How much the maps take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the node table, whose index 0 is not used.
    pub nodes: u32,
    pub routes: u32,
    pub peers: u32,
}

/// The subnet of a node entry; `None` for an impossible prefix length.
pub fn subnet_of<F: Family>(node: &Node<F>) -> Option<F::Network> {
    F::with_prefix(node.subnet.into(), node.prefix_len)
}
