//! Nodes, next hops, peers and gateways: whom to send to, how to get there, whom to believe.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::MacAddr,
    family::{V4, WireFamily},
};

/// Value of `OVL_NODES` and `OVL_NODES6`: one remote node, written by the agent alone. Index 0 is
/// never used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Node<F: WireFamily = V4> {
    /// `NODE_*` bits. An entry without [`NODE_VALID`] is free.
    pub flags: u32,
    /// VTEP address: where the tunnel ends, the lease's `PublicIP` or `PublicIPv6`.
    pub vtep: F::Be,
    /// One's-complement sum, native order, over the words of `encap.ipv4` as stored: TOS, length
    /// and checksum zero. IPv6 headers have no checksum: 0.
    pub ipv4_sum: u32,
    /// The pod subnet this node leases, for people who read the map.
    pub subnet: F::Be,
    /// MAC address of the node's VTEP, the lease's `VtepMAC`.
    pub vtep_mac: MacAddr,
    pub prefix_len: u8,
    #[doc(hidden)]
    pub _pad: u8,
    /// Everything between the outer Ethernet header and the inner IP header, prebuilt.
    pub encap: F::Encap,
    /// Largest outer packet that the kernel's route to `vtep` takes, bytes, where that is a property
    /// of the route (`ip route … mtu N`); else 0. `bpf_fib_lookup` reports only locked ones.
    pub route_mtu: u16,
    #[doc(hidden)]
    pub _pad2: F::Be,
}

impl<F: WireFamily> Node<F> {
    /// Flags without which no tunnel packet may be sent to a node.
    pub const TUNNEL_FLAGS: u32 = if F::ASKS_FOR_ZERO_CHECKSUM {
        NODE_ZERO_CHECKSUM
    } else {
        0
    };

    /// Whether tunnel packets may be sent to the node.
    #[inline(always)]
    pub const fn takes_tunnel_packets(&self) -> bool {
        self.flags & Self::TUNNEL_FLAGS == Self::TUNNEL_FLAGS
    }

    /// Largest inner packet that fits tunnel packets on a path of this MTU; 0 if none does.
    #[inline(always)]
    pub const fn room(&self, mtu: u16, encap_len: u32) -> u32 {
        let is_narrower = self.route_mtu != 0 && self.route_mtu < mtu;
        let outer = if is_narrower { self.route_mtu } else { mtu };
        (outer as u32).saturating_sub(encap_len)
    }
}

/// The entry describes a node.
pub const NODE_VALID: u32 = 1 << 0;
/// Packets to this node go without encapsulation while its VTEP address is on-link
/// (`DirectRouting`, host-gw).
pub const NODE_DIRECT: u32 = 1 << 1;
/// The node takes IPv6 tunnel packets without a UDP checksum (RFC 6935), as its lease says.
pub const NODE_ZERO_CHECKSUM: u32 = 1 << 2;

/// Value of `OVL_NEXTHOPS` and `OVL_NEXTHOPS6`, same index as the node: how the kernel last sent a packet to the
/// node. Written by `overlay_confirm` each time it grants an egress permit, from the very packet, for people to
/// read; every flow has its own way in its entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Nexthop {
    /// The VTEP address this was learned for, as [`Address::tag`](crate::addr::Address::tag) tells
    /// addresses apart. Differs from the node's when the node has moved since.
    pub vtep: [u8; 4],
    /// Underlay interface.
    pub ifindex: u32,
    /// Destination MAC of the outer frame: the neighbour's.
    pub dst_mac: MacAddr,
    /// Largest pod packet (inner IP header and payload) the path takes, bytes.
    pub mtu: u16,
    /// Source MAC of the outer frame: the underlay interface's.
    pub src_mac: MacAddr,
    /// [`MODE_TUNNEL`] or [`MODE_DIRECT`].
    pub mode: u8,
    #[doc(hidden)]
    pub _pad: u8,
    /// How often the way to the node became another than flows remember: a router said that packets are
    /// too large (`overlay_ingress`), or the node entry changed (the agent). Those flows earn their way
    /// again.
    pub path_changes: u32,
    #[doc(hidden)]
    pub _pad2: u32,
}

