//! `OVL_FLOWS4` and `OVL_FLOWS6`: which flows are fast, in which direction, until when.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::MacAddr,
    family::{Pair as _, V4, V6, WireFamily},
    spread::SPREAD,
};

/// A flow between a local pod and a remote one, the same key for both directions.
///
/// Aligned, because programs build it on their stack, where the verifier wants aligned accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct FlowKey<F: WireFamily = V4> {
    /// Pod on this node.
    pub local: F::Be,
    /// Pod on another node.
    pub remote: F::Be,
    /// Network order. ICMP echo: the identifier on the side that asks, zero on the side that
    /// answers, so that two pods pinging each other with one identifier are two flows.
    pub local_port: [u8; 2],
    pub remote_port: [u8; 2],
    /// IP protocol: 1 (ICMP echo), 6 (TCP), 17 (UDP) or 58 (ICMPv6 echo).
    pub protocol: u8,
    #[doc(hidden)]
    pub _pad: [u8; 3],
}

pub type FlowKey4 = FlowKey<V4>;
pub type FlowKey6 = FlowKey<V6>;

/// What the kernel decided about a flow, and how long that may be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// [`FlowWords::id`] of the entry's own key. The kernel may give an evicted entry to another
    /// flow while a program still reads it; `id` is written first and read last, so a reader that
    /// finds its own flow's id there has read its own flow's entry.
    pub id: u64,
    /// Egress packets are fast before this time. Coarse monotonic clock, ns; 0: no permit.
    pub egress_until: u64,
    /// Ingress packets are fast before this time.
    pub ingress_until: u64,
    /// Counts only while equal to the generation in `OVL_CONFIG`.
    pub generation: u32,
    /// Index into `OVL_NODES` of the remote pod's node.
    pub node: u16,
    /// What is rewritten in each packet: one of the `REWRITE_*` values.
    pub rewrite: u8,
    #[doc(hidden)]
    pub _pad: u8,
    /// Destination MAC that egress frames must carry: the gateway's.
    pub gateway_mac: MacAddr,
    /// UDP source port of the tunnel packets of this flow, network order.
    pub source_port: [u8; 2],
    /// Destination MAC of delivered frames: the pod's.
    pub pod_mac: MacAddr,
    /// MTU of the pod's veth, bytes.
    pub pod_mtu: u16,
    /// Source MAC of delivered frames, as the kernel chose it.
    pub deliver_mac: MacAddr,
    /// How the kernel received ingress packets: `MODE_TUNNEL` or `MODE_DIRECT`, `MODE_NONE` before, in
    /// the bits of [`MODE_BITS`]; their DSCP in the others, where a TOS byte has it.
    pub ingress_mode: u8,
    /// TTL or hop limit of ingress packets behind this host's hop.
    pub ingress_ttl: u8,
    /// Host side of the local pod's veth, where ingress packets are redirected.
    pub pod_ifindex: u32,
    /// What `OVL_MOVES` said of `pod_mac` when the ingress permit was granted; it counts while that is
    /// so.
    pub moves: u32,
    /// The underlay interface by which the kernel sent the packet that earned the egress permit. What
    /// follows is read off that packet, too.
    pub underlay_ifindex: u32,
    /// `path_changes` of the node in `OVL_NEXTHOPS` when the egress permit was granted; it counts while
    /// that is so.
    pub path_changes: u32,
    /// Destination MAC on the underlay.
    pub next_hop_mac: MacAddr,
    /// Largest pod packet (inner IP header and payload) the way takes, bytes.
    pub path_mtu: u16,
    /// Source MAC on the underlay.
    pub underlay_mac: MacAddr,
    /// As `ingress_mode`, of how the kernel sent egress packets.
    pub egress_mode: u8,
    /// As `ingress_ttl`, of egress packets.
    pub egress_ttl: u8,
    /// The VTEP address the way leads to, as [`Address::tag`](crate::addr::Address::tag) tells
    /// addresses apart. It counts while it is the node's.
    pub vtep: [u8; 4],
    /// `skb->mark` with which packets leave.
    pub mark: u32,
    /// `skb->priority` with which packets leave.
    pub priority: u32,
    #[doc(hidden)]
    pub _pad2: u32,
    /// What the remote end's address becomes where packets are rewritten, network order. An IPv4 address
    /// is in the first four bytes.
    pub rewrite_address: [u8; 16],
    /// What its port becomes, network order.
    pub rewrite_port: [u8; 2],
    #[doc(hidden)]
    pub _pad3: [u8; 6],
}

