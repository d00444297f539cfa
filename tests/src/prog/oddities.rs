//! Packets that look like those of a flow, but for what their family's headers say.

mod ipv4;
mod ipv6;

use overlay_common::outcome::Outcome;

use super::{
    fixture::Cluster,
    packet::{Outer, Packet},
};

/// A packet and what must be counted for it.
pub type Odd<P> = (Outcome, &'static str, P);

pub trait Oddities: Cluster {
    /// What the programs count for ARP: all that is not IPv6 is handled by IPv4's rules.
    const ARP: Outcome;

    /// Packets that none of the programs takes for one of a flow.
    fn without_flow(packet: &Packet<Self>) -> Vec<Odd<Packet<Self>>>;

    /// Headers of tunnel packets that are left to the kernel.
    fn outers(outer: &Outer<Self>) -> Vec<Odd<Outer<Self>>>;

    /// A pod's tunnel packet, with what does not hide it.
    fn injections(injection: &Packet<Self>) -> Vec<(&'static str, Packet<Self>)>;

    /// Packets from a pod to a node that are no tunnel packets, or that never become one.
    fn harmless(injection: &Packet<Self>) -> Vec<Odd<Packet<Self>>>;

    /// The frame whose IP header announces a length of 0.
    fn without_length(frame: &[u8]) -> Vec<u8>;

    /// A router's message that a packet is too large, in which it quotes the beginning of `quoted`, a
    /// frame.
    fn too_big(quoted: &[u8]) -> Vec<u8>;
}
