//! What the vxlan device's program tells the underlay's about a packet that passes both.

use overlay_common::node;

use crate::{mac::Mac, maps};

/// This CPU's entry.
pub struct Leaving(*mut node::Leaving);

/// What was noted of a packet.
pub struct Left {
    /// The id of its flow; 0 if nothing was noted.
    pub flow: u64,
    pub gateway: Mac,
    pub generation: u32,
    /// The stamp of a translated packet, else 0.
    pub stamp: u32,
}

/// What was noted of a packet that may earn its node the short way.
pub struct Opening {
    /// 0 if nothing was noted.
    pub hash: u32,
    /// Index of the node.
    pub node: u32,
    pub generation: u32,
    /// `skb->mark` and `skb->priority`.
    pub mark: u32,
    pub priority: u32,
}

impl Leaving {
    #[inline(always)]
    pub fn on_this_cpu() -> Option<Self> {
        maps::leaving().map(Self)
    }

    #[inline(always)]
    pub fn note(&self, left: &Left) {
        let at = self.0.cast::<u64>();
        // SAFETY: the entry is this CPU's own, six words long and aligned as such; the MAC address
        // is its second word.
        unsafe {
            at.write(left.flow);
            at.add(1).write(left.gateway.bits());
            at.add(2)
                .write(u64::from(left.generation) | u64::from(left.stamp) << 32);
        }
    }

    #[inline(always)]
    pub fn note_opening(&self, opening: &Opening) {
        let at = self.0.cast::<u64>();
        // SAFETY: as in `note`.
        unsafe {
            at.add(5).write(opening.generation.into());
            at.add(3)
                .write(u64::from(opening.hash) | u64::from(opening.node) << 32);
            at.add(4)
                .write(u64::from(opening.mark) | u64::from(opening.priority) << 32);
        }
    }

    #[inline(always)]
    pub fn opening(&self) -> Opening {
        let at = self.0.cast::<u64>();
        // SAFETY: as in `note`.
        let (generation, node, mark) =
            unsafe { (at.add(5).read(), at.add(3).read(), at.add(4).read()) };
        Opening {
            hash: node as u32,
            node: (node >> 32) as u32,
            generation: generation as u32,
            mark: mark as u32,
            priority: (mark >> 32) as u32,
        }
    }

    #[inline(always)]
    pub fn last(&self) -> Left {
        let at = self.0.cast::<u64>();
        // SAFETY: as in `note`.
        let (flow, gateway, generation) =
            unsafe { (at.read(), at.add(1).read(), at.add(2).read()) };
        Left {
            flow,
            gateway: Mac::from_low_bits(gateway),
            generation: generation as u32,
            stamp: (generation >> 32) as u32,
        }
    }
}
