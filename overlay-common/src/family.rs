//! The two overlays. IPv4 and IPv6 pods have maps of the same shapes and nothing in common but the
//! hooks: what is about addresses is generic over the [`WireFamily`], and IPv4 unless said otherwise.

use core::{fmt::Debug, hash::Hash};

use bytemuck::Pod;

use crate::{
    addr::{Address, Ipv4Be, Ipv6Be},
    encap::{EncapHeader, EncapParams},
    encap6::EncapHeader6,
    spread::{SPREAD, SPREAD_2},
};

/// An address family, of pods and of the underlay that carries their packets alike.
pub trait WireFamily:
    sealed::Sealed + Copy + Debug + Default + Eq + Ord + Hash + Send + Sync + 'static
{
    /// An address in network order.
    type Be: Address;
    /// Two addresses as integers.
    type Pair: Pair<Self::Be>;
    /// What encapsulation puts between the outer Ethernet header and the inner IP header.
    type Encap: Pod + Debug + Default + Eq + Send + Sync;

    /// Whether only nodes that say so take tunnel packets without a UDP checksum.
    const ASKS_FOR_ZERO_CHECKSUM: bool;

    /// TTL or hop limit of the outer header.
    fn encap_ttl(encap: &Self::Encap) -> u8;

    /// The tunnel headers to one node.
    fn encap(params: &EncapParams<Self::Be>) -> Self::Encap;

    /// The headers of the udp backend to one node; none of a family that it does not carry.
    fn datagram(params: &EncapParams<Self::Be>) -> Self::Encap;

    /// What [`Node::ipv4_sum`](crate::node::Node::ipv4_sum) wants to know of them.
    fn encap_sum(encap: &Self::Encap) -> u32;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V6;

impl WireFamily for V4 {
    type Be = Ipv4Be;
    type Pair = u64;
    type Encap = EncapHeader;

    const ASKS_FOR_ZERO_CHECKSUM: bool = false;

    #[inline(always)]
    fn encap_ttl(encap: &EncapHeader) -> u8 {
        encap.ipv4.ttl
    }

    fn encap(params: &EncapParams<Ipv4Be>) -> EncapHeader {
        EncapHeader::template(params)
    }

    fn datagram(params: &EncapParams<Ipv4Be>) -> EncapHeader {
        EncapHeader::datagram(params)
    }

    fn encap_sum(encap: &EncapHeader) -> u32 {
        encap.ipv4_sum()
    }
}

impl WireFamily for V6 {
    type Be = Ipv6Be;
    type Pair = [u64; 4];
    type Encap = EncapHeader6;

    const ASKS_FOR_ZERO_CHECKSUM: bool = true;

    #[inline(always)]
    fn encap_ttl(encap: &EncapHeader6) -> u8 {
        encap.ipv6.hop_limit
    }

    fn encap(params: &EncapParams<Ipv6Be>) -> EncapHeader6 {
        EncapHeader6::template(params)
    }

    fn datagram(_: &EncapParams<Ipv6Be>) -> EncapHeader6 {
        EncapHeader6::default()
    }

    /// IPv6 headers have no checksum.
    fn encap_sum(_: &EncapHeader6) -> u32 {
        0
    }
}

/// A local and a remote address as the integers programs compare and hash: their bytes one after
/// the other, in native order.
pub trait Pair<A>: Pod + Debug + Eq {
    fn new(local: A, remote: A) -> Self;
    fn local(self) -> A;
    fn remote(self) -> A;
    /// A number that differs between pairs.
    fn id(self) -> u64;
    /// The first step of a keyed hash.
    fn mix(self, secret: u64) -> u64;
}

impl Pair<Ipv4Be> for u64 {
    #[inline(always)]
    fn new(local: Ipv4Be, remote: Ipv4Be) -> Self {
        let local = u32::from_ne_bytes(local.octets);
        let remote = u32::from_ne_bytes(remote.octets);
        Self::from(local) | Self::from(remote) << 32
    }

    #[inline(always)]
    fn local(self) -> Ipv4Be {
        Ipv4Be {
            octets: (self as u32).to_ne_bytes(),
        }
    }

    #[inline(always)]
    fn remote(self) -> Ipv4Be {
        Ipv4Be {
            octets: ((self >> 32) as u32).to_ne_bytes(),
        }
    }

    #[inline(always)]
    fn id(self) -> u64 {
        self
    }

    #[inline(always)]
    fn mix(self, secret: u64) -> u64 {
        (self ^ secret).wrapping_mul(SPREAD)
    }
}

impl Pair<Ipv6Be> for [u64; 4] {
    #[inline(always)]
    fn new(local: Ipv6Be, remote: Ipv6Be) -> Self {
        let ([a, b], [c, d]) = (local.words(), remote.words());
        [a, b, c, d]
    }

    #[inline(always)]
    fn local(self) -> Ipv6Be {
        Ipv6Be::from_words([self[0], self[1]])
    }

    #[inline(always)]
    fn remote(self) -> Ipv6Be {
        Ipv6Be::from_words([self[2], self[3]])
    }

    #[inline(always)]
    fn id(self) -> u64 {
        self.mix(0)
    }

    #[inline(always)]
    fn mix(self, secret: u64) -> u64 {
        let [a, b, c, d] = self;
        let mut hash = (a ^ secret).wrapping_mul(SPREAD);
        hash = (hash ^ (hash >> 32) ^ b).wrapping_mul(SPREAD_2);
        hash = (hash ^ (hash >> 32) ^ c).wrapping_mul(SPREAD);
        hash = (hash ^ (hash >> 32) ^ d).wrapping_mul(SPREAD_2);
        hash ^ secret.rotate_left(32)
    }
}

mod sealed {
    /// Only the families whose layouts are asserted in [`layout`](crate::layout) may be used in
    /// map types.
    pub trait Sealed {}

    impl Sealed for super::V4 {}
    impl Sealed for super::V6 {}
}
