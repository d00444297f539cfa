//! Stops tunnel packets that no peer sent, or that carry no frame, before the kernel has made an skb
//! of them. Whatever is not recognisably a tunnel packet for this node's network passes untouched:
//! other VNIs on the same port, other UDP, VLANs, fragments.
//!
//! A peer may send from another address than its lease says: it has several, or a NAT is between. Only
//! nodes of the cluster know this node's VTEP MAC address, and they address every frame to it, so what
//! carries it is left to the kernel, which takes it from any address. A stranger would have to know
//! it, or to forge the address of a peer.

use core::mem::offset_of;

use aya_ebpf::programs::XdpContext;
use overlay_common::{
    addr::{Ipv4Be, Ipv6Be},
    config::Config,
    family::{V4, V6},
    outcome::Outcome,
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthHeader, IPPROTO_FRAGMENT, IPPROTO_UDP, Ipv4Header,
        Ipv6Header, UdpHeader, VXLAN_FLAG_VNI, VxlanHeader,
    },
};

use crate::{
    ip::{Header as _, Ip},
    ipv4::IS_FRAGMENT,
    mac::Mac,
    maps::Tables as _,
    packet::{ETH_LEN, Packet},
};

/// `Ok` lets the packet pass, `Err` drops it.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    const IPV4: u16 = u16::from_ne_bytes(ETHERTYPE_IPV4);
    const IPV6: u16 = u16::from_ne_bytes(ETHERTYPE_IPV6);
    let packet = Packet::new(ctx.data(), ctx.data_end());
    match packet.read(12) {
        None => Ok(Outcome::Truncated),
        Some(IPV4) => check(packet, V4::config(), ipv4_tunnel),
        Some(IPV6) => check(packet, V6::config(), ipv6_tunnel),
        Some(_) => Ok(Outcome::NotIp),
    }
}

#[inline(always)]
fn check<F: Ip>(
    packet: Packet,
    config: Option<&Config<F>>,
    tunnel: impl FnOnce(Packet, &Config<F>) -> Result<(F::Be, usize), Outcome>,
) -> Result<Outcome, Outcome> {
    let Some(config) = config else {
        return Ok(Outcome::Disabled);
    };
    let (source, udp) = match tunnel(packet, config) {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    let Some(dst_port) = packet.read::<[u8; 2]>(udp + offset_of!(UdpHeader, dst_port)) else {
        return Ok(Outcome::Truncated);
    };
    if dst_port != config.vxlan_port {
        return Ok(Outcome::NotOverlay);
    }
    let inner = udp + size_of::<UdpHeader>();
    let vxlan: VxlanHeader = packet.read(inner).ok_or(Outcome::GuardTruncated)?;
    let frame = inner + size_of::<VxlanHeader>();
    let _: EthHeader = packet.read(frame).ok_or(Outcome::GuardTruncated)?;
    let frame_dst = Mac::read(packet, frame).ok_or(Outcome::GuardTruncated)?;
    if vxlan.flags & VXLAN_FLAG_VNI == 0 {
        return Err(Outcome::GuardHeader);
    }
    if vxlan.vni != config.vni {
        return Ok(Outcome::VxlanHeader);
    }
    if F::is_peer(source) {
        return Ok(Outcome::Passed);
    }
    if frame_dst == Mac::of(&config.vtep_mac) {
        return Ok(Outcome::UnknownPeer);
    }
    Err(Outcome::GuardPeer)
}

/// Source address and offset of the UDP header of a UDP packet to this node's VTEP.
#[inline(always)]
fn ipv4_tunnel(packet: Packet, config: &Config<V4>) -> Result<(Ipv4Be, usize), Outcome> {
    let Some(ip) = packet.read::<Ipv4Header>(ETH_LEN) else {
        return Err(Outcome::Truncated);
    };
    if ip.version_ihl >> 4 != 4 || ip.protocol != IPPROTO_UDP || ip.dst != config.vtep {
        return Err(Outcome::NotOverlay);
    }
    if u16::from_be_bytes(ip.fragment) & IS_FRAGMENT != 0 {
        return Err(Outcome::Fragment);
    }
    Ok((ip.src, ETH_LEN + usize::from(ip.version_ihl & 0x0f) * 4))
}

/// As [`ipv4_tunnel`]. Packets with extension headers, which no tunnel end sends, pass.
#[inline(always)]
fn ipv6_tunnel(packet: Packet, config: &Config<V6>) -> Result<(Ipv6Be, usize), Outcome> {
    let Some(ip) = packet.read::<Ipv6Header>(ETH_LEN) else {
        return Err(Outcome::Truncated);
    };
    if ip.is_plain().is_err() || ip.dst != config.vtep {
        return Err(Outcome::NotOverlay);
    }
    match ip.next_header {
        IPPROTO_UDP => Ok((ip.src, ETH_LEN + V6::LEN)),
        IPPROTO_FRAGMENT => Err(Outcome::Fragment),
        _ => Err(Outcome::NotOverlay),
    }
}
