//! MAC addresses as programs handle them: the six bytes in the low 48 bits of an integer.
//!
//! An array of bytes would be copied through the stack, where the verifier wants every access
//! aligned; an integer stays in registers.

use overlay_common::addr::MacAddr;

use crate::packet::Packet;

const LOW_48: u64 = 0x0000_ffff_ffff_ffff;

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(u64);

impl Mac {
    /// Where there is no address.
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub const fn from_low_bits(word: u64) -> Self {
        Self(word & LOW_48)
    }

    #[inline(always)]
    pub const fn of(mac: &MacAddr) -> Self {
        let [a, b, c, d, e, f] = mac.octets;
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// IEEE 802 I/G bit: lowest bit of the first byte.
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        self.0 & 1 == 1
    }

    /// Whether a frame can come from this address. A bridge drops what comes from another: from a group,
    /// or from all zeros (`is_valid_ether_addr`).
    #[inline(always)]
    pub const fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != 0
    }

    /// The six bytes at `offset`; two more must follow them.
    #[inline(always)]
    pub fn read(packet: Packet, offset: usize) -> Option<Self> {
        packet.read(offset).map(Self::from_low_bits)
    }
}

/// Destination and source of the Ethernet header at the start of the packet.
#[inline(always)]
pub fn read_pair(packet: Packet) -> Option<(Mac, Mac)> {
    Some((Mac::read(packet, 0)?, Mac::read(packet, 6)?))
}

/// Writes destination and source of the Ethernet header at the start of the packet.
#[inline(always)]
#[must_use]
pub fn write_pair(packet: Packet, dst: Mac, src: Mac) -> Option<()> {
    packet.write(0, dst.0 | src.0 << 48)?;
    packet.write(8, (src.0 >> 16) as u32)
}
