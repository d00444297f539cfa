//! `OVL_FLOWS4`: which flows are fast, in which direction, until when.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Ipv4Be, MacAddr};

/// A flow between a local pod and a remote one, the same key for both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey4 {
    /// Pod on this node.
    pub local: Ipv4Be,
    /// Pod on another node.
    pub remote: Ipv4Be,
    /// Network order. ICMP echo: the identifier on the side that asks, zero on the side that
    /// answers, so that two pods pinging each other with one identifier are two flows.
    pub local_port: [u8; 2],
    pub remote_port: [u8; 2],
    /// IP protocol: 1 (ICMP echo), 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    #[doc(hidden)]
    pub _pad: [u8; 3],
}

/// What the kernel decided about a flow, and how long that may be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// [`FlowKey4::id`] of the entry's own key. The kernel may give an evicted entry to another
    /// flow while a program still reads it; `id` is written first and read last, so a reader that
    /// finds its own flow's id there has read its own flow's entry.
    pub id: u64,
    /// Egress packets are fast before this time. Coarse monotonic clock, ns; 0: no lease.
    pub egress_until: u64,
    /// Ingress packets are fast before this time.
    pub ingress_until: u64,
    /// Counts only while equal to the generation in `OVL_CONFIG`.
    pub generation: u32,
    /// Index into `OVL_NODES` of the remote pod's node.
    pub node: u32,
    /// Host side of the local pod's veth, where ingress packets are redirected.
    pub pod_ifindex: u32,
    /// MTU of that veth, bytes.
    pub pod_mtu: u16,
    /// How the kernel sent egress packets: `MODE_TUNNEL` or `MODE_DIRECT`; `MODE_NONE` before.
    pub egress_mode: u8,
    /// How the kernel received ingress packets.
    pub ingress_mode: u8,
    /// Destination MAC that egress frames must carry: the gateway's.
    pub gateway_mac: MacAddr,
    /// Destination MAC of delivered frames: the pod's.
    pub pod_mac: MacAddr,
    /// Source MAC of delivered frames, as the kernel chose it.
    pub deliver_mac: MacAddr,
    /// UDP source port of the tunnel packets of this flow, network order.
    pub source_port: [u8; 2],
    #[doc(hidden)]
    pub _pad: [u8; 4],
}

impl FlowKey4 {
    /// The key as two integers, for the stamp.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        let [a, b, c, d] = self.local.octets;
        let [e, f, g, h] = self.remote.octets;
        let [i, j] = self.local_port;
        let [k, l] = self.remote_port;
        [
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, self.protocol, 0, 0, 0]),
        ]
    }

    /// A number that differs between the flows an entry may be passed on among.
    #[inline(always)]
    pub const fn id(&self) -> u64 {
        let [addresses, ports] = self.words();
        addresses ^ ports.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}
