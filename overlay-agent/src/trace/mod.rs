//! What would become of a packet on this node, step by step.
//!
//! Facts are asked from the kernel and read from the maps of the programs ([`gather`]); what follows from them is
//! pure ([`judge`]), as is what rules say ([`rules`]) and what the programs would do ([`fast`]). No packet is sent
//! and no program run: a test run of one counts the packet, learns its addresses and stamps it.

mod facts;
mod fast;
mod gather;
mod judge;
mod packet;
mod rules;
#[cfg(test)]
mod tests;
mod watch;

pub use self::{
    gather::{Places, gather},
    judge::{Judged, Verdict, judge},
    packet::{Packet, Protocol},
    watch::Watch,
};
