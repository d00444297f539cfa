//! IPv6 packets, read plainly.

use overlay_common::{addr::Ipv6Be, family::V6};

use super::{Header, Reading, VXLAN_PORT, address};
use crate::prog::packet::Ipv6Extras;

/// Extension headers behind which a tunnel packet is found.
const EXTENSIONS: usize = 4;

impl Reading for V6 {
    const ECHO: [[u8; 2]; 2] = [[128, 0], [129, 0]];

    fn read(ip: &[u8]) -> Option<Header<Self>> {
        let (src, dst) = (address::<Self>(ip, 8)?, address::<Self>(ip, 24)?);
        Some(Header {
            src,
            dst,
            protocol: ip[6],
            ttl: ip[7],
            tos: ip[0] << 4 | ip[1] >> 4,
            len: usize::from(u16::from_be_bytes([ip[4], ip[5]])) + 40,
            is_plain: ip[0] >> 4 == 6,
        })
    }

    fn tunnel_destination(ip: &[u8]) -> Option<Ipv6Be> {
        let header = Self::read(ip).filter(|header| header.is_plain)?;
        may_be_to_port(header.protocol, &ip[40..], EXTENSIONS, false).then_some(header.dst)
    }

    fn forwarded(ip: &[u8]) -> Vec<u8> {
        let mut ip = ip.to_vec();
        ip[7] -= 1;
        ip
    }

    fn set_tos(ip: &mut [u8], tos: u8) {
        ip[0] = 0x60 | tos >> 4;
        ip[1] = tos << 4 | ip[1] & 0xf;
    }

    fn outer_extras() -> Ipv6Extras {
        Ipv6Extras {
            flow_label: 0,
            extensions: Vec::new(),
        }
    }

    fn is_kept(address: Ipv6Be) -> bool {
        let [net @ .., _, _, _, _, _, _, _, last] = address.octets;
        let host = &address.octets[8..15];
        // The address of all routers, and the node's own.
        let is_own = host.iter().all(|&octet| octet == 0) && last <= 1;
        match net {
            [0xff, scope, ..] => scope & 0xf <= 2,
            [0x20, 0x01, 0x0d, 0xb8, 0, 0x77, 0, 0] | [0xfd, 0, 0, 0x10, 0x02, 0x44, 0, 1] => {
                is_own
            }
            [0x20, 0x01, 0x0d, 0xb8, 0, 0x88, 0, 0]
            | [0xfd, 0, 0, 0x10, 0x02, 0x44, 0, 2..=5]
            | [0xfe, 0x80, 0, 0, 0, 0, 0, 0] => false,
            _ => true,
        }
    }
}

/// Whether `bytes`, which begin with a header of this kind, are or may be UDP to the tunnels' port. What
/// ends too early may be, if it is a first fragment.
fn may_be_to_port(kind: u8, bytes: &[u8], extensions: usize, is_fragment: bool) -> bool {
    if kind == 17 {
        return bytes
            .get(2..4)
            .map_or(is_fragment, |port| port == VXLAN_PORT.to_be_bytes());
    }
    let len = match (kind, bytes.get(..4)) {
        (0 | 43 | 44 | 51 | 60, None) => return is_fragment,
        (0 | 43 | 60, Some(head)) => 8 + 8 * usize::from(head[1]),
        (44, Some(&[.., high, low])) if high != 0 || low & 0xf8 != 0 => return false,
        (44, Some(_)) => 8,
        (51, Some(head)) => 8 + 4 * usize::from(head[1]),
        _ => return false,
    };
    extensions == 0
        || may_be_to_port(
            bytes[0],
            bytes.get(len..).unwrap_or_default(),
            extensions - 1,
            is_fragment || kind == 44,
        )
}
