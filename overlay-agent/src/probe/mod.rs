//! Whether the peers can be reached through the overlay, and why not.
//!
//! Each agent asks each peer's at the peer's address in the overlay, small and as large as pods' packets, and answers
//! those that are peers. Who does not answer is asked by ICMP echo, there and at the node's own address. What that
//! means is in [`verdict`]. Packets are few, whatever the number of peers ([`budget`]), and of hosts, so
//! they take the kernel's way and never the programs'.

mod book;
mod budget;
mod checksum;
mod echo;
mod mesh;
mod metrics;
mod own;
mod packet;
mod run;
mod survey;
#[cfg(test)]
mod tests;
mod told;
mod verdict;

pub use self::{
    mesh::{Mesh, MeshNode, Pair, survey},
    own::Own,
    packet::{Identity, Kind, Packet},
    run::Probes,
    told::{Told, ToldPeer, ask},
    verdict::Verdict,
};
