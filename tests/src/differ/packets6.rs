//! IPv6 packets byte by byte; see [`packets`](super::packets).

use std::net::Ipv6Addr;

use etherparse::checksum::Sum16BitWords;

use super::packets::{Header, set_segment_check};

pub const ICMP6: u8 = 58;
/// Next header values of extension headers.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION_OPTIONS: u8 = 60;

pub const IP6_LEN: usize = 40;
/// Length of a fragment header.
pub const FRAGMENT_LEN: usize = 8;

/// An IPv6 header and its extension headers; lengths are computed.
#[derive(Clone, Debug)]
pub struct Ip6 {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    /// What follows the last header.
    pub protocol: u8,
    pub hop_limit: u8,
    pub class: u8,
    pub label: u32,
    pub extensions: Vec<Extension>,
}

impl Ip6 {
    /// Without extension headers, traffic class and flow label.
    pub const fn plain([source, destination]: [Ipv6Addr; 2], protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol,
            hop_limit: 64,
            class: 0,
            label: 0,
            extensions: Vec::new(),
        }
    }
}

/// An extension header.
#[derive(Clone, Debug)]
pub struct Extension {
    pub kind: u8,
    /// All of it but its first byte, which says what follows: 8 bytes, or a multiple, less one.
    pub rest: Vec<u8>,
}

impl Extension {
    /// Options, padded; `options` has at most 250 bytes.
    pub fn options(kind: u8, options: &[u8]) -> Self {
        let len = (2 + options.len()).next_multiple_of(8);
        let mut rest = vec![u8::try_from(len / 8 - 1).unwrap_or_default()];
        rest.extend(options);
        match len - 1 - rest.len() {
            0 => {}
            // Pad1, PadN.
            1 => rest.push(0),
            pad => {
                rest.extend([1, u8::try_from(pad - 2).unwrap_or_default()]);
                rest.resize(len - 1, 0);
            }
        }
        Self { kind, rest }
    }

    /// `offset` is in units of 8 bytes.
    pub fn fragment(offset: u16, more: bool, id: u32) -> Self {
        let field = offset << 3 | u16::from(more);
        let mut rest = vec![0];
        rest.extend(field.to_be_bytes());
        rest.extend(id.to_be_bytes());
        Self {
            kind: FRAGMENT,
            rest,
        }
    }
}

impl Header for Ip6 {
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut rest = Vec::new();
        let kinds = self.extensions.iter().map(|extension| extension.kind);
        let mut kinds = kinds.chain([self.protocol]);
        let first = kinds.next().unwrap_or(self.protocol);
        for (extension, next) in self.extensions.iter().zip(kinds) {
            rest.push(next);
            rest.extend(&extension.rest);
        }
        rest.extend(payload);
        let word = 6 << 28 | u32::from(self.class) << 20 | self.label & 0x000f_ffff;
        let len = u16::try_from(rest.len()).unwrap_or(u16::MAX);
        let mut packet = word.to_be_bytes().to_vec();
        packet.extend(len.to_be_bytes());
        packet.extend([first, self.hop_limit]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(rest);
        packet
    }

    fn pseudo_sum(&self, len: usize) -> Sum16BitWords {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        Sum16BitWords::new()
            .add_16bytes(self.source.octets())
            .add_16bytes(self.destination.octets())
            .add_4bytes(len.to_be_bytes())
            .add_2bytes([0, self.protocol])
    }

    fn is_ipv6(&self) -> bool {
        true
    }

    fn set_ttl(&mut self, ttl: u8) {
        self.hop_limit = ttl;
    }

    fn set_dscp(&mut self, dscp: u8) {
        self.class = dscp << 2 | self.class & 3;
    }

    fn icmp(&self, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(rest);
        set_segment_check(&mut message, 2, self);
        message
    }
}

/// Next header and offset of what stands behind the extension headers of `packet`.
pub fn upper_layer(packet: &[u8]) -> Option<(u8, usize)> {
    let (mut next, mut at) = (*packet.get(6)?, IP6_LEN);
    while let HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS = next {
        let len = match next {
            FRAGMENT => FRAGMENT_LEN,
            _ => (usize::from(*packet.get(at + 1)?) + 1) * 8,
        };
        (next, at) = (*packet.get(at)?, at + len);
    }
    Some((next, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decode6::decode_ipv6,
        differ::packets::{TCP, UDP, tcp, udp},
    };

    fn ip(protocol: u8) -> Ip6 {
        Ip6 {
            source: "fd00:10:5:1::2".parse().unwrap(),
            destination: "fd00:10:5:2::2".parse().unwrap(),
            protocol,
            hop_limit: 64,
            class: 3,
            label: 0x12345,
            extensions: Vec::new(),
        }
    }

    #[test]
    fn packets_have_correct_checksums() {
        let (datagram, segment, echo) = (ip(UDP), ip(TCP), ip(ICMP6));
        for packet in [
            datagram.packet(&udp(&datagram, [1, 2], b"abc")),
            segment.packet(&tcp(&segment, [1, 2], 0x10, [3, 4], &[1; 4], b"abcd")),
            echo.packet(&echo.icmp(128, 0, b"abcde")),
        ] {
            let frame = [&[0; 12][..], &[0x86, 0xdd], &packet].concat();
            let decoded = decode_ipv6(&frame).unwrap();
            assert!(decoded.has_valid_payload_checksum().unwrap(), "{decoded:?}");
            assert_eq!(decoded.ip.traffic_class, 3);
            assert_eq!(decoded.ip.flow_label.value(), 0x12345);
        }
    }

    #[test]
    fn what_stands_behind_extension_headers_is_found() {
        let mut ip = ip(UDP);
        ip.extensions = vec![
            Extension::options(HOP_BY_HOP, &[]),
            Extension::options(DESTINATION_OPTIONS, &[0x1e, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Extension::fragment(0, true, 7),
        ];
        let packet = ip.packet(&udp(&ip, [1, 2], b"abc"));
        assert_eq!(packet.len(), 40 + 8 + 16 + 8 + 11);
        assert_eq!(upper_layer(&packet), Some((UDP, 72)));
    }
}
