//! IPv4 packets, read plainly.

use overlay_common::{addr::Ipv4Be, family::V4};

use super::{Header, Reading, VXLAN_PORT, address};
use crate::prog::packet::Ipv4Extras;

impl Reading for V4 {
    const ECHO: [[u8; 2]; 2] = [[8, 0], [0, 0]];

    fn read(ip: &[u8]) -> Option<Header<Self>> {
        let (src, dst) = (address::<Self>(ip, 12)?, address::<Self>(ip, 16)?);
        Some(Header {
            src,
            dst,
            protocol: ip[9],
            ttl: ip[8],
            tos: ip[1],
            len: u16::from_be_bytes([ip[2], ip[3]]).into(),
            // Not one with an offset, or of which more fragments follow.
            is_plain: ip[0] == 0x45 && fragment_offset(ip) == 0 && ip[6] & 0x20 == 0,
        })
    }

    fn tunnel_destination(ip: &[u8]) -> Option<Ipv4Be> {
        let header = Self::read(ip)?;
        let port = usize::from(ip[0] & 0xf) * 4 + 2;
        let is_to_port = ip[0] >> 4 == 4
            && header.protocol == 17
            && fragment_offset(ip) == 0
            && ip.get(port..port + 2) == Some(&VXLAN_PORT.to_be_bytes());
        is_to_port.then_some(header.dst)
    }

    /// `ip_decrease_ttl` of the kernel's `include/net/ip.h`. Unlike a new checksum it keeps a wrong
    /// one wrong.
    fn forwarded(ip: &[u8]) -> Vec<u8> {
        let mut ip = ip.to_vec();
        let check = u32::from(u16::from_be_bytes([ip[10], ip[11]])) + 0x100;
        let check = check + u32::from(check >= 0xffff);
        ip[10..12].copy_from_slice(&check.to_be_bytes()[2..]);
        ip[8] -= 1;
        ip
    }

    /// With the checksum as RFC 1624 equation 3 says.
    fn set_tos(ip: &mut [u8], tos: u8) {
        let word = |ip: &[u8], at: usize| u32::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
        let (check, old) = (word(ip, 10), word(ip, 0));
        ip[1] = tos;
        let mut sum = (check ^ 0xffff) + (old ^ 0xffff) + word(ip, 0);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        ip[10..12].copy_from_slice(&(sum ^ 0xffff).to_be_bytes()[2..]);
    }

    fn outer_extras() -> Ipv4Extras {
        Ipv4Extras {
            id: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            options: Vec::new(),
        }
    }

    fn is_kept(address: Ipv4Be) -> bool {
        match address.octets {
            [224..=239, b, c, _] => b == 0 && c == 0,
            [192, 168, 77, last] | [10, 244, 1, last] => last == 1 || last == 255,
            [192, 168, 88, _] | [10, 244, 2..=5, _] => false,
            _ => true,
        }
    }
}

fn fragment_offset(ip: &[u8]) -> u16 {
    u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff
}
