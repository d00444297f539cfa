//! Packets as test rows describe them, built with etherparse, which shares no code with the
//! programs.

use std::net::Ipv4Addr;

use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber,
    Ipv4Header, Ipv4Options, TcpHeader, UdpHeader,
};
use overlay_common::{addr::MacAddr, flow::FlowKey4};

pub const ETH_LEN: usize = 14;

/// Which end of a packet is the pod on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        src: u16,
        dst: u16,
        flags: u8,
        /// Bytes of options, a multiple of 4.
        options: u8,
    },
    Udp {
        src: u16,
        dst: u16,
    },
    EchoRequest {
        id: u16,
    },
    EchoReply {
        id: u16,
    },
    /// A bare transport payload.
    Other(IpNumber),
}

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_PSH: u8 = 0x08;
pub const TCP_ACK: u8 = 0x10;

/// An IPv4 packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet {
    pub eth_dst: MacAddr,
    pub eth_src: MacAddr,
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    pub ip_options: Vec<u8>,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet with 33 bytes of payload, TTL 64, DF set.
    pub fn new(src: [u8; 4], dst: [u8; 4], transport: Transport) -> Self {
        Self {
            eth_dst: MacAddr::ZERO,
            eth_src: MacAddr::ZERO,
            src: src.into(),
            dst: dst.into(),
            tos: 0,
            ttl: 64,
            id: 0x1d1d,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ip_options: Vec::new(),
            transport,
            payload: pattern(33),
        }
    }

    #[must_use]
    pub fn macs(mut self, dst: MacAddr, src: MacAddr) -> Self {
        self.eth_dst = dst;
        self.eth_src = src;
        self
    }

    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// With a payload that makes the IP packet `len` bytes long.
    #[must_use]
    pub fn sized(mut self, len: usize) -> Self {
        self.payload.clear();
        let headers = self.bytes().len() - ETH_LEN;
        self.payload = pattern(len.saturating_sub(headers));
        self
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let mut ip = Ipv4Header::new(
            u16::try_from(transport.len()).expect("test packets are short"),
            self.ttl,
            self.protocol(),
            self.src.octets(),
            self.dst.octets(),
        )
        .expect("test packets are short");
        ip.dscp = (self.tos >> 2).try_into().expect("six bits");
        ip.ecn = (self.tos & 3).try_into().expect("two bits");
        ip.identification = self.id;
        ip.dont_fragment = self.dont_fragment;
        ip.more_fragments = self.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(self.fragment_offset).expect("13 bits");
        ip.options = Ipv4Options::try_from(self.ip_options.as_slice()).expect("whole words");
        ip.header_checksum = ip.calc_header_checksum();
        let eth = Ethernet2Header {
            destination: self.eth_dst.octets,
            source: self.eth_src.octets,
            ether_type: EtherType::IPV4,
        };
        [&eth.to_bytes()[..], &ip.to_bytes(), &transport].concat()
    }

    /// The flow the packet belongs to.
    pub fn flow(&self, local: Local) -> FlowKey4 {
        let (src_port, dst_port) = match self.transport {
            Transport::Tcp { src, dst, .. } | Transport::Udp { src, dst } => (src, dst),
            Transport::EchoRequest { id } => (id, 0),
            Transport::EchoReply { id } => (0, id),
            Transport::Other(_) => (0, 0),
        };
        let (src, dst) = ((self.src, src_port), (self.dst, dst_port));
        let (local, remote) = match local {
            Local::Source => (src, dst),
            Local::Destination => (dst, src),
        };
        FlowKey4 {
            local: local.0.into(),
            remote: remote.0.into(),
            local_port: local.1.to_be_bytes(),
            remote_port: remote.1.to_be_bytes(),
            protocol: self.protocol().0,
            ..FlowKey4::default()
        }
    }

    fn protocol(&self) -> IpNumber {
        match self.transport {
            Transport::Tcp { .. } => IpNumber::TCP,
            Transport::Udp { .. } => IpNumber::UDP,
            Transport::EchoRequest { .. } | Transport::EchoReply { .. } => IpNumber::ICMP,
            Transport::Other(protocol) => protocol,
        }
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let (src, dst) = (self.src.octets(), self.dst.octets());
        let payload = self.payload.as_slice();
        let header = match self.transport {
            Transport::Tcp {
                src: src_port,
                dst: dst_port,
                flags,
                options,
            } => {
                let mut tcp = TcpHeader::new(src_port, dst_port, 0x0102_0304, 512);
                tcp.fin = flags & TCP_FIN != 0;
                tcp.syn = flags & TCP_SYN != 0;
                tcp.rst = flags & TCP_RST != 0;
                tcp.psh = flags & TCP_PSH != 0;
                tcp.ack = flags & TCP_ACK != 0;
                // 1: no operation.
                tcp.set_options_raw(&vec![1; options.into()])
                    .expect("at most 40 bytes");
                tcp.checksum = tcp
                    .calc_checksum_ipv4_raw(src, dst, payload)
                    .expect("test packets are short");
                tcp.to_bytes().to_vec()
            }
            Transport::Udp {
                src: src_port,
                dst: dst_port,
            } => udp_header(src, dst, src_port, dst_port, payload).to_vec(),
            Transport::EchoRequest { id } => icmp_header(
                Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: 7 }),
                payload,
            ),
            Transport::EchoReply { id } => icmp_header(
                Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq: 7 }),
                payload,
            ),
            Transport::Other(_) => Vec::new(),
        };
        [&header, payload].concat()
    }
}