/// Packets of the flow leave the host with the addresses and ports with which they enter it.
pub const REWRITE_NONE: u8 = 0;
/// Netfilter translates their destination, as of a service: the entry is of the pod and that service, in
/// the direction out of the pod.
pub const REWRITE_DESTINATION: u8 = 1;
/// Netfilter translates their source back: the entry is of the pods, in the direction into the local one.
pub const REWRITE_SOURCE: u8 = 2;
/// A permit of a translated UDP flow lasts no longer, ns: who takes an endpoint out of a service deletes
/// what conntrack knows of its UDP flows, and no one is told.
pub const TRANSLATED_UDP_PERMIT_NS: u64 = 2_000_000_000;

/// Value of `OVL_ENTERED` and `OVL_ENTERED6`, per CPU: with which tuple the packet of a stamp entered.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entered<F: WireFamily = V4> {
    pub words: FlowWords<F>,
    pub stamp: u32,
    #[doc(hidden)]
    pub _pad: u32,
}

/// The bits of [`Flow::egress_mode`] and [`Flow::ingress_mode`] that hold the mode. With the DSCP and the TTL
/// beside it they make up the top 16 bits of a word of the entry. A packet with another DSCP or TTL than
/// the one that earned the permit has to earn its own: rules may treat it differently. In trusted mode,
/// where a permit is the pair of pods', both are 0.
pub const MODE_BITS: u8 = 0b11;

/// A [`Flow`] as the words it consists of: programs read, compare and build entries by whole words.
pub type FlowImage = [u64; size_of::<Flow>() / 8];

/// Places of the words in a [`FlowImage`].
pub mod word {
    use core::mem::offset_of;

    use super::Flow;

    pub const ID: usize = offset_of!(Flow, id) / 8;
    pub const EGRESS_UNTIL: usize = offset_of!(Flow, egress_until) / 8;
    pub const INGRESS_UNTIL: usize = offset_of!(Flow, ingress_until) / 8;
    /// `generation` in the low half, then `node`, then `rewrite` in bits 48 to 55.
    pub const GENERATION_NODE: usize = offset_of!(Flow, generation) / 8;
    /// `gateway_mac`, then `source_port` in the top 16 bits.
    pub const GATEWAY_PORT: usize = offset_of!(Flow, gateway_mac) / 8;
    /// `pod_mac`, then `pod_mtu` in the top 16 bits.
    pub const POD_MTU: usize = offset_of!(Flow, pod_mac) / 8;
    /// `deliver_mac`, then `ingress_mode` in bits 48 to 55, `ingress_ttl` above.
    pub const DELIVER_MODE: usize = offset_of!(Flow, deliver_mac) / 8;
    /// `pod_ifindex` in the low half, `moves` in the high half.
    pub const POD_IFINDEX: usize = offset_of!(Flow, pod_ifindex) / 8;
    /// `underlay_ifindex` in the low half, `path_changes` in the high half.
    pub const UNDERLAY: usize = offset_of!(Flow, underlay_ifindex) / 8;
    /// `next_hop_mac`, then `path_mtu` in the top 16 bits.
    pub const NEXT_HOP_MTU: usize = offset_of!(Flow, next_hop_mac) / 8;
    /// `underlay_mac`, then `egress_mode` in bits 48 to 55, `egress_ttl` above.
    pub const UNDERLAY_MODE: usize = offset_of!(Flow, underlay_mac) / 8;
    /// `vtep` in the low half, `mark` in the high half.
    pub const VTEP_MARK: usize = offset_of!(Flow, vtep) / 8;
    /// `priority` in the low half.
    pub const PRIORITY: usize = offset_of!(Flow, priority) / 8;
    /// `rewrite_address`, two words.
    pub const REWRITE_ADDRESS: usize = offset_of!(Flow, rewrite_address) / 8;
    pub const REWRITE_ADDRESS_2: usize = REWRITE_ADDRESS + 1;
    /// `rewrite_port` in the low 16 bits.
    pub const REWRITE_PORT: usize = offset_of!(Flow, rewrite_port) / 8;
}

