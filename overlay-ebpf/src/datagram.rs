//! The headers of the udp backend's tunnel packets: an IP packet is all that is in the datagram.

use overlay_common::{
    addr::Ipv4Be,
    config::Config,
    outcome::Outcome,
    wire::{IPPROTO_UDP, Ipv4Header, UdpHeader},
};

use crate::{
    ip::Header as _,
    packet::{ETH_LEN, Packet},
};

/// What the outer headers of a datagram say.
pub struct Datagram {
    pub source: Ipv4Be,
    /// As it stands in the packet.
    pub source_port: u16,
    /// Length of the packet from the outer IP header on, as that header announces it.
    pub len: u32,
    /// Length as the UDP header announces it.
    pub udp_len: u32,
}

impl Datagram {
    /// Reads a datagram to the backend's port, but what only the kernel can judge.
    #[inline(always)]
    pub fn read(packet: Packet, config: &Config) -> Result<Self, Outcome> {
        let Some(header) = packet.read::<Ipv4Header>(ETH_LEN) else {
            return Err(Outcome::Truncated);
        };
        if header.protocol != IPPROTO_UDP {
            return Err(Outcome::NotOverlay);
        }
        header.is_plain()?;
        let Some(udp) = packet.read::<UdpHeader>(ETH_LEN + size_of::<Ipv4Header>()) else {
            return Err(Outcome::Truncated);
        };
        if udp.dst_port != config.vxlan_port {
            return Err(Outcome::NotOverlay);
        }
        Ok(Self {
            source: header.src,
            source_port: u16::from_ne_bytes(udp.src_port),
            len: header.fields().total_len,
            udp_len: u32::from(u16::from_be_bytes(udp.len)),
        })
    }
}
