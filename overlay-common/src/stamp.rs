//! The stamp: a keyed hash of a packet's own flow, carried in `skb->hash` across the host.
//!
//! It is written where a packet enters the host and compared where the packet leaves. Equal means
//! that this very packet was not changed in between, but for the one hop of routing; that is what
//! entitles its flow to a permit.
//!
//! The stamp covers what else of the header a rule may rewrite and the fast path would not, the
//! [`Header`], and the generation: a packet that was filtered before a flush cannot earn a
//! permit after it. Both are folded into the two 16-bit halves alike, because the kernel
//! derives the vxlan source port from their exclusive or ([`source_port`]): a flow keeps its
//! source port whatever its packets' TOS, and across flushes (up to the rounding of one port).

use crate::{
    family::{Pair as _, WireFamily},
    flow::FlowWords,
    maps::SEEN_SLOTS,
    spread::SPREAD_2,
};

/// What rules rewrite of a packet's IP header beside the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit, as it is behind the host's own hop.
    pub ttl: u8,
}

impl Header {
    /// Of a packet that the host has yet to route: routing takes one hop.
    #[inline(always)]
    pub const fn before_hop(tos: u8, ttl: u8) -> Self {
        Self {
            tos,
            ttl: ttl.wrapping_sub(1),
        }
    }

    /// A different number for each header.
    #[inline(always)]
    const fn fold(self) -> u32 {
        let both = self.tos as u16 | (self.ttl as u16) << 8;
        both.wrapping_mul(0x9e37) as u32
    }
}

/// The stamp of a packet of `flow` with this header. Never 0, which the kernel reads as "no hash".
#[inline(always)]
pub fn stamp<F: WireFamily>(
    flow: FlowWords<F>,
    header: Header,
    secret: &[u64; 2],
    generation: u32,
) -> u32 {
    let mut hash = flow.addresses.mix(secret[0]);
    hash ^= hash >> 32;
    hash = (hash ^ flow.ports ^ secret[1]).wrapping_mul(SPREAD_2);
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(SPREAD_2);
    let halves = (generation & 0xffff) ^ (generation >> 16) ^ header.fold();
    let stamp = (hash >> 32) as u32 ^ (halves << 16 | halves);
    if stamp == 0 { 1 } else { stamp }
}

/// The slot of `OVL_SEEN` for packets with a stamp, in one of the directions.
#[inline(always)]
pub const fn seen_slot(stamp: u32, is_inbound: bool) -> u32 {
    const HALF: u32 = SEEN_SLOTS as u32 / 2;
    stamp % HALF + if is_inbound { HALF } else { 0 }
}

/// The UDP source port, host order, that the kernel's `udp_flow_src_port` picks for a packet whose
/// `skb->hash` is `hash`, given the local port range.
#[inline(always)]
pub const fn source_port(hash: u32, min: u16, span: u16) -> u16 {
    let mixed = hash ^ (hash << 16);
    ((mixed as u64 * span as u64) >> 32) as u16 + min
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        addr::{Ipv4Be, Ipv6Be},
        family::V6,
    };

    const HEADER: Header = Header { tos: 0, ttl: 63 };

    fn flow(local: [u8; 4], remote: [u8; 4], ports: [u8; 4], protocol: u8) -> FlowWords {
        let [a, b, c, d] = ports;
        FlowWords::new(
            Ipv4Be { octets: local },
            Ipv4Be { octets: remote },
            u16::from_ne_bytes([a, b]),
            u16::from_ne_bytes([c, d]),
            protocol,
        )
    }

    proptest! {
        #[test]
        fn a_stamp_is_never_zero_and_a_port_is_in_range(
            local: [u8; 4], remote: [u8; 4], ports: [u8; 4], protocol: u8,
            secret: [u64; 2], generation: u32,
        ) {
            let stamp = stamp(flow(local, remote, ports, protocol), HEADER, &secret, generation);
            prop_assert_ne!(stamp, 0);
            let port = source_port(stamp, 32768, 60999 - 32768);
            prop_assert!((32768..60999).contains(&port));
        }

        #[test]
        fn translating_any_one_field_changes_the_stamp(
            local: [u8; 4], remote: [u8; 4], ports: [u8; 4], secret: [u64; 2],
            byte in 0usize..12, flip in 1u8..,
        ) {
            let before = stamp(flow(local, remote, ports, 6), HEADER, &secret, 7);
            let (mut local, mut remote, mut ports) = (local, remote, ports);
            match byte {
                0..4 => local[byte] ^= flip,
                4..8 => remote[byte - 4] ^= flip,
                _ => ports[byte - 8] ^= flip,
            }
            prop_assert_ne!(before, stamp(flow(local, remote, ports, 6), HEADER, &secret, 7));
        }

        #[test]
        fn translating_any_one_field_of_an_ipv6_flow_changes_the_stamp(
            mut addresses: [[u8; 16]; 2], mut ports: [u16; 2], secret: [u64; 2],
            byte in 0usize..36, flip in 1u8..,
        ) {
            let stamp = |[local, remote]: [[u8; 16]; 2], [a, b]: [u16; 2]| {
                let address = |octets| Ipv6Be { octets };
                let flow = FlowWords::<V6>::new(address(local), address(remote), a, b, 6);
                stamp(flow, HEADER, &secret, 7)
            };
            let before = stamp(addresses, ports);
            match byte {
                0..32 => addresses[byte / 16][byte % 16] ^= flip,
                _ => ports[byte % 2] ^= u16::from(flip) << (8 * (byte / 2 % 2)),
            }
            prop_assert_ne!(before, stamp(addresses, ports));
        }

        #[test]
        fn a_flush_moves_the_source_port_by_one_at_most(
            local: [u8; 4], remote: [u8; 4], ports: [u8; 4], secret: [u64; 2],
        ) {
            let flow = flow(local, remote, ports, 17);
            let port = |generation| {
                source_port(stamp(flow, HEADER, &secret, generation), 32768, 28231)
            };
            prop_assert!(port(1).abs_diff(port(2)) <= 1);
        }

        #[test]
        fn another_tos_or_ttl_changes_the_stamp_and_the_source_port_by_one_at_most(
            local: [u8; 4], remote: [u8; 4], ports: [u8; 4], secret: [u64; 2],
            tos: u8, ttl: u8,
        ) {
            let header = Header::before_hop(tos, ttl);
            prop_assume!(header != HEADER);
            let stamp = |header| stamp(flow(local, remote, ports, 6), header, &secret, 7);
            prop_assert_ne!(stamp(header), stamp(HEADER));
            let port = |header| source_port(stamp(header), 32768, 28231);
            prop_assert!(port(header).abs_diff(port(HEADER)) <= 1);
        }
    }
}
