//! Which frames at the underlay are of this node's pods, and of which flow. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::Subnets;

const ETHERNET: usize = 14;
const UDP: usize = 8;
const VXLAN: usize = 8;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// What tells pods' packets from others.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Of this node's pods.
    pub subnets: Subnets,
    /// UDP ports of the tunnels.
    pub ports: Vec<u16>,
    /// Whether there is an IP packet in the tunnels' datagrams, and no frame.
    pub datagrams: bool,
}

/// A flow, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId {
    pub protocol: u8,
    pub local: IpAddr,
    /// ICMP echo: the identifier on the side that asks, 0 on the other. Without ports 0.
    pub local_port: u16,
    pub remote: IpAddr,
    pub remote_port: u16,
}

/// A pod's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub flow: FlowId,
    pub from_pod: bool,
    /// Of the packet, without the tunnel's headers.
    pub bytes: usize,
}

/// An IP packet, as far as it concerns flows.
struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Behind the IP header; of a later fragment nothing.
    payload: &'a [u8],
}

/// What is in a frame of this length, of which the beginning is at hand.
pub fn read(head: &[u8], len: usize, place: &Place) -> Option<Sighting> {
    let outer = Packet::behind_ethernet(head)?;
    let inner = outer.tunnelled(place);
    let (packet, headers) = match inner.and_then(|inner| Packet::inner(inner, place)) {
        Some(packet) => {
            let inner_len = inner.map_or(0, <[u8]>::len);
            let frame = if place.datagrams { 0 } else { ETHERNET };
            (packet, head.len() - inner_len + frame)
        }
        None => (outer, ETHERNET),
    };
    let bytes = len.checked_sub(headers)?;
    let from_pod = place.is_local(packet.source);
    if from_pod == place.is_local(packet.destination) {
        return None;
    }
    let [from, to] = packet.ports();
    let flow = if from_pod {
        FlowId {
            protocol: packet.protocol,
            local: packet.source,
            local_port: from,
            remote: packet.destination,
            remote_port: to,
        }
    } else {
        FlowId {
            protocol: packet.protocol,
            local: packet.destination,
            local_port: to,
            remote: packet.source,
            remote_port: from,
        }
    };
    Some(Sighting {
        flow,
        from_pod,
        bytes,
    })
}

impl Place {
    fn is_local(&self, address: IpAddr) -> bool {
        let Subnets { ipv4, ipv6 } = self.subnets;
        match address {
            IpAddr::V4(address) => ipv4.is_some_and(|subnet| subnet.contains(address)),
            IpAddr::V6(address) => ipv6.is_some_and(|subnet| subnet.contains(address)),
        }
    }
}

impl<'a> Packet<'a> {
    fn behind_ethernet(frame: &'a [u8]) -> Option<Self> {
        let (header, packet) = frame.split_at_checked(ETHERNET)?;
        match header.last_chunk()? {
            [0x08, 0x00] => Self::ipv4(packet),
            [0x86, 0xdd] => Self::ipv6(packet),
            _ => None,
        }
    }

