//! How the kernel last reached the nodes, as people see it, and how often that changed for the worse.

use overlay_common::node::{NexthopImage, word};

use crate::{flows::Way, maps::Tables, words::Words};

const NEXTHOP_WORDS: usize = size_of::<NexthopImage>() / 8;

/// The entry of a node.
#[derive(Clone, Copy)]
pub struct NexthopEntry(Words<{ NEXTHOP_WORDS }>);

impl NexthopEntry {
    #[inline(always)]
    pub fn find<F: Tables>(node: u32) -> Option<Self> {
        F::nexthop(node).map(|value| Self(Words::of(value)))
    }

    /// To be read before the node and the MTU are looked at, so that what changes meanwhile counts.
    #[inline(always)]
    pub fn path_changes(self) -> u32 {
        self.0.get::<{ word::PATH_CHANGES }>() as u32
    }

    /// Makes flows to the node earn their way again. Of two changes at the same time one may be lost: the
    /// number is a new one all the same.
    #[inline(always)]
    pub fn note_change(self) {
        let next = self.path_changes().wrapping_add(1);
        self.0.set::<{ word::PATH_CHANGES }>(u64::from(next));
    }

    /// Shows people the way, if it is another than the last one.
    #[inline(always)]
    pub fn show(self, way: &Way) {
        let words = [
            u64::from(way.vtep) | u64::from(way.ifindex) << 32,
            way.next_hop.bits() | u64::from(way.mtu) << 48,
            way.source.bits() | u64::from(way.mode) << 48,
        ];
        if self.0.get::<{ word::VTEP_IFINDEX }>() != words[0]
            || self.0.get::<{ word::DST_MTU }>() != words[1]
            || self.0.get::<{ word::SRC_MODE }>() != words[2]
        {
            self.0.set::<{ word::VTEP_IFINDEX }>(words[0]);
            self.0.set::<{ word::DST_MTU }>(words[1]);
            self.0.set::<{ word::SRC_MODE }>(words[2]);
        }
    }
}
