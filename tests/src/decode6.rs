//! Taking captured IPv6 frames apart; see [`decode`](crate::decode).

use anyhow::{Context as _, Result, ensure};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv6Header, UdpHeader};

/// An IPv6 packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet6 {
    pub eth: Ethernet2Header,
    pub ip: Ipv6Header,
    /// Everything after the fixed header, extension headers included, without Ethernet padding.
    pub payload: Vec<u8>,
}

/// Parses an Ethernet frame that carries IPv6.
pub fn decode_ipv6(frame: &[u8]) -> Result<Packet6> {
    let (eth, rest) = Ethernet2Header::from_slice(frame)?;
    ensure!(
        eth.ether_type == EtherType::IPV6,
        "EtherType {:?}",
        eth.ether_type
    );
    let (ip, rest) = Ipv6Header::from_slice(rest)?;
    let payload = rest.get(..ip.payload_length.into());
    let payload = payload.with_context(|| {
        format!(
            "a payload length of {} with {} bytes behind the header",
            ip.payload_length,
            rest.len()
        )
    })?;
    Ok(Packet6 {
        eth,
        payload: payload.to_vec(),
        ip,
    })
}

/// The outer UDP checksum of a frame that is UDP over IPv6 to `port`.
pub fn udp_checksum_to(frame: &[u8], port: u16) -> Option<u16> {
    let packet = decode_ipv6(frame).ok()?;
    let (udp, _) = UdpHeader::from_slice(&packet.payload).ok()?;
    let is_it = packet.ip.next_header == IpNumber::UDP && udp.destination_port == port;
    is_it.then_some(udp.checksum)
}

impl Packet6 {
    /// Checks the checksum of the UDP, TCP or ICMPv6 message directly behind the fixed header.
    pub fn has_valid_payload_checksum(&self) -> Result<bool> {
        let (IpNumber::UDP | IpNumber::TCP | IpNumber::IPV6_ICMP) = self.ip.next_header else {
            anyhow::bail!("next header {:?}", self.ip.next_header);
        };
        let length = u32::try_from(self.payload.len())?;
        let sum = etherparse::checksum::Sum16BitWords::new()
            .add_16bytes(self.ip.source)
            .add_16bytes(self.ip.destination)
            .add_4bytes(length.to_be_bytes())
            .add_2bytes([0, self.ip.next_header.0]);
        // A message that carries its own correct checksum sums up to zero.
        Ok(sum.add_slice(&self.payload).ones_complement() == 0)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn padding_is_not_payload_and_damage_is_seen() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 64)
            .udp(1234, 8472)
            .write(&mut frame, b"hello")
            .unwrap();
        frame.extend([0; 20]);
        let mut packet = decode_ipv6(&frame).unwrap();
        assert_eq!(packet.payload[8..], *b"hello");
        assert!(packet.has_valid_payload_checksum().unwrap());
        assert!(udp_checksum_to(&frame, 8472).is_some_and(|checksum| checksum != 0));
        assert_eq!(udp_checksum_to(&frame, 53), None);
        packet.payload[9] ^= 1;
        assert!(!packet.has_valid_payload_checksum().unwrap());
    }
}
