//! The 50 bytes between the outer Ethernet header and the inner IP header, prebuilt per node.
//!
//! Choices, and where they come from:
//! * UDP checksum 0: RFC 7348 §4.1 allows it over IPv4 and receivers must accept it. A checksum
//!   would have to cover the payload, which the fast path never touches, and
//!   `bpf_skb_adjust_room` cannot ask the segmentation engine for one.
//! * DF set and identification 0: an atomic datagram (RFC 6864 §4.1). The fast path sends only
//!   what fits the path MTU, so it needs no fragmentation, and an identification that repeats
//!   without DF would be a reassembly hazard.
//! * DSCP 0, ECN from the inner header: what `flannel.<VNI>` does with `tos 0`.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Ipv4Be, MacAddr},
    checksum,
    wire::{
        ETHERTYPE_IPV4, EthHeader, IPPROTO_UDP, IPV4_NO_OPTIONS, Ipv4Header, UdpHeader, VxlanHeader,
    },
};

/// Outer IPv4, UDP and VXLAN headers and the inner Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EncapHeader {
    pub ipv4: Ipv4Header,
    pub udp: UdpHeader,
    pub vxlan: VxlanHeader,
    pub inner_eth: EthHeader,
}

/// Bytes that vxlan over IPv4 adds to a packet: 20 + 8 + 8 + 14.
pub const ENCAP_LEN: u32 = size_of::<EncapHeader>() as u32;

/// Bytes that flannel's udp backend adds to a packet, 20 + 8: the first of an [`EncapHeader`].
pub const DATAGRAM_LEN: u32 = offset_of!(EncapHeader, vxlan) as u32;

/// Don't-fragment flag, fragment offset 0.
const DF: [u8; 2] = [0x40, 0x00];

/// What the headers for one remote node are made of.
#[derive(Clone, Copy, Debug)]
pub struct EncapParams<A = Ipv4Be> {
    /// This node's VTEP address.
    pub local: A,
    pub remote: A,
    pub vni: u32,
    /// UDP destination port, host order.
    pub port: u16,
    /// TTL or hop limit of the outer header (`net.ipv4.ip_default_ttl`,
    /// `net.ipv6.conf.<underlay>.hop_limit`).
    pub ttl: u8,
    /// Own VTEP MAC.
    pub inner_src: MacAddr,
    /// The remote node's VTEP MAC: it drops frames addressed to any other.
    pub inner_dst: MacAddr,
}

impl EncapHeader {
    /// The template; per packet are filled in: lengths, TOS, IP checksum and source port.
    pub const fn template(params: &EncapParams) -> Self {
        Self {
            ipv4: Ipv4Header {
                version_ihl: IPV4_NO_OPTIONS,
                tos: 0,
                total_len: [0; 2],
                id: [0; 2],
                fragment: DF,
                ttl: params.ttl,
                protocol: IPPROTO_UDP,
                check: [0; 2],
                src: params.local,
                dst: params.remote,
            },
            udp: UdpHeader {
                src_port: [0; 2],
                dst_port: params.port.to_be_bytes(),
                len: [0; 2],
                check: [0; 2],
            },
            vxlan: VxlanHeader::new(params.vni),
            inner_eth: EthHeader {
                dst: params.inner_dst,
                src: params.inner_src,
                ethertype: ETHERTYPE_IPV4,
            },
        }
    }

    /// The template of the udp backend's headers, of which the first [`DATAGRAM_LEN`] bytes count; per packet
    /// are filled in: lengths and IP checksum. As in datagrams of a socket, the TOS is 0, ECN and all.
    pub fn datagram(params: &EncapParams) -> Self {
        let port = params.port.to_be_bytes();
        let vxlan = Self::template(params);
        Self {
            ipv4: vxlan.ipv4,
            udp: UdpHeader {
                src_port: port,
                ..vxlan.udp
            },
            ..Self::default()
        }
    }

    /// The same bytes as words in native order, to be stored one by one: a copy of the whole is
    /// byte by byte in BPF.
    #[inline(always)]
    pub fn words(&self) -> ([u64; 6], u16) {
        let bytes = bytemuck::bytes_of(self);
        let word = |at| word_at(bytes, at);
        let last = u16::from_ne_bytes([bytes[48], bytes[49]]);
        (
            [word(0), word(8), word(16), word(24), word(32), word(40)],
            last,
        )
    }

    /// Sum over the template's IP header for [`outer_ipv4_check`].
    pub fn ipv4_sum(&self) -> u32 {
        checksum::add_bytes(0, bytemuck::bytes_of(&self.ipv4))
    }

    /// The finished headers for one packet; `inner_len` is the length of the inner IP packet. The
    /// BPF program writes the same bytes piecewise; this is what tests compare it with.
    #[must_use]
    pub fn finish(mut self, inner_len: u16, inner_tos: u8, source_port: u16) -> Self {
        let tos = crate::ecn::encapsulate(inner_tos);
        let total_len = inner_len.wrapping_add(ENCAP_LEN as u16).to_be_bytes();
        let check = outer_ipv4_check(self.ipv4_sum(), total_len, tos);
        self.ipv4.tos = tos;
        self.ipv4.total_len = total_len;
        self.ipv4.check = check.to_ne_bytes();
        self.udp.src_port = source_port.to_be_bytes();
        self.udp.len = inner_len.wrapping_add(ENCAP_LEN as u16 - 20).to_be_bytes();
        self
    }

