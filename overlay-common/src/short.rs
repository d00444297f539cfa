//! `OVL_SHORT` and `OVL_SHORT6`: how packets to and from a node go past the tunnel device and the host's
//! IP layer below it. The kernel's own tunnel packets earn it, one for each node and direction.

use bytemuck::{Pod, Zeroable};

use crate::addr::MacAddr;

/// How long a permit counts. What the host does with its tunnel packets is seen again after it.
pub const SHORT_PERMIT_NS: u64 = 1_000_000_000;

/// Value of `OVL_SHORT` and `OVL_SHORT6`, same index as the node. Written by `overlay_confirm` and
/// `overlay_arrive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Short {
    /// Packets to the node may go the short way before this time.
    pub egress_until: u64,
    /// Generation in which the kernel's tunnel packet was let pass.
    pub generation: u32,
    /// Interface by which it left; what follows is that packet's, too.
    pub underlay_ifindex: u32,
    pub next_hop_mac: MacAddr,
    /// Largest inner packet the way takes, bytes.
    pub mtu: u16,
    pub underlay_mac: MacAddr,
    #[doc(hidden)]
    pub _pad: [u8; 2],
    /// The node's address, by its tag.
    pub vtep: [u8; 4],
    /// What [`Nexthop`](crate::node::Nexthop) said of the node.
    pub path_changes: u32,
    /// `skb->mark` and `skb->priority` of the inner packet at the tunnel device.
    pub inner_mark: u32,
    pub inner_priority: u32,
    /// The same of the tunnel packet at the underlay.
    pub mark: u32,
    pub priority: u32,
    /// [`checksum`] of the words before it: an entry that is being written counts as none.
    pub check: u64,
    /// Packets from the node may go the short way before this time.
    pub ingress_until: u64,
    /// `vtep` and, in the high half, the generation, combined with `ingress_until` by exclusive or.
    pub ingress_owner: u64,
}

/// A [`Short`] as the words it consists of.
pub type ShortImage = [u64; size_of::<Short>() / 8];

/// Words that [`Short::check`] is over.
pub const CHECKED: usize = word::CHECK;

/// Of the words before [`Short::check`]; two sets of words that differ in some have another one but for a
/// chance of one in 2⁶⁴.
#[inline(always)]
pub const fn checksum(words: &[u64; CHECKED]) -> u64 {
    let mut sum = 1;
    let mut at = 0;
    while at < CHECKED {
        sum = step(sum, words[at]);
        at += 1;
    }
    sum
}

/// One step of [`checksum`].
#[inline(always)]
pub const fn step(sum: u64, word: u64) -> u64 {
    let mixed = (sum ^ word).wrapping_mul(crate::spread::SPREAD);
    mixed ^ mixed >> 32
}

/// Places of the words in a [`ShortImage`].
pub mod word {
    use core::mem::offset_of;

    use super::Short;

    pub const EGRESS_UNTIL: usize = offset_of!(Short, egress_until) / 8;
    /// `generation` in the low half, `underlay_ifindex` in the high half.
    pub const GENERATION_IFINDEX: usize = offset_of!(Short, generation) / 8;
    /// `next_hop_mac`, then `mtu` in the top 16 bits.
    pub const NEXT_HOP_MTU: usize = offset_of!(Short, next_hop_mac) / 8;
    pub const UNDERLAY_MAC: usize = offset_of!(Short, underlay_mac) / 8;
    /// `vtep` in the low half, `path_changes` in the high half.
    pub const VTEP_CHANGES: usize = offset_of!(Short, vtep) / 8;
    /// `inner_mark` in the low half, `inner_priority` in the high half.
    pub const INNER: usize = offset_of!(Short, inner_mark) / 8;
    /// `mark` in the low half, `priority` in the high half.
    pub const OUTER: usize = offset_of!(Short, mark) / 8;
    pub const CHECK: usize = offset_of!(Short, check) / 8;
    pub const INGRESS_UNTIL: usize = offset_of!(Short, ingress_until) / 8;
    pub const INGRESS_OWNER: usize = offset_of!(Short, ingress_owner) / 8;
}

/// Why nothing goes the short way in a direction: what others of tc have put where it passes by. Bits of
/// [`Config::closed`](crate::config::Config::closed).
pub mod closed {
    /// A queueing discipline at the tunnel device.
    pub const QDISC: u32 = 1;
    /// A filter there, for what leaves.
    pub const FILTER_OUT: u32 = 1 << 1;
    /// A tcx program there, behind ours.
    pub const PROGRAM_OUT: u32 = 1 << 2;
    /// A filter at the underlay, for what arrives.
    pub const FILTER_IN: u32 = 1 << 3;
    /// A tcx program there, behind ours.
    pub const PROGRAM_IN: u32 = 1 << 4;
    /// What there is is not known.
    pub const UNKNOWN: u32 = 1 << 5;

    pub const OUTWARDS: u32 = QDISC | FILTER_OUT | PROGRAM_OUT | UNKNOWN;
    pub const INWARDS: u32 = FILTER_IN | PROGRAM_IN | UNKNOWN;
}

/// When flows were last seen whose packets GRO merges.
pub const BULK_SLOTS: usize = 4_096;
/// A flow of which GRO has merged packets stays away from the short way for this many periods of
/// 2^[`BULK_PERIOD_BITS`] ns, 1 s.
pub const BULK_PERIODS: u32 = 8;
pub const BULK_PERIOD_BITS: u32 = 27;

/// The slot of `OVL_BULK` of the flows of node `index` whose tunnel packets have this UDP source port.
#[inline(always)]
pub const fn bulk_slot(index: u32, source_port: u16) -> u32 {
    (source_port as u32 ^ index.wrapping_mul(0x9e37)) % BULK_SLOTS as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_torn_entry_has_another_checksum(
            words: [u64; CHECKED], others: [u64; CHECKED], from_first in 1..CHECKED,
        ) {
            prop_assume!(words[..from_first] != others[..from_first]);
            prop_assume!(words[from_first..] != others[from_first..]);
            let mut torn = words;
            torn[from_first..].copy_from_slice(&others[from_first..]);
            prop_assert_ne!(checksum(&torn), checksum(&words));
            prop_assert_ne!(checksum(&torn), checksum(&others));
        }

        #[test]
        fn every_flow_has_a_slot(index: u32, port: u16) {
            prop_assert!((bulk_slot(index, port) as usize) < BULK_SLOTS);
        }
    }
}
