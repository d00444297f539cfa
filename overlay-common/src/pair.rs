//! `OVL_TRANSLATED`: which pairs of pods a translation connects, or may connect. In trusted mode the others
//! have one permit for all of their flows.

use crate::{
    family::{Pair as _, WireFamily},
    flow::FlowWords,
    maps::PAIR_SLOTS,
    spread::{SPREAD, SPREAD_2},
};

/// The value of a pair's slot.
pub const MARKED: u32 = 1;

/// The slot of the pair that a flow is of.
#[inline(always)]
pub fn slot<F: WireFamily>(flow: FlowWords<F>) -> u32 {
    const BITS: u32 = PAIR_SLOTS.trailing_zeros();
    let mixed = flow.addresses.id().wrapping_mul(SPREAD);
    ((mixed ^ (mixed >> 32)).wrapping_mul(SPREAD_2) >> (u64::BITS - BITS)) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{addr::Ipv4Be, family::V4};

    proptest! {
        #[test]
        fn all_flows_of_a_pair_have_one_slot(
            local: [u8; 4], remote: [u8; 4], ports: [u16; 2], protocol: u8,
        ) {
            let [local, remote] = [local, remote].map(|octets| Ipv4Be { octets });
            let flow = FlowWords::<V4>::new(local, remote, ports[0], ports[1], protocol);
            prop_assert!((slot(flow) as usize) < PAIR_SLOTS);
            prop_assert_eq!(slot(flow), slot(flow.pair()));
        }
    }

    #[test]
    fn the_pods_of_two_subnets_hardly_share_slots() {
        let address = |node, pod| Ipv4Be {
            octets: [10, 5, node, pod],
        };
        let mut taken = BTreeSet::new();
        for a in 1..=100 {
            for b in 1..=100 {
                let flow = FlowWords::<V4>::new(address(1, a), address(2, b), 0, 0, 0);
                taken.insert(slot(flow));
            }
        }
        // Of 10 000 by chance 9 627 or so.
        assert!(taken.len() > 9_400, "{}", taken.len());
    }
}
