//! Taking captured frames apart. Nothing here is shared with the datapath: headers are parsed by
//! etherparse, and the eight bytes of VXLAN are left as they are.

use anyhow::{Context as _, Result, ensure};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4HeaderSlice, UdpHeader};

/// An IPv4 packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet {
    pub eth: Ethernet2Header,
    pub ip: Ipv4Header,
    /// Everything after the IP header, without Ethernet padding.
    pub payload: Vec<u8>,
}

/// A VXLAN packet.
#[derive(Clone, Debug)]
pub struct Vxlan {
    pub eth: Ethernet2Header,
    pub ip: Ipv4Header,
    pub udp: UdpHeader,
    /// The VXLAN header, byte by byte.
    pub vxlan: [u8; 8],
    pub inner: Packet,
}

/// Parses an Ethernet frame that carries IPv4.
pub fn decode_ipv4(frame: &[u8]) -> Result<Packet> {
    let (eth, rest) = Ethernet2Header::from_slice(frame)?;
    ensure!(
        eth.ether_type == EtherType::IPV4,
        "EtherType {:?}",
        eth.ether_type
    );
    let (ip, rest) = Ipv4Header::from_slice(rest)?;
    let len = usize::from(ip.total_len).checked_sub(ip.header_len());
    let payload = len.and_then(|len| rest.get(..len));
    let payload = payload.with_context(|| {
        format!(
            "an IP length of {} with {} bytes behind the header",
            ip.total_len,
            rest.len()
        )
    })?;
    Ok(Packet {
        eth,
        payload: payload.to_vec(),
        ip,
    })
}

/// Parses a frame as VXLAN in UDP in IPv4, whatever its UDP ports are.
pub fn decode_vxlan(frame: &[u8]) -> Result<Vxlan> {
    let Packet { eth, ip, payload } = decode_ipv4(frame)?;
    ensure!(
        ip.protocol == IpNumber::UDP,
        "IP protocol {:?}",
        ip.protocol
    );
    let (udp, rest) = UdpHeader::from_slice(&payload)?;
    let (vxlan, inner) = rest
        .split_first_chunk::<8>()
        .context("no room for a VXLAN header")?;
    Ok(Vxlan {
        eth,
        ip,
        udp,
        vxlan: *vxlan,
        inner: decode_ipv4(inner).context("inner frame")?,
    })
}

/// True for IPv4 UDP frames to `port`, without a look at what they carry.
pub fn is_udp_to(frame: &[u8], port: u16) -> bool {
    decode_ipv4(frame).is_ok_and(|packet| {
        packet.ip.protocol == IpNumber::UDP
            && UdpHeader::from_slice(&packet.payload)
                .is_ok_and(|(udp, _)| udp.destination_port == port)
    })
}

impl Packet {
    /// Checks the IP header checksum.
    pub fn has_valid_header_checksum(&self) -> bool {
        self.ip.header_checksum == self.ip.calc_header_checksum()
    }

    /// Checks the checksum of the UDP, TCP or ICMP message inside.
    pub fn has_valid_payload_checksum(&self) -> Result<bool> {
        let header = self.ip.to_bytes();
        let ip = Ipv4HeaderSlice::from_slice(&header)?;
        let sum = match self.ip.protocol {
            IpNumber::UDP | IpNumber::TCP => {
                let length = u16::try_from(self.payload.len())?;
                etherparse::checksum::Sum16BitWords::new()
                    .add_4bytes(ip.source())
                    .add_4bytes(ip.destination())
                    .add_2bytes([0, self.ip.protocol.0])
                    .add_2bytes(length.to_be_bytes())
            }
            IpNumber::ICMP => etherparse::checksum::Sum16BitWords::new(),
            other => anyhow::bail!("IP protocol {other:?}"),
        };
        // A message that carries its own correct checksum sums up to zero.
        Ok(sum.add_slice(&self.payload).ones_complement() == 0)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn udp(payload: &[u8], port: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1234, port)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    #[test]
    fn a_vxlan_packet_comes_apart() {
        let inner = udp(b"hello", 53);
        let mut payload = vec![0x08, 0, 0, 0, 0, 0, 1, 0];
        payload.extend(&inner);
        let frame = udp(&payload, 8472);
        let packet = decode_vxlan(&frame).unwrap();
        assert_eq!((packet.udp.destination_port, packet.vxlan[6]), (8472, 1));
        assert_eq!(packet.inner.payload[8..], *b"hello");
        assert!(packet.inner.has_valid_header_checksum());
        assert!(packet.inner.has_valid_payload_checksum().unwrap());
        assert!(is_udp_to(&frame, 8472) && !is_udp_to(&frame, 53));
    }

    #[test]
    fn padding_is_not_payload_and_damage_is_seen() {
        let mut frame = udp(b"x", 53);
        frame.extend([0; 20]);
        let mut packet = decode_ipv4(&frame).unwrap();
        assert_eq!(packet.payload.len(), 9);
        packet.payload[8] ^= 1;
        assert!(!packet.has_valid_payload_checksum().unwrap());
    }
}
