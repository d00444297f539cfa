//! What the programs must know of an address family: how its packets are read and written. The
//! programs themselves are written once, over [`Ip`].

use bytemuck::Pod;
use overlay_common::{flow::FlowWords, node::Node, outcome::Outcome};

use crate::{
    flow_packet::{FlowPacket, Local},
    helpers::Skb,
    maps::Tables,
    packet::Packet,
};

/// An address family as the programs handle it.
pub trait Ip: Tables {
    type Header: Header<Self::Be>;

    const ETHERTYPE: [u8; 2];
    /// `AF_INET`, `AF_INET6`.
    const FAMILY: u8;
    const IS_IPV4: bool = Self::FAMILY == 2;
    /// The protocol whose echo requests and replies are flows.
    const ICMP: u8;
    /// Types and codes, each pair as one word the way the packet holds it.
    const ECHO: u16;
    const ECHO_REPLY: u16;
    /// Type and code with which a router says that a packet is too large.
    const TOO_BIG: [u8; 2];
    /// Bytes that encapsulation adds.
    const ENCAP_LEN: u32;
    /// What tells `bpf_skb_adjust_room` of the outer header.
    const ENCAP_FLAG: u32;

    /// Bytes of the IP header.
    const LEN: usize = size_of::<Self::Header>();
    /// Bytes from the start of an IP header that [`FlowPacket::parse`] may look at: IP and TCP headers.
    const FLOW_LEN: u32 = Self::LEN as u32 + 20;

    /// Destination of a UDP datagram to `port`, of which the frame carries the beginning, whatever
    /// options, extension headers or later fragments it has. They may lie further back than `packet`
    /// has been asked to hold. A frame of which nobody can tell counts as one.
    fn udp_destination(skb: &Skb, packet: Packet, port: [u8; 2]) -> Option<Self::Be>;

    /// `slow::is_judged`, called as a global function.
    fn is_judged(flow: &FlowWords<Self>, local: Local) -> bool;

    /// Writes the IP header at `offset` as it is so many hops further. The caller has seen more hops
    /// left.
    #[must_use]
    fn write_hops(packet: Packet, offset: usize, flow: &FlowPacket<Self>, hops: u8) -> Option<()>;

    /// Replaces the address of the remote end, `old` so far, in the IP header at `offset`, whose own checksum
    /// is right.
    #[must_use]
    fn write_address(
        packet: Packet,
        offset: usize,
        local: Local,
        old: Self::Be,
        new: Self::Be,
    ) -> Option<()>;

    /// Tells the transport checksum at `check` that an address of the IP header was replaced.
    #[must_use]
    fn replace_in_l4_checksum(
        skb: &Skb,
        check: u32,
        is_udp: bool,
        replaced: (Self::Be, Self::Be),
    ) -> Option<()>;

    /// Replaces the ECN field of the header behind the Ethernet header, which [`Self::write_hops`] has
    /// written.
    #[must_use]
    fn write_tos(packet: Packet, flow: &FlowPacket<Self>, tos: u8) -> Option<()>;

    /// Tells the packet's checksum state, if it covers the IP header, what [`Self::write_hops`] and
    /// [`Self::write_tos`] have changed. An IPv4 header's own checksum makes up for every change.
    fn heed_checksum(skb: &Skb, flow: &FlowPacket<Self>, tos: u8);

    /// Writes all headers between the outer Ethernet header and the inner IP header, the same bytes
    /// as `EncapHeader::finish`. `outer_len` is the length of the outer IP packet, `tos` what the inner one
    /// has.
    #[must_use]
    fn write_encap(
        packet: Packet,
        tos: u8,
        node: &Node<Self>,
        outer_len: u32,
        source_port: u16,
    ) -> Option<()>;

    /// Of a multicast address as `bpf_fib_lookup` takes it: whether it stays on its link, as those do that
    /// every host listens to. `None` for others.
    fn is_group_of_hosts(address: [u32; 4]) -> Option<bool>;

    /// An address as `bpf_fib_lookup` takes it.
    fn fib_words(address: Self::Be) -> [u32; 4];
}

/// The IP header of a family, without options.
pub trait Header<A>: Pod {
    fn fields(self) -> Fields<A>;
    /// Whether a transport header can follow this header at once: no other version, no options, no
    /// fragment.
    fn is_plain(self) -> Result<(), Outcome>;
    /// Why a packet that is plain, with neither TCP, UDP nor ICMP, is not fast.
    fn is_other(self) -> Outcome;
}

/// What an IP header says, in the terms of both families. Integers are in host order.
pub struct Fields<A> {
    pub src: A,
    pub dst: A,
    /// Protocol of what follows the header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Length of the packet with this header, bytes.
    pub total_len: u32,
    /// The header's own checksum; 0 if the family has none.
    pub check: u16,
}
