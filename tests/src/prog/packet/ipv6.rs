//! IPv6 packets.

use std::net::Ipv6Addr;

use etherparse::{
    IcmpEchoHeader, Icmpv6Header, Icmpv6Type, IpNumber, Ipv6Header, TcpHeader, UdpHeader,
};
use overlay_common::family::V6;

use super::{ETH_LEN, Packet, Wire};

const FLOW_LABEL: u32 = 0x000f_ffff;

#[derive(Clone, Debug)]
pub struct Ipv6Extras {
    pub flow_label: u32,
    pub extensions: Vec<Extension>,
}

/// An extension header.
#[derive(Clone, Debug)]
pub struct Extension {
    pub kind: IpNumber,
    /// What follows the byte that names the next header.
    pub body: Vec<u8>,
}

impl Extension {
    /// Hop-by-hop or destination options, all of them `Pad1`, in a header of this many bytes.
    pub fn options(kind: IpNumber, len: usize) -> Self {
        let units = u8::try_from(len / 8 - 1).expect("at most 2048 bytes");
        let body = [&[units][..], &vec![0; len - 2]].concat();
        Self { kind, body }
    }

    /// A routing header of a type nobody follows, with no segments left.
    pub fn routing() -> Self {
        Self {
            kind: IpNumber::IPV6_ROUTE_HEADER,
            body: vec![2, 253, 0, 0, 0, 0, 0]
                .into_iter()
                .chain([0; 16])
                .collect(),
        }
    }

    /// An authentication header (RFC 4302) with a check value of 12 bytes.
    pub fn authentication() -> Self {
        Self {
            kind: IpNumber::AUTHENTICATION_HEADER,
            body: [&[4][..], &[0; 22]].concat(),
        }
    }

    /// A fragment header; `offset` in units of 8 bytes.
    pub fn fragment(offset: u16, more: bool) -> Self {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        Self {
            kind: IpNumber::IPV6_FRAGMENTATION_HEADER,
            body: vec![0, high, low, 0x1d, 0x1d, 0x1d, 0x1d],
        }
    }
}

impl Wire for V6 {
    type Octets = [u8; 16];
    type Address = Ipv6Addr;
    type Extras = Ipv6Extras;

    const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
    const IP_LEN: usize = 40;
    const ICMP: IpNumber = IpNumber::IPV6_ICMP;

    fn extras() -> Ipv6Extras {
        Ipv6Extras {
            flow_label: 0x000a_5a5a,
            extensions: Vec::new(),
        }
    }

    fn header(packet: &Packet<V6>, transport_len: usize) -> Vec<u8> {
        let mut next = packet.protocol();
        let mut extensions = Vec::new();
        for extension in packet.ip.extensions.iter().rev() {
            extensions = [&[next.0][..], &extension.body, &extensions].concat();
            next = extension.kind;
        }
        let payload_len = extensions.len() + transport_len;
        let ip = Ipv6Header {
            traffic_class: packet.tos,
            flow_label: packet.ip.flow_label.try_into().expect("20 bits"),
            payload_length: u16::try_from(payload_len).expect("test packets are short"),
            next_header: next,
            hop_limit: packet.ttl,
            source: packet.src.octets(),
            destination: packet.dst.octets(),
        };
        [&ip.to_bytes()[..], &extensions].concat()
    }

    fn tcp_checksum(tcp: &TcpHeader, packet: &Packet<V6>) -> u16 {
        tcp.calc_checksum_ipv6_raw(packet.src.octets(), packet.dst.octets(), &packet.payload)
            .expect("test packets are short")
    }

    fn udp_checksum(udp: &UdpHeader, src: Ipv6Addr, dst: Ipv6Addr, payload: &[u8]) -> u16 {
        udp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
            .expect("test packets are short")
    }

    fn echo(is_request: bool, echo: IcmpEchoHeader, packet: &Packet<V6>) -> Vec<u8> {
        let kind = if is_request {
            Icmpv6Type::EchoRequest(echo)
        } else {
            Icmpv6Type::EchoReply(echo)
        };
        let (src, dst) = (packet.src.octets(), packet.dst.octets());
        Icmpv6Header::with_checksum(kind, src, dst, &packet.payload)
            .expect("test packets are short")
            .to_bytes()
            .to_vec()
    }

    fn vary(extras: &mut Ipv6Extras, value: u32) {
        extras.flow_label = value & FLOW_LABEL;
    }

    fn varied(frame: &[u8], value: u32) -> Vec<u8> {
        edit(frame, |ip| {
            ip.flow_label = (value & FLOW_LABEL).try_into().expect("20 bits");
        })
    }

    fn hop(frame: &[u8]) -> Vec<u8> {
        edit(frame, |ip| ip.hop_limit -= 1)
    }

    fn with_ttl(frame: &[u8], ttl: u8) -> Vec<u8> {
        edit(frame, |ip| ip.hop_limit = ttl)
    }

    fn with_tos(frame: &[u8], tos: u8) -> Vec<u8> {
        edit(frame, |ip| ip.traffic_class = tos)
    }

    fn longer(frame: &[u8], by: i16) -> Vec<u8> {
        edit(frame, |ip| {
            ip.payload_length = ip.payload_length.wrapping_add_signed(by);
        })
    }
}

/// The frame with `change` applied to its IP header.
fn edit(frame: &[u8], change: impl FnOnce(&mut Ipv6Header)) -> Vec<u8> {
    let (eth, rest) = frame.split_at(ETH_LEN);
    let (mut ip, rest) = Ipv6Header::from_slice(rest).expect("a frame this module built");
    change(&mut ip);
    [eth, &ip.to_bytes(), rest].concat()
}
