//! How the underlay reaches the nodes, as `overlay_confirm` last resolved it.

use overlay_common::node::{NexthopImage, word};

use crate::{mac::Mac, maps::Tables, words::Words};

const NEXTHOP_WORDS: usize = size_of::<NexthopImage>() / 8;

/// How to reach a node, as last resolved.
#[derive(Clone, Copy)]
pub struct NexthopEntry(Words<{ NEXTHOP_WORDS }>);

/// A copy of a next hop.
#[derive(Clone, Copy)]
pub struct NexthopCopy {
    /// The VTEP address it holds for, by its tag.
    pub vtep: u32,
    pub ifindex: u32,
    pub dst_mac: Mac,
    pub src_mac: Mac,
    pub mtu: u32,
    pub mode: u8,
}

impl NexthopEntry {
    #[inline(always)]
    pub fn find<F: Tables>(node: u32) -> Option<Self> {
        F::nexthop(node).map(|value| Self(Words::of(value)))
    }

    /// A copy, whose `vtep` says for which address of the node it holds.
    #[inline(always)]
    pub fn get(self) -> NexthopCopy {
        let dst = self.0.get::<{ word::DST_MTU }>();
        let src = self.0.get::<{ word::SRC_MODE }>();
        let way = self.0.get::<{ word::VTEP_IFINDEX }>();
        NexthopCopy {
            vtep: way as u32,
            ifindex: (way >> 32) as u32,
            dst_mac: Mac::from_low_bits(dst),
            src_mac: Mac::from_low_bits(src),
            mtu: (dst >> 48) as u32,
            mode: (src >> 48) as u8,
        }
    }

    /// Replaces the entry, if it differs. Readers meanwhile see an address that matches no node,
    /// and leave their packets to the kernel.
    #[inline(always)]
    pub fn set(self, new: &NexthopCopy) {
        let way = u64::from(new.vtep) | u64::from(new.ifindex) << 32;
        let dst = new.dst_mac.bits() | u64::from(new.mtu as u16) << 48;
        let src = new.src_mac.bits() | u64::from(new.mode) << 48;
        if self.0.get::<{ word::VTEP_IFINDEX }>() == way
            && self.0.get::<{ word::DST_MTU }>() == dst
            && self.0.get::<{ word::SRC_MODE }>() == src
        {
            return;
        }
        self.invalidate();
        self.0.set::<{ word::DST_MTU }>(dst);
        self.0.set::<{ word::SRC_MODE }>(src);
        self.0.set::<{ word::VTEP_IFINDEX }>(way);
    }

    #[inline(always)]
    pub fn invalidate(self) {
        self.0.set::<{ word::VTEP_IFINDEX }>(0);
    }
}