/// A [`FlowKey`] as integers, the form in which programs hold, compare and hash it: bytes of the key
/// in native order, addresses first, then ports and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowWords<F: WireFamily = V4> {
    pub addresses: F::Pair,
    pub ports: u64,
}

impl<F: WireFamily> FlowWords<F> {
    /// From addresses and ports as they stand in the packet, the ports read as native integers.
    #[inline(always)]
    pub fn new(
        local: F::Be,
        remote: F::Be,
        local_port: u16,
        remote_port: u16,
        protocol: u8,
    ) -> Self {
        let ports = u32::from(local_port) | u32::from(remote_port) << 16;
        Self {
            addresses: F::Pair::new(local, remote),
            ports: u64::from(ports) | u64::from(protocol) << 32,
        }
    }

    #[inline(always)]
    pub fn key(self) -> FlowKey<F> {
        bytemuck::cast(self)
    }

    #[inline(always)]
    pub fn local(self) -> F::Be {
        self.addresses.local()
    }

    #[inline(always)]
    pub fn remote(self) -> F::Be {
        self.addresses.remote()
    }

    /// As it stands in the packet, read as a native integer.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        self.ports as u16
    }

    /// As [`Self::local_port`].
    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        (self.ports >> 16) as u16
    }

    /// 0 for the pair of pods.
    #[inline(always)]
    pub fn protocol(self) -> u8 {
        (self.ports >> 32) as u8
    }

    /// Whether the flow has the same protocol and local end as `other`.
    #[inline(always)]
    pub fn is_beside(self, other: Self) -> bool {
        const REMOTE_PORT: u64 = 0xffff_0000;
        self.local() == other.local() && (self.ports ^ other.ports) & !REMOTE_PORT == 0
    }

    /// Whether the flows are the same. Without a comparison of their whole bytes, which the verifier cannot
    /// follow.
    #[inline(always)]
    pub fn is_same(self, other: Self) -> bool {
        self.is_beside(other)
            && self.remote() == other.remote()
            && self.remote_port() == other.remote_port()
    }

    /// The pair of pods alone: what all their flows share.
    #[inline(always)]
    #[must_use]
    pub fn pair(self) -> Self {
        Self { ports: 0, ..self }
    }

    /// A number by which a reader tells the flows apart that a table entry may be passed on among: a hash
    /// of the key, which two of them share by chance only.
    #[inline(always)]
    pub fn id(self) -> u64 {
        self.addresses.id() ^ self.ports.wrapping_mul(SPREAD)
    }
}

impl<F: WireFamily> From<FlowKey<F>> for FlowWords<F> {
    fn from(key: FlowKey<F>) -> Self {
        bytemuck::cast(key)
    }
}

