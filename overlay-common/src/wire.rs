//! Header codec: parse, validate, emit. Headers are structs of bytes in wire order with alignment 1.

use core::fmt;

use bytemuck::{Pod, Zeroable};

use crate::addr::{Ipv4Be, Ipv6Be, MacAddr};

pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// IEEE 802.1Q tag.
pub const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
/// IEEE 802.1ad service tag.
pub const ETHERTYPE_SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];
/// The VLAN's number in a tag's control information; 0 is no VLAN but a priority alone.
pub const VLAN_ID_MASK: u32 = 0x0fff;
/// First byte of an IPv4 header that has no options: version 4, five words.
pub const IPV4_NO_OPTIONS: u8 = 0x45;
pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_ICMPV6: u8 = 58;
pub const IPPROTO_SCTP: u8 = 132;
/// Extension headers that the kernel looks for a transport header behind (RFC 8200 §4).
pub const IPPROTO_HOPOPTS: u8 = 0;
pub const IPPROTO_ROUTING: u8 = 43;
pub const IPPROTO_FRAGMENT: u8 = 44;
pub const IPPROTO_AH: u8 = 51;
pub const IPPROTO_DSTOPTS: u8 = 60;

/// Ethernet II.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EthHeader {
    pub dst: MacAddr,
    pub src: MacAddr,
    pub ethertype: [u8; 2],
}

/// IPv4 without options (RFC 791).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version (4) and header length in words (5).
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: [u8; 2],
    pub id: [u8; 2],
    /// Three flag bits and the fragment offset.
    pub fragment: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub check: [u8; 2],
    pub src: Ipv4Be,
    pub dst: Ipv4Be,
}

/// IPv6 (RFC 8200 §3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version (4 bits, 6), traffic class (8), flow label (20).
    pub version_class_label: [u8; 4],
    /// Bytes behind this header.
    pub payload_len: [u8; 2],
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: Ipv6Be,
    pub dst: Ipv6Be,
}

impl Ipv6Header {
    /// The first two bytes: version, traffic class and the top of the flow label.
    #[inline(always)]
    pub const fn start(class: u8) -> [u8; 2] {
        [0x60 | class >> 4, class << 4]
    }

    #[inline(always)]
    pub const fn class(&self) -> u8 {
        let [first, second, ..] = self.version_class_label;
        first << 4 | second >> 4
    }
}

/// UDP (RFC 768).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct UdpHeader {
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
    pub len: [u8; 2],
    pub check: [u8; 2],
}

/// VXLAN (RFC 7348 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VxlanHeader {
    /// `R|R|R|R|I|R|R|R`: [`VXLAN_FLAG_VNI`] set, the others zero on transmission.
    pub flags: u8,
    pub reserved: [u8; 3],
    pub vni: [u8; 3],
    pub reserved2: u8,
}

/// "The I flag MUST be set to 1 for a valid VXLAN Network ID (VNI)" (RFC 7348 §5).
pub const VXLAN_FLAG_VNI: u8 = 0x08;

/// Largest VXLAN network identifier: 24 bits.
pub const VNI_MAX: u32 = 0x00ff_ffff;

/// Why bytes are no header of the wanted kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// Fewer bytes than the header has.
    Truncated { need: usize, have: usize },
    /// VXLAN without a valid VNI: the I flag is clear.
    NoVni { flags: u8 },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need, have } => write!(f, "truncated: {have} of {need} bytes"),
            Self::NoVni { flags } => write!(f, "VXLAN I flag clear (flags {flags:#04x})"),
        }
    }
}

impl core::error::Error for WireError {}

/// Splits a header of type `T` off the front of `bytes`.
pub fn split<T: Pod>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    let need = size_of::<T>();
    let Some((header, rest)) = bytes.split_at_checked(need) else {
        return Err(WireError::Truncated {
            need,
            have: bytes.len(),
        });
    };
    Ok((bytemuck::pod_read_unaligned(header), rest))
}

impl VxlanHeader {
    /// The header to transmit for `vni`, of which the low 24 bits count.
    pub const fn new(vni: u32) -> Self {
        let [_, a, b, c] = vni.to_be_bytes();
        Self {
            flags: VXLAN_FLAG_VNI,
            reserved: [0; 3],
            vni: [a, b, c],
            reserved2: 0,
        }
    }