/// A [`Nexthop`] as the words it consists of.
pub type NexthopImage = [u64; size_of::<Nexthop>() / 8];

/// Places of the words in a [`NexthopImage`].
pub mod word {
    use core::mem::offset_of;

    use super::Nexthop;

    /// `vtep` in the low half, `ifindex` in the high half.
    pub const VTEP_IFINDEX: usize = offset_of!(Nexthop, vtep) / 8;
    /// `dst_mac`, then `mtu` in the top 16 bits.
    pub const DST_MTU: usize = offset_of!(Nexthop, dst_mac) / 8;
    /// `src_mac`, then `mode` in bits 48 to 55.
    pub const SRC_MODE: usize = offset_of!(Nexthop, src_mac) / 8;
    /// `path_changes` in the low half.
    pub const PATH_CHANGES: usize = offset_of!(Nexthop, path_changes) / 8;
}

/// No permit in this direction.
pub const MODE_NONE: u8 = 0;
/// Encapsulated in vxlan.
pub const MODE_TUNNEL: u8 = 1;
/// Routed without encapsulation.
pub const MODE_DIRECT: u8 = 2;

/// Value of `OVL_LEAVING`, one per CPU: what `overlay_confirm` noted of the packet it last let pass to the
/// vxlan device, for the same program on the underlay, which a packet usually reaches next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Leaving {
    /// [`FlowWords::id`](crate::flow::FlowWords::id) of the packet's flow; 0 if there is none.
    pub flow: u64,
    /// MAC address of the gateway that received the packet from the pod.
    pub gateway_mac: MacAddr,
    #[doc(hidden)]
    pub _pad: [u8; 2],
    /// Generation that the packet's stamp was of.
    pub generation: u32,
    /// The stamp, if netfilter translated the packet; else 0.
    pub stamp: u32,
    /// `skb->hash` of the packet that last passed to open its node the short way. What follows is that
    /// packet's, too.
    pub hash: u32,
    /// Index of the node it is for.
    pub node: u32,
    /// Its `skb->mark` and `skb->priority`.
    pub mark: u32,
    pub priority: u32,
    /// Generation in which it passed.
    pub hash_generation: u32,
    #[doc(hidden)]
    pub _pad2: u32,
}

/// Value of `OVL_PEERS4` and `OVL_PEERS6`; the key is the outer source address of tunnel packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Peer {
    /// Index into the nodes of the family.
    pub node: u32,
}

/// Value of `OVL_GATEWAYS`; the key is the index of the interface through which the host's IP layer
/// receives pod packets (the bridge, or a point-to-point veth).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Gateway {
    /// The interface's MAC address: what pods address frames to that they want routed.
    pub mac: MacAddr,
    #[doc(hidden)]
    pub _pad: [u8; 2],
}

/// Key of `OVL_PODS`: source MAC of a frame that a pod sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct PodKey {
    pub mac: MacAddr,
    #[doc(hidden)]
    pub _pad: [u8; 2],
}

/// Slots of `OVL_MOVES`: MAC addresses share them. A slot counts how often one of its addresses was seen
/// on another interface than before.
pub const MOVE_SLOTS: usize = 4_096;

/// The slot of a MAC address, whose six bytes are the low 48 bits of `mac`.
#[inline(always)]
pub const fn move_slot(mac: u64) -> u32 {
    const BITS: u32 = MOVE_SLOTS.trailing_zeros();
    (mac.wrapping_mul(crate::spread::SPREAD) >> (64 - BITS)) as u32
}

/// Value of `OVL_PODS`, written by `overlay_egress` from what pods send, as a bridge learns. A bridge
/// that has forgotten an address floods frames for it to every pod; only where the address was seen
/// may a delivered frame earn a permit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PodPort {
    /// Host side of the veth the frame came from.
    pub ifindex: u32,
}
