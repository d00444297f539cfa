//! From packet bytes to a flow, or to the reason why the packet has none.

use core::mem::offset_of;

use overlay_common::{
    addr::Ipv4Be,
    config::{Config, FASTPATH_TRUSTED},
    flow::FlowWords,
    outcome::Outcome,
    wire::{IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPV4_NO_OPTIONS, Ipv4Header, UdpHeader},
};

use crate::{helpers::Skb, packet::Packet};

pub const ETH_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;

/// Bytes from the start of an IP header that [`Flow4::parse`] may look at: IPv4 and TCP headers.
pub const FLOW_LEN: u32 = 40;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;

/// ICMP type and code as one word, the way the packet holds them.
const ICMP_ECHO_REPLY: u16 = u16::from_ne_bytes([0, 0]);
const ICMP_ECHO: u16 = u16::from_ne_bytes([8, 0]);

/// Which end of the packet is the pod on this node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Local {
    Source,
    Destination,
}

/// What a packet does to its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Control {
    None,
    /// TCP SYN.
    Open,
    /// TCP FIN or RST.
    Close,
}

/// A packet of a flow. Integers are in host order.
pub struct Flow4 {
    pub words: FlowWords,
    pub protocol: u8,
    pub control: Control,
    pub ttl: u8,
    pub tos: u8,
    pub total_len: u16,
    pub check: u16,
    /// Length of the IP and transport headers, bytes.
    pub headers_len: u32,
}

impl Flow4 {
    /// Parses the IP packet at `offset`. In trusted mode the flow is the pair of pods.
    #[inline(always)]
    pub fn parse(
        packet: Packet,
        offset: usize,
        local: Local,
        config: &Config,
    ) -> Result<Self, Outcome> {
        let ip: Ipv4Header = packet.read(offset).ok_or(Outcome::Truncated)?;
        if ip.version_ihl != IPV4_NO_OPTIONS {
            let is_ipv4 = ip.version_ihl >> 4 == 4;
            return Err(if is_ipv4 {
                Outcome::IpOptions
            } else {
                Outcome::NotIpv4
            });
        }
        // More-fragments flag or an offset; don't-fragment may be set or not.
        if u16::from_be_bytes(ip.fragment) & 0x3fff != 0 {
            return Err(Outcome::Fragment);
        }
        let l4 = offset + IPV4_LEN;
        // Source and destination ports as they stand in the packet; for ICMP, type and code first.
        let mut src_port: u16 = packet.read(l4).ok_or(Outcome::Truncated)?;
        let mut dst_port: u16 = packet.read(l4 + 2).ok_or(Outcome::Truncated)?;
        let mut control = Control::None;
        let headers_len;
        match ip.protocol {
            IPPROTO_TCP => {
                let data_offset: u8 = packet.read(l4 + 12).ok_or(Outcome::Truncated)?;
                let flags: u8 = packet.read(l4 + 13).ok_or(Outcome::Truncated)?;
                if flags & TCP_SYN != 0 {
                    control = Control::Open;
                } else if flags & (TCP_FIN | TCP_RST) != 0 {
                    control = Control::Close;
                }
                headers_len = IPV4_LEN as u32 + u32::from(data_offset >> 4) * 4;
            }
            IPPROTO_UDP => headers_len = IPV4_LEN as u32 + 8,
            IPPROTO_ICMP => {
                let id: u16 = packet.read(l4 + 4).ok_or(Outcome::Truncated)?;
                // The identifier belongs to the side that asks.
                match src_port {
                    ICMP_ECHO => (src_port, dst_port) = (id, 0),
                    ICMP_ECHO_REPLY => (src_port, dst_port) = (0, id),
                    _ => return Err(Outcome::Protocol),
                }
                headers_len = IPV4_LEN as u32 + 8;
            }
            _ => return Err(Outcome::Protocol),
        }
        let src = u32::from_ne_bytes(ip.src.octets);
        let dst = u32::from_ne_bytes(ip.dst.octets);
        let words = match local {
            Local::Source => FlowWords::new(src, dst, src_port, dst_port, ip.protocol),
            Local::Destination => FlowWords::new(dst, src, dst_port, src_port, ip.protocol),
        };
        let trusted = config.fastpath == FASTPATH_TRUSTED;
        let words = if trusted { words.pair() } else { words };
        let control = if trusted { Control::None } else { control };
        Ok(Self {
            words,
            protocol: ip.protocol,
            control,
            ttl: ip.ttl,
            tos: ip.tos,
            total_len: u16::from_be_bytes(ip.total_len),
            check: u16::from_be_bytes(ip.check),
            headers_len,
        })
    }

    /// Whether every packet on the wire fits `mtu`. `frame_len` includes the bytes before the IP
    /// header, of which there are `offset`.
    #[inline(always)]
    pub fn fits(&self, frame_len: u32, offset: u32, gso_size: u32, mtu: u32) -> bool {
        if gso_size == 0 {
            frame_len - offset <= mtu
        } else {
            gso_size + self.headers_len <= mtu
        }
    }

    /// Whether the IP header announces exactly the bytes the frame holds. The kernel trims what is
    /// longer and drops what is shorter.
    #[inline(always)]
    pub fn is_whole(&self, frame_len: u32, offset: u32) -> bool {
        u32::from(self.total_len) + offset == frame_len
    }

    /// Writes TTL and checksum of the IP header at `offset` as they are one hop further: the
    /// arithmetic of the kernel's `ip_decrease_ttl`. The caller has seen a TTL above 1.
    #[inline(always)]
    #[must_use]
    pub fn write_hop(&self, packet: Packet, offset: usize) -> Option<()> {
        let check = u32::from(self.check) + 0x0100;
        let check = check + u32::from(check >= 0xffff);
        packet.write(offset + 10, (check as u16).to_be_bytes())?;
        packet.write(offset + 8, self.ttl - 1)
    }
}

/// Whether the frame carries the beginning of a UDP datagram to `port`, whatever IP options or
/// later fragments it has. Returns the destination address. The UDP header may lie behind more
/// options than `packet` has been asked to hold.
#[inline(always)]
pub fn udp_destination(skb: &Skb, packet: Packet, port: [u8; 2]) -> Option<Ipv4Be> {
    let ip: Ipv4Header = packet.read(ETH_LEN)?;
    let first_fragment = u16::from_be_bytes(ip.fragment) & 0x1fff == 0;
    if ip.version_ihl >> 4 != 4 || ip.protocol != IPPROTO_UDP || !first_fragment {
        return None;
    }
    let at = ETH_LEN + usize::from(ip.version_ihl & 0x0f) * 4 + offset_of!(UdpHeader, dst_port);
    let packet = skb.packet_with((at + size_of_val(&port)) as u32);
    let dst_port: [u8; 2] = packet.read(at)?;
    (dst_port == port).then_some(ip.dst)
}
