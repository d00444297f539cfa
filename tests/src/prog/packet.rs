//! Packets as test rows describe them, built with etherparse, which shares no code with the
//! programs.

mod ipv4;
mod ipv6;

use std::{
    fmt::{Debug, Display},
    net::IpAddr,
};

pub use etherparse::IpNumber;
use etherparse::{IcmpEchoHeader, TcpHeader, UdpHeader};
use overlay_common::{
    addr::MacAddr,
    family::{V4, WireFamily},
    flow::FlowKey,
};

pub use self::{
    ipv4::{Ipv4Extras, edit_ip},
    ipv6::{Extension, Ipv6Extras},
};

pub const ETH_LEN: usize = 14;

/// How packets of an address family are written.
pub trait Wire: WireFamily<Be: aya::Pod> {
    /// An address as its octets.
    type Octets: Copy + Debug + Ord;
    type Address: Copy
        + Debug
        + Display
        + Into<IpAddr>
        + From<Self::Octets>
        + Into<Self::Be>
        + From<Self::Be>;
    /// What only IP headers of the family have.
    type Extras: Clone + Debug;

    const ETHERTYPE: [u8; 2];
    /// Length of the IP header without options.
    const IP_LEN: usize;
    const ICMP: IpNumber;

    /// The extras of an ordinary packet.
    fn extras() -> Self::Extras;

    /// The IP header, with all that stands before the transport header.
    fn header(packet: &Packet<Self>, transport_len: usize) -> Vec<u8>;

    fn tcp_checksum(tcp: &TcpHeader, packet: &Packet<Self>) -> u16;

    fn udp_checksum(udp: &UdpHeader, src: Self::Address, dst: Self::Address, payload: &[u8])
    -> u16;

    /// The ICMP header of an echo request or reply.
    fn echo(is_request: bool, echo: IcmpEchoHeader, packet: &Packet<Self>) -> Vec<u8>;

    /// Changes the fields that no program looks at: identification and DF, or the flow label.
    fn vary(extras: &mut Self::Extras, value: u32);

    /// The frame with such fields changed.
    fn varied(frame: &[u8], value: u32) -> Vec<u8>;

    /// The frame one IP hop further.
    fn hop(frame: &[u8]) -> Vec<u8>;

    /// The frame with another TTL or hop limit.
    fn with_ttl(frame: &[u8], ttl: u8) -> Vec<u8>;

    /// The frame with another TOS byte or traffic class.
    fn with_tos(frame: &[u8], tos: u8) -> Vec<u8>;

    /// The frame whose IP header announces this many bytes more than it did.
    fn longer(frame: &[u8], by: i16) -> Vec<u8>;

    /// An octet string as the maps hold it.
    fn be(octets: Self::Octets) -> Self::Be {
        Self::Address::from(octets).into()
    }
}

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
    /// With one chunk of this type, which holds the payload.
    Sctp {
        src: u16,
        dst: u16,
        chunk: u8,
    },
    EchoRequest {
        id: u16,
    },
    EchoReply {
        id: u16,
    },
    /// The family's ICMP, its header in the payload.
    Icmp,
    /// A bare transport payload.
    Other(IpNumber),
}

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_PSH: u8 = 0x08;
pub const TCP_ACK: u8 = 0x10;

impl Transport {
    /// The same of another flow, which is told by this port or identifier of its client.
    #[must_use]
    pub const fn of_flow(mut self, number: u16) -> Self {
        match &mut self {
            Self::Tcp { src, .. } | Self::Udp { src, .. } | Self::Sctp { src, .. } => {
                *src = number;
            }
            Self::EchoRequest { id } | Self::EchoReply { id } => *id = number,
            Self::Icmp | Self::Other(_) => {}
        }
        self
    }

    /// The same with other ports, given its source and destination.
    #[must_use]
    pub fn with_ports(mut self, change: impl FnOnce((u16, u16)) -> (u16, u16)) -> Self {
        if let Self::Tcp { src, dst, .. } | Self::Udp { src, dst } | Self::Sctp { src, dst, .. } =
            &mut self
        {
            (*src, *dst) = change((*src, *dst));
        }
        self
    }
}

/// An IP packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet<F: Wire = V4> {
    pub eth_dst: MacAddr,
    pub eth_src: MacAddr,
    pub src: F::Address,
    pub dst: F::Address,
    /// TOS byte or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    pub ip: F::Extras,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

