//! Stops tunnel packets that no peer sent, or that carry no frame, before the kernel has made an skb
//! of them. Whatever is not recognisably a tunnel packet for this node's network passes untouched:
//! other VNIs on the same port, other UDP, VLANs, fragments.

use aya_ebpf::programs::XdpContext;
use overlay_common::{
    addr::Ipv4Be,
    outcome::Outcome,
    wire::{
        ETHERTYPE_IPV4, EthHeader, IPPROTO_UDP, Ipv4Header, UdpHeader, VXLAN_FLAG_VNI, VxlanHeader,
    },
};

use crate::{maps, packet::Packet, parse::ETH_LEN};

/// `Ok` lets the packet pass, `Err` drops it.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    let Some(config) = maps::config() else {
        return Ok(Outcome::Disabled);
    };
    let packet = Packet::new(ctx.data(), ctx.data_end());
    let (source, udp) = match tunnel(packet, config.vtep, config.vxlan_port) {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    let inner = udp + size_of::<UdpHeader>();
    let vxlan: VxlanHeader = packet.read(inner).ok_or(Outcome::GuardTruncated)?;
    let _: EthHeader = packet
        .read(inner + size_of::<VxlanHeader>())
        .ok_or(Outcome::GuardTruncated)?;
    if vxlan.flags & VXLAN_FLAG_VNI == 0 {
        return Err(Outcome::GuardHeader);
    }
    if vxlan.vni != config.vni {
        return Ok(Outcome::VxlanHeader);
    }
    if !maps::is_peer(source) {
        return Err(Outcome::GuardPeer);
    }
    Ok(Outcome::Passed)
}

/// Source address and offset of the UDP header of a packet to this node's VTEP.
#[inline(always)]
fn tunnel(packet: Packet, vtep: Ipv4Be, port: [u8; 2]) -> Result<(Ipv4Be, usize), Outcome> {
    let ethertype: u16 = packet.read(12).ok_or(Outcome::Truncated)?;
    if ethertype != u16::from_ne_bytes(ETHERTYPE_IPV4) {
        return Err(Outcome::NotIpv4);
    }
    let ip: Ipv4Header = packet.read(ETH_LEN).ok_or(Outcome::Truncated)?;
    if ip.version_ihl >> 4 != 4 || ip.protocol != IPPROTO_UDP || ip.dst != vtep {
        return Err(Outcome::NotOverlay);
    }
    if u16::from_be_bytes(ip.fragment) & 0x3fff != 0 {
        return Err(Outcome::Fragment);
    }
    let udp = ETH_LEN + usize::from(ip.version_ihl & 0x0f) * 4;
    let dst_port: [u8; 2] = packet.read(udp + 2).ok_or(Outcome::Truncated)?;
    if dst_port != port {
        return Err(Outcome::NotOverlay);
    }
    Ok((ip.src, udp))
}
