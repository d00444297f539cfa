//! The 70 bytes between the outer Ethernet header and the inner IPv6 header, prebuilt per node.
//!
//! The choices are those of [`encap`](crate::encap), but for two that IPv6 makes itself:
//! * UDP checksum 0 is what RFC 8200 §8.1 forbids and RFC 6935 allows to tunnels whose ends agree on
//!   it: such packets go only to nodes that say they take them.
//! * There is no fragmentation on the way. The flow label is 0, as the kernel's device has it.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::Ipv6Be,
    ecn,
    encap::{EncapParams, word_at},
    wire::{ETHERTYPE_IPV6, EthHeader, IPPROTO_UDP, Ipv6Header, UdpHeader, VxlanHeader},
};

/// Outer IPv6, UDP and VXLAN headers and the inner Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EncapHeader6 {
    pub ipv6: Ipv6Header,
    pub udp: UdpHeader,
    pub vxlan: VxlanHeader,
    pub inner_eth: EthHeader,
}

/// Bytes that vxlan over IPv6 adds to a packet: 40 + 8 + 8 + 14.
pub const ENCAP6_LEN: u32 = size_of::<EncapHeader6>() as u32;

impl EncapHeader6 {
    /// The template; per packet are filled in: lengths, traffic class and source port.
    pub const fn template(params: &EncapParams<Ipv6Be>) -> Self {
        let [a, b] = Ipv6Header::start(0);
        Self {
            ipv6: Ipv6Header {
                version_class_label: [a, b, 0, 0],
                payload_len: [0; 2],
                next_header: IPPROTO_UDP,
                hop_limit: params.ttl,
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
                ethertype: ETHERTYPE_IPV6,
            },
        }
    }

    /// The same bytes as words in native order and what is left, to be stored one by one.
    #[inline(always)]
    pub fn words(&self) -> ([u64; 8], u32, u16) {
        let bytes = bytemuck::bytes_of(self);
        let word = |at| word_at(bytes, at);
        let words = [
            word(0),
            word(8),
            word(16),
            word(24),
            word(32),
            word(40),
            word(48),
            word(56),
        ];
        let four = u32::from_ne_bytes([bytes[64], bytes[65], bytes[66], bytes[67]]);
        (words, four, u16::from_ne_bytes([bytes[68], bytes[69]]))
    }

    /// The finished headers for one packet; `inner_len` is the length of the inner IP packet. The
    /// BPF program writes the same bytes piecewise; this is what tests compare it with.
    #[must_use]
    pub fn finish(mut self, inner_len: u16, inner_class: u8, source_port: u16) -> Self {
        const OUTER: u16 = ENCAP6_LEN as u16 - size_of::<Ipv6Header>() as u16;
        let len = inner_len.wrapping_add(OUTER).to_be_bytes();
        let [a, b] = Ipv6Header::start(ecn::encapsulate(inner_class));
        self.ipv6.version_class_label = [a, b, 0, 0];
        self.ipv6.payload_len = len;
        self.udp.src_port = source_port.to_be_bytes();
        self.udp.len = len;
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::MacAddr;

    proptest! {
        #[test]
        fn etherparse_reads_back_what_was_built(
            local: [u8; 16], remote: [u8; 16], vni in 0u32..1 << 24, port in 1u16.., hop_limit: u8,
            inner_src: [u8; 6], inner_dst: [u8; 6],
            inner_len in 40u16..=65505, class: u8, source_port: u16,
        ) {
            let header = EncapHeader6::template(&EncapParams {
                local: Ipv6Be { octets: local },
                remote: Ipv6Be { octets: remote },
                vni, port, ttl: hop_limit,
                inner_src: MacAddr::new(inner_src),
                inner_dst: MacAddr::new(inner_dst),
            })
            .finish(inner_len, class, source_port);
            let bytes = bytemuck::bytes_of(&header);

            let (ip, rest) = etherparse::Ipv6Header::from_slice(bytes).unwrap();
            prop_assert_eq!((ip.source, ip.destination), (local, remote));
            prop_assert_eq!(ip.payload_length, inner_len + 30);
            prop_assert_eq!((ip.hop_limit, ip.flow_label.value()), (hop_limit, 0));
            prop_assert_eq!(ip.traffic_class, ecn::encapsulate(class));
            prop_assert_eq!(ip.next_header, etherparse::IpNumber::UDP);
            let (udp, rest) = etherparse::UdpHeader::from_slice(rest).unwrap();
            prop_assert_eq!((udp.source_port, udp.destination_port), (source_port, port));
            prop_assert_eq!((udp.length, udp.checksum), (inner_len + 30, 0));
            let (vxlan, rest) = VxlanHeader::parse(rest).unwrap();
            prop_assert_eq!(vxlan, VxlanHeader::new(vni));
            let (eth, rest) = etherparse::Ethernet2Header::from_slice(rest).unwrap();
            prop_assert_eq!((eth.source, eth.destination), (inner_src, inner_dst));
            prop_assert_eq!(eth.ether_type, etherparse::EtherType::IPV6);
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn the_words_are_the_headers_bytes(bytes: [[u8; 10]; 7]) {
            let header: EncapHeader6 = bytemuck::pod_read_unaligned(bytes.as_flattened());
            let (words, four, two) = header.words();
            let mut joined = bytemuck::bytes_of(&words).to_vec();
            joined.extend(four.to_ne_bytes());
            joined.extend(two.to_ne_bytes());
            prop_assert_eq!(joined, bytes.as_flattened());
        }
    }
}