    /// The finished headers of the udp backend for one packet, as [`Self::finish`].
    #[must_use]
    pub fn finish_datagram(mut self, inner_len: u16) -> [u8; DATAGRAM_LEN as usize] {
        let total_len = inner_len.wrapping_add(DATAGRAM_LEN as u16).to_be_bytes();
        let check = outer_ipv4_check(self.ipv4_sum(), total_len, 0);
        self.ipv4.total_len = total_len;
        self.ipv4.check = check.to_ne_bytes();
        self.udp.len = inner_len
            .wrapping_add(DATAGRAM_LEN as u16 - 20)
            .to_be_bytes();
        let mut bytes = [0; DATAGRAM_LEN as usize];
        bytes.copy_from_slice(&bytemuck::bytes_of(&self)[..DATAGRAM_LEN as usize]);
        bytes
    }
}

/// The eight bytes at `at`, in native order.
#[inline(always)]
pub(crate) fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes([
        bytes[at],
        bytes[at + 1],
        bytes[at + 2],
        bytes[at + 3],
        bytes[at + 4],
        bytes[at + 5],
        bytes[at + 6],
        bytes[at + 7],
    ])
}

/// Checksum (native order, ready to store) of the outer IP header: the template's sum plus the two
/// words that vary.
#[inline(always)]
pub const fn outer_ipv4_check(template_sum: u32, total_len: [u8; 2], tos: u8) -> u16 {
    let first_word = u16::from_ne_bytes([0, tos]) as u32;
    checksum::finish(template_sum + u16::from_ne_bytes(total_len) as u32 + first_word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn etherparse_reads_back_what_was_built(
            local: [u8; 4], remote: [u8; 4], vni in 0u32..1 << 24, port in 1u16.., ttl: u8,
            inner_src: [u8; 6], inner_dst: [u8; 6],
            inner_len in 20u16..=65485, tos: u8, source_port: u16,
        ) {
            let header = EncapHeader::template(&EncapParams {
                local: Ipv4Be { octets: local },
                remote: Ipv4Be { octets: remote },
                vni, port, ttl,
                inner_src: MacAddr::new(inner_src),
                inner_dst: MacAddr::new(inner_dst),
            })
            .finish(inner_len, tos, source_port);
            let bytes = bytemuck::bytes_of(&header);

            let (ip, rest) = etherparse::Ipv4Header::from_slice(bytes).unwrap();
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            prop_assert_eq!((ip.source, ip.destination), (local, remote));
            prop_assert_eq!(ip.total_len, inner_len + 50);
            prop_assert!(ip.dont_fragment && !ip.more_fragments);
            prop_assert_eq!((ip.identification, ip.time_to_live, ip.dscp.value()), (0, ttl, 0));
            prop_assert_eq!(ip.ecn.value(), crate::ecn::encapsulate(tos));
            let (udp, rest) = etherparse::UdpHeader::from_slice(rest).unwrap();
            prop_assert_eq!((udp.source_port, udp.destination_port), (source_port, port));
            prop_assert_eq!((udp.length, udp.checksum), (inner_len + 30, 0));
            let (vxlan, rest) = VxlanHeader::parse(rest).unwrap();
            prop_assert_eq!(vxlan, VxlanHeader::new(vni));
            let (eth, rest) = etherparse::Ethernet2Header::from_slice(rest).unwrap();
            prop_assert_eq!((eth.source, eth.destination), (inner_src, inner_dst));
            prop_assert_eq!(eth.ether_type, etherparse::EtherType::IPV4);
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn etherparse_reads_back_the_headers_of_a_datagram(
            local: [u8; 4], remote: [u8; 4], port in 1u16.., ttl: u8, inner_len in 20u16..=65507,
        ) {
            let bytes = EncapHeader::datagram(&EncapParams {
                local: Ipv4Be { octets: local },
                remote: Ipv4Be { octets: remote },
                vni: 0, port, ttl,
                inner_src: MacAddr::ZERO,
                inner_dst: MacAddr::ZERO,
            })
            .finish_datagram(inner_len);

            let (ip, rest) = etherparse::Ipv4Header::from_slice(&bytes).unwrap();
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            prop_assert_eq!((ip.source, ip.destination), (local, remote));
            prop_assert_eq!((ip.total_len, ip.time_to_live), (inner_len + 28, ttl));
            prop_assert!(ip.dont_fragment && !ip.more_fragments);
            prop_assert_eq!((ip.identification, ip.dscp.value(), ip.ecn.value()), (0, 0, 0));
            let (udp, rest) = etherparse::UdpHeader::from_slice(rest).unwrap();
            prop_assert_eq!((udp.source_port, udp.destination_port), (port, port));
            prop_assert_eq!((udp.length, udp.checksum), (inner_len + 8, 0));
            prop_assert!(rest.is_empty());
        }
    }
}
