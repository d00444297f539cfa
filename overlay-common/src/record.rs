//! A packet as a program with the `log` feature tells the agent of it, in the bytes of one `aya-log` message.

use bytemuck::{Pod, Zeroable};

/// Values of [`Record::family`].
pub const FAMILY_NONE: u8 = 0;
pub const FAMILY_IPV4: u8 = 4;
pub const FAMILY_IPV6: u8 = 6;

/// The packet as it is when the program is done with it; of a tunnel packet, the one inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Record {
    /// A [`Hook`](crate::outcome::Hook).
    pub hook: u8,
    /// An [`Outcome`](crate::outcome::Outcome).
    pub outcome: u8,
    /// [`FAMILY_NONE`] if it is no IP packet, or a truncated one.
    pub family: u8,
    pub protocol: u8,
    /// The interface the program runs on.
    pub ifindex: u32,
    /// In network order; 0 if there are none.
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
    /// Length with the Ethernet header and, if there are any, tunnel headers.
    pub bytes: u32,
    /// In the first 4 or all 16 bytes, as the family has them.
    pub src: [u8; 16],
    pub dst: [u8; 16],
    /// Of a tunnel packet, the address of the other node; else zero.
    pub peer: [u8; 16],
}