impl<F: Wire> Packet<F> {
    /// A packet with 33 bytes of payload, TTL 64, and DF set where there is one.
    pub fn new(src: F::Octets, dst: F::Octets, transport: Transport) -> Self {
        Self {
            eth_dst: MacAddr::ZERO,
            eth_src: MacAddr::ZERO,
            src: src.into(),
            dst: dst.into(),
            tos: 0,
            ttl: 64,
            ip: F::extras(),
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
        [
            &self.eth_dst.octets[..],
            &self.eth_src.octets,
            &F::ETHERTYPE,
            &F::header(self, transport.len()),
            &transport,
        ]
        .concat()
    }

    /// The flow the packet belongs to.
    pub fn flow(&self, local: Local) -> FlowKey<F> {
        let (src_port, dst_port) = match self.transport {
            Transport::Tcp { src, dst, .. }
            | Transport::Udp { src, dst }
            | Transport::Sctp { src, dst, .. } => (src, dst),
            Transport::EchoRequest { id } => (id, 0),
            Transport::EchoReply { id } => (0, id),
            Transport::Icmp | Transport::Other(_) => (0, 0),
        };
        let (src, dst) = ((self.src, src_port), (self.dst, dst_port));
        let (local, remote) = match local {
            Local::Source => (src, dst),
            Local::Destination => (dst, src),
        };
        FlowKey {
            local: local.0.into(),
            remote: remote.0.into(),
            local_port: local.1.to_be_bytes(),
            remote_port: remote.1.to_be_bytes(),
            protocol: self.protocol().0,
            ..FlowKey::default()
        }
    }

    fn protocol(&self) -> IpNumber {
        match self.transport {
            Transport::Tcp { .. } => IpNumber::TCP,
            Transport::Udp { .. } => IpNumber::UDP,
            Transport::Sctp { .. } => IpNumber::SCTP,
            Transport::EchoRequest { .. } | Transport::EchoReply { .. } | Transport::Icmp => {
                F::ICMP
            }
            Transport::Other(protocol) => protocol,
        }
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let echo = |is_request, id| F::echo(is_request, IcmpEchoHeader { id, seq: 7 }, self);
        let header = match self.transport {
            Transport::Tcp {
                src,
                dst,
                flags,
                options,
            } => {
                let mut tcp = TcpHeader::new(src, dst, 0x0102_0304, 512);
                tcp.fin = flags & TCP_FIN != 0;
                tcp.syn = flags & TCP_SYN != 0;
                tcp.rst = flags & TCP_RST != 0;
                tcp.psh = flags & TCP_PSH != 0;
                tcp.ack = flags & TCP_ACK != 0;
                // 1: no operation.
                tcp.set_options_raw(&vec![1; options.into()])
                    .expect("at most 40 bytes");
                tcp.checksum = F::tcp_checksum(&tcp, self);
                tcp.to_bytes().to_vec()
            }
            Transport::Udp { src, dst } => {
                udp_header::<F>(self.src, self.dst, src, dst, &self.payload).to_vec()
            }
            Transport::Sctp { src, dst, chunk } => {
                let [src, dst] = [src, dst].map(u16::to_be_bytes);
                let len = u16::try_from(4 + self.payload.len()).expect("test packets are short");
                [&src[..], &dst, &[9; 8], &[chunk, 0], &len.to_be_bytes()].concat()
            }
            Transport::EchoRequest { id } => echo(true, id),
            Transport::EchoReply { id } => echo(false, id),
            Transport::Icmp | Transport::Other(_) => Vec::new(),
        };
        [&header[..], &self.payload].concat()
    }
}

fn udp_header<F: Wire>(
    src: F::Address,
    dst: F::Address,
    src_port: u16,
    dst_port: u16,
    payload: &[u8],
) -> [u8; 8] {
    let mut udp = UdpHeader {
        source_port: src_port,
        destination_port: dst_port,
        length: u16::try_from(payload.len() + 8).expect("test packets are short"),
        checksum: 0,
    };
    udp.checksum = F::udp_checksum(&udp, src, dst, payload);
    udp.to_bytes()
}

/// The headers of a tunnel packet, all but the inner frame.
#[derive(Clone, Debug)]
pub struct Outer<F: Wire = V4> {
    pub eth_dst: MacAddr,
    pub eth_src: MacAddr,
    pub src: F::Address,
    pub dst: F::Address,
    pub tos: u8,
    pub ttl: u8,
    pub ip: F::Extras,
    pub src_port: u16,
    pub dst_port: u16,
    /// A valid UDP checksum instead of none.
    pub checksum: bool,
    pub vxlan_flags: u8,
    pub vni: u32,
}

impl<F: Wire> Outer<F> {
    /// The tunnel packet that carries `inner`, a frame.
    pub fn around(&self, inner: &[u8]) -> Vec<u8> {
        let vxlan = [u32::from(self.vxlan_flags) << 24, self.vni << 8]
            .map(u32::to_be_bytes)
            .concat();
        let carried = [&vxlan[..], inner].concat();
        let mut udp = udp_header::<F>(self.src, self.dst, self.src_port, self.dst_port, &carried);
        if !self.checksum {
            udp[6..8].fill(0);
        }
        let packet = Packet::<F> {
            eth_dst: self.eth_dst,
            eth_src: self.eth_src,
            src: self.src,
            dst: self.dst,
            tos: self.tos,
            ttl: self.ttl,
            ip: self.ip.clone(),
            transport: Transport::Other(IpNumber::UDP),
            payload: [&udp[..], &carried].concat(),
        };
        packet.bytes()
    }
}

/// The frame with other MAC addresses.
pub fn with_macs(frame: &[u8], dst: MacAddr, src: MacAddr) -> Vec<u8> {
    [&dst.octets[..], &src.octets, &frame[12..]].concat()
}

/// Bytes that show a shift or a repetition.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(len).collect()
}