fn udp_header(src: [u8; 4], dst: [u8; 4], src_port: u16, dst_port: u16, payload: &[u8]) -> [u8; 8] {
    let mut udp = UdpHeader {
        source_port: src_port,
        destination_port: dst_port,
        length: u16::try_from(payload.len() + 8).expect("test packets are short"),
        checksum: 0,
    };
    udp.checksum = udp
        .calc_checksum_ipv4_raw(src, dst, payload)
        .expect("test packets are short");
    udp.to_bytes()
}

fn icmp_header(kind: Icmpv4Type, payload: &[u8]) -> Vec<u8> {
    Icmpv4Header::with_checksum(kind, payload)
        .to_bytes()
        .to_vec()
}

/// The headers of a tunnel packet, all but the inner frame.
#[derive(Clone, Debug)]
pub struct Outer {
    pub eth_dst: MacAddr,
    pub eth_src: MacAddr,
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    pub src_port: u16,
    pub dst_port: u16,
    /// A valid UDP checksum instead of none.
    pub checksum: bool,
    pub vxlan_flags: u8,
    pub vni: u32,
}

impl Outer {
    /// The tunnel packet that carries `inner`, a frame.
    pub fn around(&self, inner: &[u8]) -> Vec<u8> {
        let vxlan = [u32::from(self.vxlan_flags) << 24, self.vni << 8]
            .map(u32::to_be_bytes)
            .concat();
        let carried = [&vxlan[..], inner].concat();
        let mut udp = udp_header(
            self.src.octets(),
            self.dst.octets(),
            self.src_port,
            self.dst_port,
            &carried,
        );
        if !self.checksum {
            udp[6..8].fill(0);
        }
        let datagram = [&udp[..], &carried].concat();
        let mut packet = Packet::new(
            self.src.octets(),
            self.dst.octets(),
            Transport::Other(IpNumber::UDP),
        )
        .macs(self.eth_dst, self.eth_src);
        packet.tos = self.tos;
        packet.ttl = self.ttl;
        packet.id = self.id;
        packet.payload = datagram;
        packet.bytes()
    }
}

/// The frame one IP hop further: TTL less one, the checksum recomputed.
pub fn hop(frame: &[u8]) -> Vec<u8> {
    edit_ip(frame, |ip| ip.time_to_live -= 1)
}

/// The frame with `change` applied to its IP header, whose checksum is recomputed.
pub fn edit_ip(frame: &[u8], change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let (eth, rest) = frame.split_at(ETH_LEN);
    let (mut ip, rest) = Ipv4Header::from_slice(rest).expect("a frame this module built");
    change(&mut ip);
    ip.header_checksum = ip.calc_header_checksum();
    [eth, &ip.to_bytes(), rest].concat()
}

/// The frame with other MAC addresses.
pub fn with_macs(frame: &[u8], dst: MacAddr, src: MacAddr) -> Vec<u8> {
    [&dst.octets[..], &src.octets, &frame[12..]].concat()
}

/// Bytes that show a shift or a repetition.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(len).collect()
}
