//! How pods' packets become tunnel packets: vxlan's, or those of flannel's udp backend.

use core::mem::offset_of;

use overlay_common::{
    encap::{DATAGRAM_LEN, EncapHeader, outer_ipv4_check},
    family::V4,
    node::Node,
    wire::{Ipv4Header, UdpHeader},
};

use crate::{
    helpers::Skb,
    ip::Ip,
    packet::{ETH_LEN, Packet},
};

/// A kind of tunnel.
pub trait Encap<F: Ip> {
    /// Bytes between the outer Ethernet header and the inner IP header.
    const LEN: u32;
    /// How many hops the nodes at either end are for the inner packet.
    const HOPS: u8;

    /// Makes room for the headers.
    fn make_room(skb: &Skb) -> Result<(), ()>;

    /// Writes them all. `outer_len` is the length of the outer IP packet, `tos` what the inner one has.
    #[must_use]
    fn write(
        packet: Packet,
        tos: u8,
        node: &Node<F>,
        outer_len: u32,
        source_port: u16,
    ) -> Option<()>;
}

/// What vxlan devices send.
pub struct Vxlan;

impl<F: Ip> Encap<F> for Vxlan {
    const LEN: u32 = F::ENCAP_LEN;
    const HOPS: u8 = 1;

    #[inline(always)]
    fn make_room(skb: &Skb) -> Result<(), ()> {
        skb.grow_for_encap(F::ENCAP_LEN, F::ENCAP_FLAG)
    }

    #[inline(always)]
    fn write(
        packet: Packet,
        tos: u8,
        node: &Node<F>,
        outer_len: u32,
        source_port: u16,
    ) -> Option<()> {
        F::write_encap(packet, tos, node, outer_len, source_port)
    }
}

/// What the forwarder of the udp backend sends. It is a hop of its own, beside the host.
pub struct Datagrams;

impl Encap<V4> for Datagrams {
    const LEN: u32 = DATAGRAM_LEN;
    const HOPS: u8 = 2;

    #[inline(always)]
    fn make_room(skb: &Skb) -> Result<(), ()> {
        skb.grow_for_datagram(DATAGRAM_LEN, V4::ENCAP_FLAG)
    }

    /// The same bytes as `EncapHeader::finish_datagram`: ports and TOS are prebuilt.
    #[inline(always)]
    fn write(packet: Packet, _: u8, node: &Node, outer_len: u32, _: u16) -> Option<()> {
        const IPV4: usize = ETH_LEN + offset_of!(EncapHeader, ipv4);
        const UDP: usize = ETH_LEN + offset_of!(EncapHeader, udp);
        let total_len = (outer_len as u16).to_be_bytes();
        let [high, low] = ((outer_len - V4::LEN as u32) as u16).to_be_bytes();
        let (words, _) = node.encap.words();
        packet.write(ETH_LEN, words[0])?;
        packet.write(ETH_LEN + 8, words[1])?;
        packet.write(ETH_LEN + 16, words[2])?;
        packet.write(UDP + offset_of!(UdpHeader, len), [high, low, 0, 0])?;
        packet.write(IPV4 + offset_of!(Ipv4Header, total_len), total_len)?;
        packet.write(
            IPV4 + offset_of!(Ipv4Header, check),
            outer_ipv4_check(node.ipv4_sum, total_len, 0).to_ne_bytes(),
        )
    }
}
