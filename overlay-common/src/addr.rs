//! Addresses as they are on the wire.

use core::{
    fmt,
    hash::Hash,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use bytemuck::{Pod, Zeroable};

use crate::spread::{SPREAD, SPREAD_2};

/// An address as the maps hold it.
pub trait Address:
    Pod + Default + Eq + Ord + Hash + fmt::Debug + fmt::Display + Send + Sync
{
    /// The bits, folded into one word, by which the address misses the subnet `base`, of which `mask`
    /// is the netmask.
    fn differing(self, base: Self, mask: Self) -> u64;

    /// True if the address lies in the subnet `base`, of which `mask` is the netmask.
    #[inline(always)]
    fn is_within(self, base: Self, mask: Self) -> bool {
        self.differing(base, mask) == 0
    }

    /// Four bytes by which two addresses of one node are told apart: all of an IPv4 address, a hash
    /// of an IPv6 one. Not zero, which no next hop is for, but for 0.0.0.0.
    fn tag(self) -> [u8; 4];

    /// The bytes, and zeros behind those of an IPv4 address, as two integers in native order.
    fn wide(self) -> [u64; 2];

    /// From [`Self::wide`].
    fn from_wide(words: [u64; 2]) -> Self;
}

/// An IPv4 address in network order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Be {
    pub octets: [u8; 4],
}

impl Ipv4Be {
    pub const UNSPECIFIED: Self = Self { octets: [0; 4] };

    /// The address as the integer its octets spell, most significant first.
    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        u32::from_be_bytes(self.octets)
    }
}

impl Address for Ipv4Be {
    #[inline(always)]
    fn differing(self, base: Self, mask: Self) -> u64 {
        let address = u32::from_ne_bytes(self.octets);
        u64::from((address & u32::from_ne_bytes(mask.octets)) ^ u32::from_ne_bytes(base.octets))
    }

    #[inline(always)]
    fn tag(self) -> [u8; 4] {
        self.octets
    }

    #[inline(always)]
    fn wide(self) -> [u64; 2] {
        [u64::from(u32::from_ne_bytes(self.octets)), 0]
    }

    #[inline(always)]
    fn from_wide([low, _]: [u64; 2]) -> Self {
        Self {
            octets: (low as u32).to_ne_bytes(),
        }
    }
}

impl From<Ipv4Addr> for Ipv4Be {
    fn from(address: Ipv4Addr) -> Self {
        Self {
            octets: address.octets(),
        }
    }
}

impl From<Ipv4Be> for Ipv4Addr {
    fn from(address: Ipv4Be) -> Self {
        Self::from(address.octets)
    }
}

impl fmt::Display for Ipv4Be {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ipv4Be {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv6 address in network order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Be {
    pub octets: [u8; 16],
}

impl Ipv6Be {
    /// The bytes as two integers in native order.
    #[inline(always)]
    pub fn words(self) -> [u64; 2] {
        bytemuck::cast(self.octets)
    }

    #[inline(always)]
    pub fn from_words(words: [u64; 2]) -> Self {
        Self {
            octets: bytemuck::cast(words),
        }
    }
}

impl Address for Ipv6Be {
    #[inline(always)]
    fn differing(self, base: Self, mask: Self) -> u64 {
        let (address, base, mask) = (self.words(), base.words(), mask.words());
        let differing = |word: usize| (address[word] & mask[word]) ^ base[word];
        differing(0) | differing(1)
    }

    #[inline(always)]
    fn tag(self) -> [u8; 4] {
        let [a, b] = self.words();
        let mut hash = a.wrapping_mul(SPREAD);
        hash = (hash ^ (hash >> 32) ^ b).wrapping_mul(SPREAD_2);
        let tag = (hash >> 32) as u32;
        if tag == 0 { 1 } else { tag }.to_ne_bytes()
    }

    #[inline(always)]
    fn wide(self) -> [u64; 2] {
        self.words()
    }

    #[inline(always)]
    fn from_wide(words: [u64; 2]) -> Self {
        Self::from_words(words)
    }
}

impl From<Ipv6Addr> for Ipv6Be {
    fn from(address: Ipv6Addr) -> Self {
        Self {
            octets: address.octets(),
        }
    }
}

impl From<Ipv6Be> for Ipv6Addr {
    fn from(address: Ipv6Be) -> Self {
        Self::from(address.octets)
    }
}

impl fmt::Display for Ipv6Be {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ipv6Be {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct MacAddr {
    pub octets: [u8; 6],
}

impl MacAddr {
    pub const ZERO: Self = Self { octets: [0; 6] };

    pub const fn new(octets: [u8; 6]) -> Self {
        Self { octets }
    }

    pub const fn is_zero(self) -> bool {
        matches!(self.octets, [0, 0, 0, 0, 0, 0])
    }

    /// True for group addresses (IEEE 802 I/G bit), broadcast included.
    pub const fn is_multicast(self) -> bool {
        self.octets[0] & 1 == 1
    }

    /// The address with the I/G bit cleared and the U/L bit set: a locally administered unicast
    /// address, what flannel gives `flannel.<VNI>`.
    #[must_use]
    pub const fn to_local_unicast(mut self) -> Self {
        self.octets[0] = (self.octets[0] & 0xfe) | 0x02;
        self
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.octets.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseMacError;

impl fmt::Display for ParseMacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a 48-bit MAC address (expected aa:bb:cc:dd:ee:ff)")
    }
}

impl core::error::Error for ParseMacError {}

/// Accepts the three forms of Go's `net.ParseMAC`, which flannel uses on lease data:
/// `aa:bb:cc:dd:ee:ff`, `aa-bb-cc-dd-ee-ff` and `aabb.ccdd.eeff`.
impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let bytes = text.as_bytes();
        let (group, separator) = match bytes.len() {
            17 => (2, bytes[2]),
            14 => (4, b'.'),
            _ => return Err(ParseMacError),
        };
        if group == 2 && separator != b':' && separator != b'-' {
            return Err(ParseMacError);
        }
        let mut octets = [0u8; 6];
        let mut nibbles = 0;
        for (position, &byte) in bytes.iter().enumerate() {
            if position % (group + 1) == group {
                if byte != separator {
                    return Err(ParseMacError);
                }
                continue;
            }
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                b'A'..=b'F' => byte - b'A' + 10,
                _ => return Err(ParseMacError),
            };
            octets[nibbles / 2] = octets[nibbles / 2] << 4 | digit;
            nibbles += 1;
        }
        Ok(Self { octets })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn a_mac_parses_in_every_form_go_accepts() {
        let want = MacAddr::new([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]);
        for text in ["c6:d2:32:6f:8f:44", "C6-D2-32-6F-8F-44", "c6d2.326f.8f44"] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        assert_eq!(want.to_string(), "c6:d2:32:6f:8f:44");
    }

    #[test]
    fn junk_is_no_mac() {
        for text in [
            "",
            "c6:d2:32:6f:8f",
            "c6:d2:32:6f:8f:4g",
            "c6:d2-32:6f:8f:44",
            "c6d2.326f-8f44",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(ParseMacError), "{text}");
        }
    }

    #[test]
    fn a_local_unicast_address_has_the_two_flag_bits_right() {
        let mac = MacAddr::new([0xff; 6]).to_local_unicast();
        assert!(!mac.is_multicast());
        assert_eq!(mac.octets[0] & 0x02, 0x02);
    }
}
