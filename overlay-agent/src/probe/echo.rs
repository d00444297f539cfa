//! ICMP echo, for nodes and peers that answer nothing else.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::net::UdpSocket;

const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];

/// A raw socket of one family.
#[derive(Debug)]
pub struct Echo {
    socket: UdpSocket,
    is_ipv4: bool,
    /// Tells our echoes from those of others.
    identifier: u16,
}

impl Echo {
    /// Takes `CAP_NET_RAW`.
    pub fn open(is_ipv4: bool) -> io::Result<Self> {
        let (family, protocol) = if is_ipv4 {
            (AddressFamily::Inet, SockProtocol::Icmp)
        } else {
            (AddressFamily::Inet6, SockProtocol::IcmpV6)
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, SockType::Raw, flags, protocol)?;
        Ok(Self {
            // What a datagram socket can do is all that is wanted of it.
            socket: UdpSocket::from_std(StdSocket::from(fd))?,
            is_ipv4,
            identifier: rand::random(),
        })
    }

    pub async fn send(&self, to: IpAddr, number: u16) -> io::Result<()> {
        let packet = request(self.is_ipv4, self.identifier, number);
        self.socket.send_to(&packet, SocketAddr::new(to, 0)).await?;
        Ok(())
    }

    /// The next answer to one of ours.
    pub async fn receive(&self) -> io::Result<(IpAddr, u16)> {
        let mut buffer = [0; 128];
        loop {
            let (len, from) = self.socket.recv_from(&mut buffer).await?;
            let packet = buffer.get(..len).unwrap_or_default();
            if let Some((identifier, number)) = reply(self.is_ipv4, packet)
                && identifier == self.identifier
            {
                return Ok((from.ip(), number));
            }
        }
    }
}

fn request(is_ipv4: bool, identifier: u16, number: u16) -> [u8; 8] {
    let [a, b] = identifier.to_be_bytes();
    let [c, d] = number.to_be_bytes();
    let kind = REQUEST[usize::from(!is_ipv4)];
    let mut packet = [kind, 0, 0, 0, a, b, c, d];
    // The kernel writes that of ICMPv6, which covers addresses.
    if is_ipv4 {
        let words = packet
            .chunks_exact(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let sum: u32 = words.sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let [.., high, low] = (!(folded + (folded >> 16))).to_be_bytes();
        (packet[2], packet[3]) = (high, low);
    }
    packet
}

/// Identifier and number of an echo reply. Raw IPv4 sockets give the IP header as well.
fn reply(is_ipv4: bool, packet: &[u8]) -> Option<(u16, u16)> {
    let header = if is_ipv4 {
        usize::from(packet.first()? & 0x0f) * 4
    } else {
        0
    };
    let icmp: &[u8; 8] = packet.get(header..)?.first_chunk()?;
    let [kind, 0, _, _, a, b, c, d] = *icmp else {
        return None;
    };
    let is_reply = kind == REPLY[usize::from(!is_ipv4)];
    is_reply.then(|| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_checksum_that_rfc_1071_wants() {
        let packet = request(true, 0x1234, 0x0001);
        assert_eq!(packet, [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1]);
        assert_eq!(request(false, 1, 2), [128, 0, 0, 0, 0, 1, 0, 2]);
    }

    #[test]
    fn replies_are_found_behind_their_headers_and_nothing_else_is() {
        let mut packet = vec![0x45; 20];
        packet.extend([0, 0, 9, 9, 0x12, 0x34, 0, 7]);
        assert_eq!(reply(true, &packet), Some((0x1234, 7)));
        packet[20] = 8;
        assert_eq!(reply(true, &packet), None);
        assert_eq!(reply(false, &[129, 0, 9, 9, 0, 1, 0, 2]), Some((1, 2)));
        for len in 0..8 {
            assert_eq!(reply(false, &[129; 8][..len]), None);
            assert_eq!(reply(true, &[0x45; 27][..len]), None);
        }
    }
}
