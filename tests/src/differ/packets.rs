//! Packets byte by byte, right or wrong on purpose.

use std::net::Ipv4Addr;

use etherparse::checksum::Sum16BitWords;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Offset of the header checksum, and of what it covers in packets without options.
pub const IP_LEN: usize = 20;
const CHECK: usize = 10;

/// Don't fragment, and more fragments: bits of the fragment field.
pub const DONT_FRAGMENT: u16 = 0x4000;
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// An IP header of either family, as the segments behind it need it.
pub trait Header: Clone {
    /// The packet with this header and what it carries.
    fn packet(&self, payload: &[u8]) -> Vec<u8>;
    /// The sum over the pseudo header of a segment of `len` bytes.
    fn pseudo_sum(&self, len: usize) -> Sum16BitWords;
    fn is_ipv6(&self) -> bool;
    fn set_ttl(&mut self, ttl: u8);
    fn set_dscp(&mut self, dscp: u8);
    /// An ICMP message of the family; `rest` is what follows type, code and checksum.
    fn icmp(&self, kind: u8, code: u8, rest: &[u8]) -> Vec<u8>;
}

/// An IPv4 header; length and checksum are computed.
#[derive(Clone, Debug)]
pub struct Ip {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    /// Flags, and the offset in units of 8 bytes.
    pub fragment: u16,
    /// A multiple of 4 bytes.
    pub options: Vec<u8>,
}

impl Header for Ip {
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header = IP_LEN + self.options.len();
        let total = u16::try_from(header + payload.len()).unwrap_or(u16::MAX);
        let words = u8::try_from(header / 4).unwrap_or(0x0f);
        let mut packet = vec![0x40 | words, self.tos];
        packet.extend(total.to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(&self.options);
        packet.extend(payload);
        set_header_check(&mut packet);
        packet
    }

    fn pseudo_sum(&self, len: usize) -> Sum16BitWords {
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        Sum16BitWords::new()
            .add_4bytes(self.source.octets())
            .add_4bytes(self.destination.octets())
            .add_2bytes([0, self.protocol])
            .add_2bytes(len.to_be_bytes())
    }

    fn is_ipv6(&self) -> bool {
        false
    }

    fn set_ttl(&mut self, ttl: u8) {
        self.ttl = ttl;
    }

    fn set_dscp(&mut self, dscp: u8) {
        self.tos = dscp << 2 | self.tos & 3;
    }

    fn icmp(&self, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(rest);
        let sum = sum(&message);
        message[2..4].copy_from_slice(&sum);
        message
    }
}

/// Length of the header of `packet`, as it says.
pub fn header_len(packet: &[u8]) -> usize {
    packet
        .first()
        .map_or(0, |first| usize::from(first & 0x0f) * 4)
}

/// Computes the header checksum of `packet`.
pub fn set_header_check(packet: &mut [u8]) {
    let header = header_len(packet).max(IP_LEN).min(packet.len());
    packet[CHECK..CHECK + 2].fill(0);
    let sum = sum(&packet[..header]);
    packet[CHECK..CHECK + 2].copy_from_slice(&sum);
}

pub fn has_valid_header_check(packet: &[u8]) -> bool {
    let header = header_len(packet);
    header >= IP_LEN && header <= packet.len() && sum(&packet[..header]) == [0, 0]
}

fn sum(bytes: &[u8]) -> [u8; 2] {
    Sum16BitWords::new()
        .add_slice(bytes)
        .ones_complement()
        .to_ne_bytes()
}

/// Fills in the checksum at `at` of a segment behind `ip`.
pub(super) fn set_segment_check(segment: &mut [u8], at: usize, ip: &impl Header) {
    let sum = ip
        .pseudo_sum(segment.len())
        .add_slice(segment)
        .to_ones_complement_with_no_zero();
    segment[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

/// A UDP datagram.
pub fn udp(ip: &impl Header, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let mut segment = ports.map(u16::to_be_bytes).concat();
    let len = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    segment.extend(len.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    set_segment_check(&mut segment, 6, ip);
    segment
}

/// A TCP segment; options are a multiple of 4 bytes.
pub fn tcp(
    ip: &impl Header,
    ports: [u16; 2],
    flags: u8,
    numbers: [u32; 2],
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = ports.map(u16::to_be_bytes).concat();
    segment.extend(numbers.map(u32::to_be_bytes).concat());
    let words = u8::try_from((20 + options.len()) / 4).unwrap_or(0x0f);
    segment.extend([words << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(payload);
    set_segment_check(&mut segment, 16, ip);
    segment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode_ipv4;

    #[test]
    fn packets_have_correct_checksums() {
        let ip = Ip {
            source: Ipv4Addr::new(10, 5, 1, 2),
            destination: Ipv4Addr::new(10, 5, 2, 2),
            protocol: UDP,
            ttl: 64,
            tos: 3,
            id: 7,
            fragment: DONT_FRAGMENT,
            options: vec![1; 4],
        };
        let tcp_ip = Ip {
            protocol: TCP,
            ..ip.clone()
        };
        let icmp_ip = Ip {
            protocol: ICMP,
            ..ip.clone()
        };
        for packet in [
            ip.packet(&udp(&ip, [1, 2], b"abc")),
            tcp_ip.packet(&tcp(&tcp_ip, [1, 2], 0x10, [3, 4], &[1; 4], b"abcd")),
            icmp_ip.packet(&icmp_ip.icmp(8, 0, b"abcde")),
        ] {
            assert!(has_valid_header_check(&packet));
            let frame = [&[0; 12][..], &[8, 0], &packet].concat();
            let decoded = decode_ipv4(&frame).unwrap();
            assert!(decoded.has_valid_header_checksum(), "{decoded:?}");
            assert!(decoded.has_valid_payload_checksum().unwrap(), "{decoded:?}");
        }
    }
}