    fn ipv4(packet: &'a [u8]) -> Option<Self> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let offset = u16::from_be_bytes([header[6] & 0x1f, header[7]]);
        let behind = packet.get(usize::from(header[0] & 0x0f) * 4..);
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 4] = *header.get(at..)?.first_chunk()?;
            Some(Ipv4Addr::from(octets).into())
        };
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            protocol: header[9],
            payload: behind.filter(|_| offset == 0).unwrap_or_default(),
        })
    }

    fn ipv6(packet: &'a [u8]) -> Option<Self> {
        let (header, payload): (&[u8; 40], _) = packet.split_first_chunk()?;
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 16] = *header.get(at..)?.first_chunk()?;
            Some(Ipv6Addr::from(octets).into())
        };
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            protocol: header[6],
            payload,
        })
    }

    /// What is in a tunnel packet.
    fn tunnelled(&self, place: &Place) -> Option<&'a [u8]> {
        let [.., high, low] = *self.payload.first_chunk::<4>()?;
        let is_tunnel = place.ports.contains(&u16::from_be_bytes([high, low]));
        if self.protocol != PROTOCOL_UDP || !is_tunnel {
            return None;
        }
        let headers = if place.datagrams { UDP } else { UDP + VXLAN };
        self.payload.get(headers..)
    }

    fn inner(inner: &'a [u8], place: &Place) -> Option<Self> {
        if place.datagrams {
            Self::ipv4(inner).filter(|_| inner.first().is_some_and(|first| first >> 4 == 4))
        } else {
            Self::behind_ethernet(inner)
        }
    }

    /// Source and destination port, or what stands for them.
    fn ports(&self) -> [u16; 2] {
        let number = |at: usize| -> u16 {
            let bytes = self.payload.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u16::from_be_bytes(*bytes))
        };
        match (self.protocol, self.payload.first()) {
            (TCP | PROTOCOL_UDP | SCTP, _) => [number(0), number(2)],
            (ICMP, Some(8)) | (ICMPV6, Some(128)) => [number(4), 0],
            (ICMP, Some(0)) | (ICMPV6, Some(129)) => [0, number(4)],
            _ => [0, 0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: [u8; 4] = [10, 5, 1, 2];
    const FAR: [u8; 4] = [10, 5, 2, 3];

    fn place() -> Place {
        Place {
            subnets: Subnets {
                ipv4: "10.5.1.0/24".parse().ok(),
                ipv6: "fd00:1::/64".parse().ok(),
            },
            ports: vec![8472],
            datagrams: false,
        }
    }

    fn frame(ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &ethertype, packet].concat()
    }

    fn ipv4(protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend(payload);
        frame([0x08, 0x00], &packet)
    }

    fn tunnelled(inner: &[u8]) -> Vec<u8> {
        let headers = [0xc0, 0x01, 0x21, 0x18, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0];
        let payload = [&headers, inner].concat();
        ipv4(PROTOCOL_UDP, [192, 168, 0, 1], [192, 168, 0, 2], &payload)
    }

    fn seen(frame: &[u8]) -> Option<(FlowId, bool, usize)> {
        let seen = read(frame, frame.len() + 1_000, &place())?;
        Some((seen.flow, seen.from_pod, seen.bytes))
    }

    fn flow(protocol: u8, local_port: u16, remote_port: u16) -> FlowId {
        FlowId {
            protocol,
            local: POD.into(),
            local_port,
            remote: FAR.into(),
            remote_port,
        }
    }

    #[test]
    fn the_udp_backends_datagrams_have_packets_in_them() {
        let place = Place {
            ports: vec![8285],
            datagrams: true,
            ..place()
        };
        let inner = &ipv4(TCP, POD, FAR, &[0x30, 0x39, 0, 80, 1, 2, 3])[ETHERNET..];
        let udp = [&[0x20, 0x5d, 0x20, 0x5d, 0, 0, 0, 0], inner].concat();
        let datagram = ipv4(PROTOCOL_UDP, [192, 0, 2, 1], [192, 0, 2, 2], &udp);
        let seen = read(&datagram, datagram.len(), &place).unwrap();
        assert_eq!((seen.flow.local_port, seen.flow.remote_port), (12_345, 80));
        assert_eq!((seen.from_pod, seen.bytes), (true, inner.len()));
    }

    #[test]
    fn both_directions_of_a_flow_are_one_in_the_tunnel_and_without_it() {
        let there = ipv4(TCP, POD, FAR, &[0x30, 0x39, 0, 80, 0, 0]);
        let back = ipv4(TCP, FAR, POD, &[0, 80, 0x30, 0x39, 0, 0]);
        let flow = flow(TCP, 12_345, 80);
        for (frame, from_pod) in [(there, true), (back, false)] {
            let expected = Some((flow, from_pod, 1_026));
            assert_eq!(seen(&frame), expected);
            assert_eq!(seen(&tunnelled(&frame)), expected);
        }
    }

    #[test]
    fn an_echo_has_its_identifier_on_the_side_that_asks() {
        let asks = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
        let answers = [0, 0, 0, 0, 0x12, 0x34, 0, 1];
        let flow_of = |frame: &[u8]| seen(frame).map(|(flow, ..)| flow);
        let ours = Some(flow(ICMP, 0x1234, 0));
        assert_eq!(flow_of(&ipv4(ICMP, POD, FAR, &asks)), ours);
        assert_eq!(flow_of(&ipv4(ICMP, FAR, POD, &answers)), ours);
        let theirs = Some(flow(ICMP, 0, 0x1234));
        assert_eq!(flow_of(&ipv4(ICMP, FAR, POD, &asks)), theirs);
    }

    #[test]
    fn ipv6_is_read_and_others_packets_are_nobodys() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 4, PROTOCOL_UDP, 64];
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        packet.extend(address("fd00:1::5"));
        packet.extend(address("fd00:2::6"));
        packet.extend([0, 53, 0, 99]);
        let (flow, from_pod, _) = seen(&frame([0x86, 0xdd], &packet)).unwrap();
        assert_eq!(
            (flow.local_port, flow.remote_port, from_pod),
            (53, 99, true)
        );
        assert_eq!(seen(&ipv4(TCP, FAR, [10, 5, 3, 1], &[])), None);
        assert_eq!(seen(&ipv4(TCP, POD, POD, &[])), None);
        assert_eq!(seen(&frame([0x08, 0x06], &[0; 28])), None);
    }

    #[test]
    fn what_is_cut_off_anywhere_does_no_harm() {
        let whole = tunnelled(&ipv4(TCP, POD, FAR, &[0x30, 0x39, 0, 80]));
        for len in 0..whole.len() {
            let _ = read(&whole[..len], whole.len(), &place());
            let _ = read(&whole, len, &place());
        }
    }
}