// `FlowWords::new` shifts the first bytes of the key into the low bits.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "flow keys are built for little-endian CPUs"
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::{Address as _, Ipv4Be, Ipv6Be};

    fn check_words<F: WireFamily>(key: FlowKey<F>) -> Result<(), TestCaseError> {
        let words = FlowWords::new(
            key.local,
            key.remote,
            u16::from_ne_bytes(key.local_port),
            u16::from_ne_bytes(key.remote_port),
            key.protocol,
        );
        prop_assert_eq!(words, FlowWords::from(key));
        prop_assert_eq!(words.key(), key);
        prop_assert_eq!((words.local(), words.remote()), (key.local, key.remote));
        Ok(())
    }

    proptest! {
        #[test]
        fn words_and_key_are_the_same_bytes(
            local: [u8; 4], remote: [u8; 4], local_port: [u8; 2], remote_port: [u8; 2], protocol: u8,
        ) {
            let key = FlowKey4 {
                local: Ipv4Be { octets: local },
                remote: Ipv4Be { octets: remote },
                local_port,
                remote_port,
                protocol,
                _pad: [0; 3],
            };
            check_words(key)?;
        }

        #[test]
        fn words_and_key_of_an_ipv6_flow_are_the_same_bytes(
            local: [u8; 16], remote: [u8; 16], local_port: [u8; 2], remote_port: [u8; 2],
            protocol: u8,
        ) {
            let key = FlowKey6 {
                local: Ipv6Be { octets: local },
                remote: Ipv6Be { octets: remote },
                local_port,
                remote_port,
                protocol,
                _pad: [0; 3],
            };
            check_words(key)?;
        }

        #[test]
        fn any_flipped_bit_of_an_ipv6_address_changes_id_and_tag(
            address: [u8; 16], bit in 0usize..128,
        ) {
            let address = Ipv6Be { octets: address };
            let mut other = address;
            other.octets[bit / 8] ^= 1 << (bit % 8);
            let id = |local, remote| FlowWords::<V6>::new(local, remote, 1, 2, 6).id();
            prop_assert_ne!(id(address, address), id(other, address));
            prop_assert_ne!(id(address, address), id(address, other));
            prop_assert_ne!(address.tag(), other.tag());
        }

        #[test]
        fn the_words_of_an_image_hold_the_fields_they_are_said_to(
            image: FlowImage,
        ) {
            let flow: Flow = bytemuck::cast(image);
            let low_mac = |word: u64| {
                let [a, b, c, d, e, f, _, _] = word.to_le_bytes();
                MacAddr::new([a, b, c, d, e, f])
            };
            prop_assert_eq!(image[word::ID], flow.id);
            prop_assert_eq!(image[word::EGRESS_UNTIL], flow.egress_until);
            prop_assert_eq!(image[word::INGRESS_UNTIL], flow.ingress_until);
            prop_assert_eq!(image[word::GENERATION_NODE] as u32, flow.generation);
            prop_assert_eq!((image[word::GENERATION_NODE] >> 32) as u16, flow.node);
            prop_assert_eq!((image[word::GENERATION_NODE] >> 48) as u8, flow.rewrite);
            prop_assert_eq!(low_mac(image[word::GATEWAY_PORT]), flow.gateway_mac);
            prop_assert_eq!(
                ((image[word::GATEWAY_PORT] >> 48) as u16).to_ne_bytes(), flow.source_port
            );
            prop_assert_eq!(low_mac(image[word::POD_MTU]), flow.pod_mac);
            prop_assert_eq!((image[word::POD_MTU] >> 48) as u16, flow.pod_mtu);
            prop_assert_eq!(low_mac(image[word::DELIVER_MODE]), flow.deliver_mac);
            prop_assert_eq!((image[word::DELIVER_MODE] >> 48) as u8, flow.ingress_mode);
            prop_assert_eq!((image[word::DELIVER_MODE] >> 56) as u8, flow.ingress_ttl);
            prop_assert_eq!(image[word::POD_IFINDEX] as u32, flow.pod_ifindex);
            prop_assert_eq!((image[word::POD_IFINDEX] >> 32) as u32, flow.moves);
            prop_assert_eq!(image[word::UNDERLAY] as u32, flow.underlay_ifindex);
            prop_assert_eq!((image[word::UNDERLAY] >> 32) as u32, flow.path_changes);
            prop_assert_eq!(low_mac(image[word::NEXT_HOP_MTU]), flow.next_hop_mac);
            prop_assert_eq!((image[word::NEXT_HOP_MTU] >> 48) as u16, flow.path_mtu);
            prop_assert_eq!(low_mac(image[word::UNDERLAY_MODE]), flow.underlay_mac);
            prop_assert_eq!((image[word::UNDERLAY_MODE] >> 48) as u8, flow.egress_mode);
            prop_assert_eq!((image[word::UNDERLAY_MODE] >> 56) as u8, flow.egress_ttl);
            prop_assert_eq!((image[word::VTEP_MARK] as u32).to_ne_bytes(), flow.vtep);
            prop_assert_eq!((image[word::VTEP_MARK] >> 32) as u32, flow.mark);
            prop_assert_eq!(image[word::PRIORITY] as u32, flow.priority);
            let address = [image[word::REWRITE_ADDRESS], image[word::REWRITE_ADDRESS_2]];
            prop_assert_eq!(bytemuck::cast::<_, [u8; 16]>(address), flow.rewrite_address);
            let port = image[word::REWRITE_PORT] as u16;
            prop_assert_eq!(port.to_ne_bytes(), flow.rewrite_port);
        }
    }
}
