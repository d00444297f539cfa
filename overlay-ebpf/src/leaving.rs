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

impl Leaving {
    #[inline(always)]
    pub fn on_this_cpu() -> Option<Self> {
        maps::leaving().map(Self)
    }

    #[inline(always)]
    pub fn note(&self, left: &Left) {
        let at = self.0.cast::<u64>();
        // SAFETY: the entry is this CPU's own, three words long and aligned as such; the MAC address
        // is its second word.
        unsafe {
            at.write(left.flow);
            at.add(1).write(left.gateway.bits());
            at.add(2)
                .write(u64::from(left.generation) | u64::from(left.stamp) << 32);
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
