//! `OVL_CONFIG`, `OVL_CONFIG6`: what the programs must know about this node. One entry each, written
//! by the agent.

use crate::{
    addr::{Address as _, MacAddr},
    family::{V4, WireFamily},
    wire::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config<F: WireFamily = V4> {
    /// Secret of the stamps, random per load.
    pub stamp_key: [u64; 2],
    /// How long a permit of a TCP flow lasts, nanoseconds; 0: none is granted.
    pub tcp_permit_ns: u64,
    /// The same of a UDP flow.
    pub udp_permit_ns: u64,
    /// The same of a flow of ICMP echo.
    pub icmp_permit_ns: u64,
    /// Flow entries of another generation do not count. Incremented to flush the flow table.
    pub generation: u32,
    /// One of the `FASTPATH_*` values.
    pub fastpath: u32,
    /// This node's VTEP: the address tunnel packets are sent from and to.
    pub vtep: F::Be,
    /// The whole pod network: what lies outside it is never fast.
    pub network: F::Be,
    pub network_mask: F::Be,
    /// Subnet of the local pods.
    pub subnet: F::Be,
    /// All zero if the node does not serve the family.
    pub subnet_mask: F::Be,
    pub vtep_mac: MacAddr,
    /// UDP destination port of tunnel packets, network order; of the udp backend's also the source port.
    pub vxlan_port: [u8; 2],
    pub vni: [u8; 3],
    /// One of the `TUNNEL_*` values.
    pub tunnel: u8,
    /// First UDP source port used for encapsulation (`net.ipv4.ip_local_port_range`), host order.
    pub source_port_min: u16,
    /// How many ports there are from `source_port_min` on, less one: the kernel's `max - min`.
    pub source_port_span: u16,
    /// Interface index of `flannel.<VNI>`, `flannel-v6.<VNI>`, or the udp backend's `flannel0`; 0 where there is
    /// none (host-gw).
    pub vtep_ifindex: u32,
    /// MTU of the pod network, bytes: larger packets are left to the kernel.
    pub pod_mtu: u32,
    /// Where `skb->mark & slow_mask == slow_mark`, a packet earns no permit. A mask of 0: no mark does
    /// that.
    pub slow_mark: u32,
    pub slow_mask: u32,
    #[doc(hidden)]
    pub _pad2: F::Be,
    /// As `tcp_permit_ns`, of an SCTP flow.
    pub sctp_permit_ns: u64,
    /// Why nothing goes the short way, by direction: bits of [`closed`](crate::short::closed).
    pub closed: u32,
    #[doc(hidden)]
    pub _pad3: u32,
}

impl<F: WireFamily> Config<F> {
    /// Whether the node has pods of the family, and knows their subnet.
    #[inline(always)]
    pub fn is_served(&self) -> bool {
        self.subnet_mask != F::Be::default()
    }

    /// The bits of [`Flow::egress_mode`](crate::flow::Flow::egress_mode) and the TTL above that a permit
    /// remembers of a packet's header: none in trusted mode. Without a branch, of which the verifier would
    /// walk both ways.
    #[inline(always)]
    pub fn header_mask(&self) -> u16 {
        ((self.fastpath & FASTPATH_STRICT) as u16).wrapping_neg()
    }

    /// How long a permit of a flow of `protocol` lasts; in trusted mode, where a flow is all that goes
    /// between two pods, the shortest of all.
    #[inline(always)]
    pub fn permit_ns(&self, protocol: u8) -> u64 {
        match protocol {
            IPPROTO_TCP if self.fastpath != FASTPATH_TRUSTED => self.tcp_permit_ns,
            IPPROTO_UDP if self.fastpath != FASTPATH_TRUSTED => self.udp_permit_ns,
            IPPROTO_SCTP if self.fastpath != FASTPATH_TRUSTED => self.sctp_permit_ns,
            _ if self.fastpath != FASTPATH_TRUSTED => self.icmp_permit_ns,
            _ => {
                let shorter = |a, b| if a < b { a } else { b };
                shorter(
                    shorter(self.tcp_permit_ns, self.sctp_permit_ns),
                    shorter(self.udp_permit_ns, self.icmp_permit_ns),
                )
            }
        }
    }

    /// Whether the programs remember which pairs of pods a translation connects.
    #[inline(always)]
    pub fn notes_translations(&self) -> bool {
        self.fastpath & FASTPATH_TRUSTED != 0
    }

    /// True for addresses of the pod network that live on another node.
    #[inline(always)]
    pub fn is_remote_pod(&self, address: F::Be) -> bool {
        address.is_within(self.network, self.network_mask) && !self.is_local_pod(address)
    }

    /// True for addresses of this node's subnet.
    #[inline(always)]
    pub fn is_local_pod(&self, address: F::Be) -> bool {
        address.is_within(self.subnet, self.subnet_mask)
    }
}

/// Every packet takes the kernel path; nothing is stamped and no permit is granted.
pub const FASTPATH_OFF: u32 = 0;
/// A direction of a flow is fast while its permit lives.
pub const FASTPATH_STRICT: u32 = 1;
/// As strict, but one permit serves all flows between two pods, handshakes included, unless netfilter
/// translates any of them.
pub const FASTPATH_TRUSTED: u32 = 2;
/// As strict, while it is not known yet what has been translated before: pairs of pods are remembered as in
/// trusted mode, and not used.
pub const FASTPATH_LEARNING: u32 = FASTPATH_TRUSTED | FASTPATH_STRICT;

/// Tunnel packets are vxlan's, if there are any.
pub const TUNNEL_VXLAN: u8 = 0;
/// Tunnel packets are the udp backend's.
pub const TUNNEL_UDP: u8 = 1;
