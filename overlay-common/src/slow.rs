//! `OVL_SLOW`: flows whose packets the packet filter judges one by one, so that what it says of one
//! says nothing of the next. They earn no permit. One entry, written by the agent.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::Address as _,
    family::{V4, V6, WireFamily},
};

/// Matches kept per family. More are merged into fewer, wider ones.
pub const MAX_MATCHES: usize = 16;
/// Instead of a number of matches: every flow of the family.
pub const EVERY_FLOW: u32 = u32::MAX;
/// Room for what `status` says about the rules.
pub const REPORT_BYTES: usize = 8192;

/// [`Match::protocols`].
pub const TCP: u8 = 1;
pub const UDP: u8 = 2;
/// Echo.
pub const ICMP: u8 = 4;
pub const SCTP: u8 = 8;

/// [`Match::directions`]: packets from pods.
pub const EGRESS: u8 = 1;
/// Packets to pods.
pub const INGRESS: u8 = 2;

/// Packets by what all packets of a flow have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Match<F: WireFamily = V4> {
    pub src: F::Be,
    pub src_mask: F::Be,
    pub dst: F::Be,
    pub dst_mask: F::Be,
    /// First and last port, host order. Echo has the identifier and 0 for ports.
    pub src_ports: [u16; 2],
    pub dst_ports: [u16; 2],
    pub protocols: u8,
    pub directions: u8,
    #[doc(hidden)]
    pub _pad: [u8; 6],
}

/// A packet as matches see it.
#[derive(Clone, Copy)]
pub struct Packet<F: WireFamily = V4> {
    pub src: F::Be,
    pub dst: F::Be,
    /// Host order.
    pub src_port: u16,
    pub dst_port: u16,
    /// One of the bits of [`Match::protocols`].
    pub protocol: u8,
    /// One of the bits of [`Match::directions`].
    pub direction: u8,
}

impl<F: WireFamily> Match<F> {
    /// Without branches, which the verifier would walk through one by one.
    #[inline(always)]
    pub fn contains(&self, packet: &Packet<F>) -> bool {
        let outside = |port: u16, [first, last]: [u16; 2]| {
            let (port, first, last) = (i32::from(port), i32::from(first), i32::from(last));
            ((port - first) | (last - port)).cast_unsigned() >> 31
        };
        // Of the packet each is a single bit.
        let kinds = !self.protocols & packet.protocol | !self.directions & packet.direction;
        let ports =
            outside(packet.src_port, self.src_ports) | outside(packet.dst_port, self.dst_ports);
        let addresses = packet.src.differing(self.src, self.src_mask)
            | packet.dst.differing(self.dst, self.dst_mask);
        u64::from(u32::from(kinds) | ports) | addresses == 0
    }
}

/// Value of `OVL_SLOW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Slow {
    /// How many of the matches count, or [`EVERY_FLOW`].
    pub ipv4_count: u32,
    pub ipv6_count: u32,
    /// How many bytes of `report` count.
    pub report_len: u32,
    /// Directions in which tunnel packets to or from one node are told apart, [`EGRESS`] and
    /// [`INGRESS`]: none goes the short way there.
    pub outer: u32,
    pub ipv4: [Match<V4>; MAX_MATCHES],
    pub ipv6: [Match<V6>; MAX_MATCHES],
    /// The rules, for people: JSON. The programs do not read it.
    pub report: [u8; REPORT_BYTES],
}
