//! From packet bytes to a flow, or to the reason why the packet has none.

use overlay_common::{
    addr::MacAddr,
    config::{Config, FASTPATH_TRUSTED},
    ecn,
    flow::FlowWords,
    node::Node,
    outcome::Outcome,
    wire::{
        EthHeader, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP, UdpHeader, VXLAN_FLAG_VNI, VxlanHeader,
    },
};

use crate::{
    flow_packet::{Control, FlowPacket, Local},
    ip::{Header as _, Ip},
    maps,
    packet::{ETH_LEN, Packet},
};

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// Types of SCTP chunks.
const SCTP_DATA: u8 = 0;
const SCTP_INIT: u8 = 1;
const SCTP_INIT_ACK: u8 = 2;
const SCTP_SACK: u8 = 3;
const SCTP_HEARTBEAT: u8 = 4;
const SCTP_HEARTBEAT_ACK: u8 = 5;
const SCTP_ABORT: u8 = 6;
const SCTP_SHUTDOWN: u8 = 7;
const SCTP_SHUTDOWN_ACK: u8 = 8;
const SCTP_COOKIE_ECHO: u8 = 10;
const SCTP_COOKIE_ACK: u8 = 11;
const SCTP_SHUTDOWN_COMPLETE: u8 = 14;
const SCTP_I_DATA: u8 = 64;

/// Bytes of the header before SCTP's chunks.
const SCTP_LEN: usize = 12;
/// Bytes of an acknowledgement that tells of no gaps.
const SACK_LEN: u32 = 16;

/// What the chunks of an SCTP packet, whose header is at `l4`, do to its association. Chunks with data are the last
/// ones of a packet (RFC 9260 §6.10), so what follows the first has to be known only of an acknowledgement. Any
/// other mixture is the kernel's.
#[inline(always)]
fn chunks(packet: Packet, l4: usize, len: u32) -> Control {
    let Some(first) = packet.read::<u8>(l4 + SCTP_LEN) else {
        return Control::Stray;
    };
    let chunk_len = packet.read::<[u8; 2]>(l4 + SCTP_LEN + 2);
    let chunk_len = u32::from(u16::from_be_bytes(chunk_len.unwrap_or_default()));
    match first {
        SCTP_DATA | SCTP_I_DATA => Control::None,
        SCTP_SACK | SCTP_HEARTBEAT | SCTP_HEARTBEAT_ACK => {
            let is_alone = len.wrapping_sub(SCTP_LEN as u32 + chunk_len) < 4;
            let next = packet.read::<u8>(l4 + SCTP_LEN + SACK_LEN as usize);
            let is_before_data =
                chunk_len == SACK_LEN && matches!(next, Some(SCTP_DATA | SCTP_I_DATA));
            if is_alone || is_before_data {
                Control::None
            } else {
                Control::Stray
            }
        }
        SCTP_ABORT | SCTP_SHUTDOWN | SCTP_SHUTDOWN_ACK | SCTP_SHUTDOWN_COMPLETE => Control::Close,
        SCTP_INIT | SCTP_INIT_ACK | SCTP_COOKIE_ECHO | SCTP_COOKIE_ACK => Control::Open,
        _ => Control::Stray,
    }
}

impl<F: Ip> FlowPacket<F> {
    /// Parses the IP packet at `offset`. In trusted mode the flow is the pair of pods, if no translation
    /// connects them.
    #[inline(always)]
    pub fn parse(
        packet: Packet,
        offset: usize,
        local: Local,
        config: &Config<F>,
    ) -> Result<Self, Outcome> {
        let Some(header) = packet.read::<F::Header>(offset) else {
            return Err(Outcome::Truncated);
        };
        header.is_plain()?;
        let ip = header.fields();
        let l4 = offset + F::LEN;
        // Source and destination ports as they stand in the packet; for ICMP, type and code first.
        let mut src_port: u16 = packet.read(l4).ok_or(Outcome::Truncated)?;
        let mut dst_port: u16 = packet.read(l4 + 2).ok_or(Outcome::Truncated)?;
        let mut control = Control::None;
        let headers_len;
        let protocol = ip.protocol;
        if protocol == IPPROTO_TCP {
            let data_offset: u8 = packet.read(l4 + 12).ok_or(Outcome::Truncated)?;
            let flags: u8 = packet.read(l4 + 13).ok_or(Outcome::Truncated)?;
            if flags & TCP_SYN != 0 {
                control = Control::Open;
            } else if flags & (TCP_FIN | TCP_RST) != 0 {
                control = Control::Close;
            } else if flags & TCP_ACK == 0 {
                control = Control::Stray;
            }
            headers_len = F::LEN as u32 + u32::from(data_offset >> 4) * 4;
        } else if protocol == IPPROTO_UDP {
            headers_len = F::LEN as u32 + 8;
        } else if protocol == IPPROTO_SCTP {
            control = chunks(packet, l4, ip.total_len - F::LEN as u32);
            headers_len = F::LEN as u32 + SCTP_LEN as u32;
        } else if protocol == F::ICMP {
            let id: u16 = packet.read(l4 + 4).ok_or(Outcome::Truncated)?;
            // The identifier belongs to the side that asks.
            if src_port == F::ECHO {
                (src_port, dst_port) = (id, 0);
            } else if src_port == F::ECHO_REPLY {
                (src_port, dst_port) = (0, id);
            } else {
                return Err(Outcome::Protocol);
            }
            headers_len = F::LEN as u32 + 8;
        } else {
            return Err(header.is_other());
        }
        let words = match local {
            Local::Source => FlowWords::new(ip.src, ip.dst, src_port, dst_port, protocol),
            Local::Destination => FlowWords::new(ip.dst, ip.src, dst_port, src_port, protocol),
        };
        let is_pair = config.fastpath == FASTPATH_TRUSTED
            && config.is_remote_pod(words.remote())
            && !maps::is_translated(words);
        let control = if is_pair { Control::None } else { control };
        Ok(Self {
            words,
            is_pair,
            protocol,
            control,
            ttl: ip.ttl,
            tos: ip.tos,
            total_len: ip.total_len,
            check: ip.check,
            headers_len,
            header_mask: config.header_mask(),
        })
    }
}