    /// Parses and validates. Reserved fields are ignored, as RFC 7348 asks of receivers.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (header, rest) = split::<Self>(bytes)?;
        if header.flags & VXLAN_FLAG_VNI == 0 {
            return Err(WireError::NoVni {
                flags: header.flags,
            });
        }
        Ok((header, rest))
    }

    pub const fn vni(&self) -> u32 {
        let [a, b, c] = self.vni;
        u32::from_be_bytes([0, a, b, c])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_vni_survives_the_wire(vni in 0..=VNI_MAX, payload: [u8; 3]) {
            let mut bytes = [0u8; 11];
            bytes[..8].copy_from_slice(bytemuck::bytes_of(&VxlanHeader::new(vni)));
            bytes[8..].copy_from_slice(&payload);
            let (header, rest) = VxlanHeader::parse(&bytes).unwrap();
            prop_assert_eq!(header.vni(), vni);
            prop_assert_eq!(rest, &payload[..]);
        }

        #[test]
        fn reserved_fields_are_zero_on_transmission_and_ignored_on_receipt(
            vni in 0..=VNI_MAX, noise: [u8; 8],
        ) {
            let sent = bytemuck::bytes_of(&VxlanHeader::new(vni)).to_owned_array();
            prop_assert_eq!((sent[0], &sent[1..4], sent[7]), (0x08, &[0u8; 3][..], 0));
            let mut received = sent;
            received[0] |= noise[0];
            received[1..4].copy_from_slice(&noise[1..4]);
            received[7] = noise[7];
            prop_assert_eq!(VxlanHeader::parse(&received).unwrap().0.vni(), vni);
        }

        #[test]
        fn a_clear_i_flag_is_refused(mut bytes: [u8; 8]) {
            bytes[0] &= !VXLAN_FLAG_VNI;
            prop_assert_eq!(
                VxlanHeader::parse(&bytes), Err(WireError::NoVni { flags: bytes[0] })
            );
        }

        #[test]
        fn short_input_is_refused_with_both_lengths(bytes: [u8; 8], have in 0usize..8) {
            prop_assert_eq!(
                VxlanHeader::parse(&bytes[..have]), Err(WireError::Truncated { need: 8, have })
            );
        }

        #[test]
        fn an_ipv4_header_agrees_with_etherparse(
            src: [u8; 4], dst: [u8; 4], ttl: u8, len in 0u16..60000, dscp in 0u8..64,
        ) {
            let mut theirs = etherparse::Ipv4Header::new(
                len, ttl, etherparse::IpNumber::UDP, src, dst,
            ).unwrap();
            theirs.dscp = etherparse::IpDscp::try_new(dscp).unwrap();
            theirs.header_checksum = theirs.calc_header_checksum();
            let bytes = theirs.to_bytes();
            let (ours, rest) = split::<Ipv4Header>(&bytes).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(ours.src.octets, src);
            prop_assert_eq!(ours.dst.octets, dst);
            prop_assert_eq!((ours.ttl, ours.protocol, ours.tos >> 2), (ttl, IPPROTO_UDP, dscp));
            prop_assert_eq!(u16::from_be_bytes(ours.total_len), len + 20);
            let sum = crate::checksum::add_bytes(0, &bytes);
            prop_assert_eq!(crate::checksum::fold(sum), 0xffff);
        }
    }

    proptest! {
        #[test]
        fn an_ipv6_header_agrees_with_etherparse(
            source: [u8; 16], destination: [u8; 16], hop_limit: u8, payload_length: u16, class: u8,
            label in 0u32..1 << 20,
        ) {
            let theirs = etherparse::Ipv6Header {
                traffic_class: class,
                flow_label: label.try_into().unwrap(),
                payload_length,
                next_header: etherparse::IpNumber::UDP,
                hop_limit,
                source,
                destination,
            };
            let bytes = theirs.to_bytes();
            let (ours, rest) = split::<Ipv6Header>(&bytes).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!((ours.src.octets, ours.dst.octets), (source, destination));
            prop_assert_eq!((ours.hop_limit, ours.next_header), (hop_limit, IPPROTO_UDP));
            prop_assert_eq!(u16::from_be_bytes(ours.payload_len), payload_length);
            prop_assert_eq!(ours.class(), class);
            let [first, second] = Ipv6Header::start(class);
            prop_assert_eq!((first, second), (bytes[0], bytes[1] & 0xf0));
        }
    }

    trait ToOwnedArray {
        fn to_owned_array(&self) -> [u8; 8];
    }

    impl ToOwnedArray for [u8] {
        fn to_owned_array(&self) -> [u8; 8] {
            self.try_into().unwrap()
        }
    }
}
