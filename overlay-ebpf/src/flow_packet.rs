//! A packet of a flow: what the programs have to know of it once it is parsed.

use overlay_common::{
    config::Config,
    family::WireFamily,
    flow::FlowWords,
    stamp::{self, Header as Stamped},
    wire::{IPPROTO_TCP, IPPROTO_UDP},
};

use crate::maps;

/// The DSCP in a TOS byte or traffic class; the rest is ECN, which changes from packet to packet.
const DSCP: u8 = 0xfc;

/// Which end of the packet is the pod on this node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Local {
    Source,
    Destination,
}

/// What a packet does to its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Control {
    None,
    /// TCP SYN; what opens an SCTP association.
    Open,
    /// TCP FIN or RST; what ends an SCTP association.
    Close,
    /// TCP without any of these, and without ACK: of no connection. Rules against scans look for it. SCTP of
    /// which it cannot be told.
    Stray,
}

/// A packet of a flow. Integers are in host order.
pub struct FlowPacket<F: WireFamily> {
    pub words: FlowWords<F>,
    /// Whether its flow is all that goes between the two pods.
    pub is_pair: bool,
    pub protocol: u8,
    pub control: Control,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// As the IP header announces it.
    pub total_len: u32,
    /// The IP header's checksum; 0 if the family has none.
    pub check: u16,
    /// Length of the IP and transport headers, bytes.
    pub headers_len: u32,
    /// The bits of [`Self::header_bits`] that count.
    pub header_mask: u16,
}

impl<F: WireFamily> FlowPacket<F> {
    /// What a permit remembers of the IP header beside the flow, as the top bits of an entry's word
    /// beside the mode. `hops` are still to be taken.
    #[inline(always)]
    pub fn header_bits(&self, hops: u8) -> u16 {
        let ttl = self.ttl.wrapping_sub(hops);
        (u16::from(self.tos & DSCP) | u16::from(ttl) << 8) & self.header_mask
    }

    /// What the flow is found by in the flow table.
    #[inline(always)]
    pub fn key(&self) -> FlowWords<F> {
        if self.is_pair {
            self.words.pair()
        } else {
            self.words
        }
    }

    /// Whether the flow is one of ports, which netfilter can translate.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        let protocol = self.words.protocol();
        protocol == IPPROTO_TCP || protocol == IPPROTO_UDP
    }

    /// TCP without data.
    #[inline(always)]
    pub fn is_acknowledgement(&self) -> bool {
        self.protocol == IPPROTO_TCP && self.total_len == self.headers_len
    }

    /// What a packet with this header carries as its hash if it leaves the host as it is here.
    #[inline(always)]
    pub fn stamp(&self, header: Stamped, config: &Config<F>, generation: u32) -> u32 {
        stamp::stamp(self.words, header, &config.stamp_key, generation)
    }

    /// The stamp of a packet that the host has yet to route.
    #[inline(always)]
    pub fn stamp_before_hop(&self, config: &Config<F>) -> u32 {
        let header = Stamped::before_hop(self.tos, self.ttl);
        self.stamp(header, config, maps::generation(config))
    }

    /// Whether every packet on the wire fits `mtu`. `frame_len` includes the bytes before the IP
    /// header, of which there are `offset`.
    #[inline(always)]
    pub fn fits(&self, frame_len: u32, offset: u32, gso_size: u32, mtu: u32) -> bool {
        if gso_size == 0 {
            frame_len - offset <= mtu
        } else {
            gso_size + self.headers_len <= mtu
        }
    }

    /// Whether the IP header announces exactly the bytes the frame holds. The kernel trims what is
    /// longer and drops what is shorter.
    #[inline(always)]
    pub fn is_whole(&self, frame_len: u32, offset: u32) -> bool {
        self.total_len + offset == frame_len
    }
}