/// What the outer headers of a tunnel packet say.
pub struct Tunnel<F: Ip> {
    pub source: F::Be,
    pub destination: F::Be,
    /// As it stands in the packet.
    pub source_port: u16,
    pub tos: u8,
    /// Whether the outer UDP header has a checksum.
    pub checksum: bool,
    /// Length of the packet from the outer IP header on, as that header announces it.
    pub len: u32,
    /// Length as the outer UDP header announces it.
    pub udp_len: u32,
}

impl<F: Ip> Tunnel<F> {
    /// Reads the tunnel headers of a UDP packet: of this node's network, for the VTEP with the MAC
    /// address `to`, and nothing that only the kernel can judge. Reserved bits are for vxlan extensions.
    #[inline(always)]
    pub fn read(packet: Packet, config: &Config<F>, to: MacAddr) -> Result<Self, Outcome> {
        let udp_at = ETH_LEN + F::LEN;
        let vxlan_at = udp_at + size_of::<UdpHeader>();
        let Some(header) = packet.read::<F::Header>(ETH_LEN) else {
            return Err(Outcome::Truncated);
        };
        let Some(udp) = packet.read::<UdpHeader>(udp_at) else {
            return Err(Outcome::Truncated);
        };
        header.is_plain()?;
        if udp.dst_port != config.vxlan_port {
            return Err(Outcome::NotOverlay);
        }
        let Some(vxlan) = packet.read::<VxlanHeader>(vxlan_at) else {
            return Err(Outcome::Truncated);
        };
        let Some(inner_eth) = packet.read::<EthHeader>(vxlan_at + size_of::<VxlanHeader>()) else {
            return Err(Outcome::Truncated);
        };
        if vxlan.flags != VXLAN_FLAG_VNI
            || vxlan.reserved != [0; 3]
            || vxlan.reserved2 != 0
            || vxlan.vni != config.vni
            || inner_eth.dst != to
        {
            return Err(Outcome::VxlanHeader);
        }
        if inner_eth.ethertype != F::ETHERTYPE {
            return Err(Outcome::NotIp);
        }
        let ip = header.fields();
        Ok(Self {
            source: ip.src,
            destination: ip.dst,
            source_port: u16::from_ne_bytes(udp.src_port),
            tos: ip.tos,
            checksum: udp.check != [0; 2],
            len: ip.total_len,
            udp_len: u32::from(u16::from_be_bytes(udp.len)),
        })
    }

    /// Those of a packet with this TOS that this node sends to `node`, if they are what the fast path would
    /// write but for checksum and identification: a rule may have changed the outer packet, too.
    #[inline(always)]
    pub fn sent(packet: Packet, config: &Config<F>, node: &Node<F>, tos: u8) -> Option<Self> {
        let ip = packet.read::<F::Header>(ETH_LEN)?.fields();
        if packet.read(12) != Some(F::ETHERTYPE)
            || ip.protocol != IPPROTO_UDP
            || ip.ttl != F::encap_ttl(&node.encap)
            || ip.tos != ecn::encapsulate(tos)
        {
            return None;
        }
        let tunnel = Self::read(packet, config, node.vtep_mac).ok()?;
        (tunnel.source == config.vtep && tunnel.destination == node.vtep).then_some(tunnel)
    }
}

/// Why nothing is fast while `fastpath` is off.
#[inline(always)]
pub fn why_off<F: Ip>(config: &Config<F>) -> Outcome {
    if config.is_served() {
        Outcome::Disabled
    } else {
        Outcome::Unserved
    }
}
