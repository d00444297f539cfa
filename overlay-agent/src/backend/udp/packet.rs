//! What flannel's proxy does to IPv4 packets. Pure.

use std::net::Ipv4Addr;

use overlay_common::checksum::{add_bytes, finish};

/// Bytes of an IPv4 header without options.
pub const HEADER: usize = 20;
/// The longest IPv4 packet.
pub const LONGEST: usize = 65_535;
/// As many packets the kernel takes as one at most: `UDP_MAX_SEGMENTS` of the oldest.
pub const MAX_SEGMENTS: usize = 64;
/// Bytes of a packet's payload that an ICMP error quotes.
const QUOTED: usize = 8;
const ICMP_HEADER: usize = 8;
/// The longest IPv4 header and what goes with it.
pub const LONGEST_ERROR: usize = HEADER + ICMP_HEADER + 60 + QUOTED;

const ICMP: u8 = 1;
const DESTINATION_UNREACHABLE: u8 = 3;
const NET_UNREACHABLE: u8 = 0;
/// TTL of flannel's own packets.
const ERROR_TTL: u8 = 8;

/// Source and destination of a packet that begins with an IPv4 header; `None` for anything else.
pub fn addresses(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let header: &[u8; HEADER] = packet.first_chunk()?;
    if header[0] >> 4 != 4 {
        return None;
    }
    Some((address_at(header, 12), address_at(header, 16)))
}

fn address_at(header: &[u8; HEADER], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
}

/// Takes one hop off, and keeps the checksum right (RFC 1624). Returns whether the packet may go on; a
/// packet that may not is left as it is.
pub fn decrement_ttl(packet: &mut [u8]) -> bool {
    let Some(header) = packet.first_chunk_mut::<HEADER>() else {
        return false;
    };
    // flannel lets TTL 0 wrap to 255. No host sends it.
    if header[8] <= 1 {
        return false;
    }
    header[8] -= 1;
    let checksum = u16::from_be_bytes([header[10], header[11]]);
    let (sum, carry) = checksum.overflowing_add(0x0100);
    let sum = sum.wrapping_add(u16::from(carry));
    // Both are zero in one's complement; the kernel writes this one.
    let sum = if sum == u16::MAX { 0 } else { sum };
    [header[10], header[11]] = sum.to_be_bytes();
    true
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    u16::from_be(finish(add_bytes(0, bytes)))
}

