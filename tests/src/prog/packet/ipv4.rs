//! IPv4 packets.

use std::net::Ipv4Addr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options,
    TcpHeader, UdpHeader,
};
use overlay_common::family::V4;

use super::{ETH_LEN, Packet, Wire};

#[derive(Clone, Debug)]
pub struct Ipv4Extras {
    pub id: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    pub options: Vec<u8>,
}

impl Wire for V4 {
    type Octets = [u8; 4];
    type Address = Ipv4Addr;
    type Extras = Ipv4Extras;

    const ETHERTYPE: [u8; 2] = [0x08, 0x00];
    const IP_LEN: usize = 20;
    const ICMP: IpNumber = IpNumber::ICMP;

    fn extras() -> Ipv4Extras {
        Ipv4Extras {
            id: 0x1d1d,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            options: Vec::new(),
        }
    }

    fn header(packet: &Packet, transport_len: usize) -> Vec<u8> {
        let mut ip = Ipv4Header::new(
            u16::try_from(transport_len).expect("test packets are short"),
            packet.ttl,
            packet.protocol(),
            packet.src.octets(),
            packet.dst.octets(),
        )
        .expect("test packets are short");
        set_tos(&mut ip, packet.tos);
        ip.identification = packet.ip.id;
        ip.dont_fragment = packet.ip.dont_fragment;
        ip.more_fragments = packet.ip.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(packet.ip.fragment_offset).expect("13 bits");
        ip.options = Ipv4Options::try_from(packet.ip.options.as_slice()).expect("whole words");
        ip.header_checksum = ip.calc_header_checksum();
        ip.to_bytes().to_vec()
    }

    fn tcp_checksum(tcp: &TcpHeader, packet: &Packet) -> u16 {
        tcp.calc_checksum_ipv4_raw(packet.src.octets(), packet.dst.octets(), &packet.payload)
            .expect("test packets are short")
    }

    fn udp_checksum(udp: &UdpHeader, src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> u16 {
        udp.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
            .expect("test packets are short")
    }

    fn echo(is_request: bool, echo: IcmpEchoHeader, packet: &Packet) -> Vec<u8> {
        let kind = if is_request {
            Icmpv4Type::EchoRequest(echo)
        } else {
            Icmpv4Type::EchoReply(echo)
        };
        Icmpv4Header::with_checksum(kind, &packet.payload)
            .to_bytes()
            .to_vec()
    }

    fn vary(extras: &mut Ipv4Extras, value: u32) {
        let [.., high, low] = value.to_be_bytes();
        extras.id = u16::from_be_bytes([high, low]);
        extras.dont_fragment = !value.is_multiple_of(3);
    }

    fn varied(frame: &[u8], value: u32) -> Vec<u8> {
        let mut extras = Self::extras();
        Self::vary(&mut extras, value);
        edit_ip(frame, |ip| {
            ip.identification = extras.id;
            ip.dont_fragment = extras.dont_fragment;
        })
    }

    fn hop(frame: &[u8]) -> Vec<u8> {
        edit_ip(frame, |ip| ip.time_to_live -= 1)
    }

    fn with_ttl(frame: &[u8], ttl: u8) -> Vec<u8> {
        edit_ip(frame, |ip| ip.time_to_live = ttl)
    }

    fn with_tos(frame: &[u8], tos: u8) -> Vec<u8> {
        edit_ip(frame, |ip| set_tos(ip, tos))
    }

    fn longer(frame: &[u8], by: i16) -> Vec<u8> {
        edit_ip(frame, |ip| {
            ip.total_len = ip.total_len.wrapping_add_signed(by);
        })
    }
}

fn set_tos(ip: &mut Ipv4Header, tos: u8) {
    ip.dscp = (tos >> 2).try_into().expect("six bits");
    ip.ecn = (tos & 3).try_into().expect("two bits");
}

/// The frame with `change` applied to its IP header, whose checksum is recomputed.
pub fn edit_ip(frame: &[u8], change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let (eth, rest) = frame.split_at(ETH_LEN);
    let (mut ip, rest) = Ipv4Header::from_slice(rest).expect("a frame this module built");
    change(&mut ip);
    ip.header_checksum = ip.calc_header_checksum();
    [eth, &ip.to_bytes(), rest].concat()
}