/// Writes the answer to a packet for a subnet that nobody has, as flannel does: ICMP "net unreachable" from
/// `own`. Returns its length; `None` for packets that get no answer: those of ICMP, fragments but the
/// first, and what comes from no host.
pub fn net_unreachable(
    offender: &[u8],
    own: Ipv4Addr,
    answer: &mut [u8; LONGEST_ERROR],
) -> Option<usize> {
    let header: &[u8; HEADER] = offender.first_chunk()?;
    let (source, _) = addresses(offender)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let fragment_offset = u16::from_be_bytes([header[6] & 0x1f, header[7]]);
    let is_host = !source.is_unspecified() && !source.is_multicast() && !source.is_broadcast();
    if header[9] == ICMP || fragment_offset != 0 || !is_host || header_len < HEADER {
        return None;
    }
    let quoted = offender.get(..header_len + QUOTED)?;
    let len = HEADER + ICMP_HEADER + quoted.len();
    let packet = answer.get_mut(..len)?;
    packet.fill(0);
    let (ip, icmp) = packet.split_at_mut(HEADER);
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
    ip[8] = ERROR_TTL;
    ip[9] = ICMP;
    ip[12..16].copy_from_slice(&own.octets());
    ip[16..20].copy_from_slice(&source.octets());
    let sum = checksum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    icmp[0] = DESTINATION_UNREACHABLE;
    icmp[1] = NET_UNREACHABLE;
    icmp[ICMP_HEADER..].copy_from_slice(quoted);
    let sum = checksum(icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 5, 1, 0);

    /// From 10.5.1.7 to 10.5.99.1, with these bytes of payload.
    fn packet(ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0];
        packet.extend([10, 5, 1, 7, 10, 5, 99, 1]);
        packet.extend(payload);
        let len = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        let sum = checksum(&packet[..HEADER]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// `decrement_ttl` of proxy_amd64.c, on the checksum as a little-endian machine loads it.
    fn flannels(checksum: u16) -> u16 {
        let loaded = checksum.swap_bytes();
        let step = 0x100u16.swap_bytes();
        let limit = (0xffffu16 - 0x100).swap_bytes();
        let more = if loaded >= limit {
            step.wrapping_add(1)
        } else {
            step
        };
        loaded.wrapping_add(more).swap_bytes()
    }

    #[test]
    fn every_checksum_becomes_what_flannels_proxy_makes_of_it() {
        for sum in 0..=u16::MAX {
            let mut packet = packet(64, 17, &[]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            assert!(decrement_ttl(&mut packet));
            let now = u16::from_be_bytes([packet[10], packet[11]]);
            assert_eq!((packet[8], now), (63, flannels(sum)), "{sum:#06x}");
        }
    }

    #[test]
    fn the_checksum_stays_right_over_all_hops() {
        let mut packet = packet(255, 6, &[]);
        for ttl in (1..255).rev() {
            assert!(decrement_ttl(&mut packet));
            assert_eq!((packet[8], checksum(&packet)), (ttl, 0));
        }
        let last = packet.clone();
        assert!(!decrement_ttl(&mut packet), "one hop left");
        assert_eq!(packet, last);
        packet[8] = 0;
        assert!(!decrement_ttl(&mut packet), "none left");
    }

    #[test]
    fn only_whole_ipv4_headers_have_addresses() {
        let whole = packet(64, 17, &[0; 8]);
        assert_eq!(
            addresses(&whole),
            Some(([10, 5, 1, 7].into(), [10, 5, 99, 1].into()))
        );
        assert_eq!(addresses(&whole[..HEADER - 1]), None);
        let mut ipv6 = whole;
        ipv6[0] = 0x60;
        assert_eq!(addresses(&ipv6), None);
        assert!(!decrement_ttl(&mut [0x45; 19]));
    }

    #[test]
    fn the_answer_to_a_packet_for_nobody_is_flannels_byte_for_byte() {
        let offender = packet(64, 17, &[0xc0, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        let mut answer = [0xff; LONGEST_ERROR];
        let len = net_unreachable(&offender, OWN, &mut answer).unwrap();
        let answer = &answer[..len];
        let mut expected = vec![
            0x45, 0, 0, 56, 0, 0, 0, 0, 8, 1, 0, 0, 10, 5, 1, 0, 10, 5, 1, 7,
        ];
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend(&offender[..28]);
        let sum = checksum(&expected[..20]).to_be_bytes();
        expected[10..12].copy_from_slice(&sum);
        let sum = checksum(&expected[20..]).to_be_bytes();
        expected[22..24].copy_from_slice(&sum);
        assert_eq!(answer, expected);
        assert_eq!((checksum(&answer[..20]), checksum(&answer[20..])), (0, 0));
    }

    #[test]
    fn options_are_quoted_up_to_the_longest_header() {
        for words in 5..=15u8 {
            let mut offender = packet(64, 6, &[7; 48]);
            offender[0] = 0x40 | words;
            let len = net_unreachable(&offender, OWN, &mut [0; LONGEST_ERROR]);
            assert_eq!(len, Some(28 + usize::from(words) * 4 + 8), "{words} words");
        }
    }

    #[test]
    fn errors_are_not_sent_about_icmp_later_fragments_and_what_has_no_sender() {
        let udp = packet(64, 17, &[0; 8]);
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packet = udp.clone();
            change(&mut packet);
            net_unreachable(&packet, OWN, &mut [0; LONGEST_ERROR]).is_none()
        };
        assert!(!refused(&|_| {}));
        assert!(!refused(&|packet| packet[6] = 0x20), "a first fragment");
        assert!(refused(&|packet| packet[9] = ICMP));
        assert!(refused(&|packet| packet[7] = 1));
        assert!(refused(&|packet| packet[6] = 0x01));
        assert!(refused(&|packet| packet[12..16].fill(0)));
        assert!(refused(&|packet| packet[12] = 224));
        assert!(refused(&|packet| packet[0] = 0x44));
        assert!(refused(&|packet| packet[0] = 0x46), "shorter than it says");
        assert!(refused(&|packet| packet.truncate(27)));
    }
}
