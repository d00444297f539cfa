//! From another node to a pod: decapsulate, or take as it is, whatever has an ingress lease.
//!
//! Only ever delivered to a local pod: up to Linux 6.18 the kernel keeps tunnel marks on a packet
//! that BPF decapsulated, which would mislead segmentation if it were transmitted again.

use core::mem::offset_of;

use overlay_common::{
    addr::Ipv4Be,
    checksum::replace_word,
    config::{Config, FASTPATH_OFF},
    ecn,
    encap::EncapHeader,
    node::{MODE_DIRECT, MODE_TUNNEL},
    outcome::Outcome,
    stamp::stamp,
    wire::{
        ETHERTYPE_IPV4, IPPROTO_ICMP, IPPROTO_UDP, IPV4_NO_OPTIONS, Ipv4Header, UdpHeader,
        VXLAN_FLAG_VNI,
    },
};

use crate::{
    Handled,
    helpers::{Skb, now, redirect_peer},
    mac::{Mac, write_pair},
    maps::{self, FlowEntry, NexthopEntry},
    packet::Packet,
    parse::{Control, ETH_LEN, FLOW_LEN, Flow4, IPV4_LEN, Local},
};

const ICMP_LEN: usize = 8;

/// Type and code of "fragmentation needed", as the packet holds them.
const ICMP_TOO_BIG: [u8; 2] = [3, 4];

/// Offset of the inner IP header.
const INNER: usize = ETH_LEN + size_of::<EncapHeader>();

/// What the flow's entry says about delivery.
struct Delivery {
    ifindex: u32,
    dst: Mac,
    src: Mac,
}

#[inline(always)]
pub fn run(skb: &Skb) -> Result<Handled, Outcome> {
    let config = maps::config().ok_or(Outcome::Disabled)?;
    if config.fastpath == FASTPATH_OFF {
        return Err(Outcome::Disabled);
    }
    let packet = skb.packet_with(ETH_LEN as u32 + FLOW_LEN);
    let ethertype: u16 = packet.read(12).ok_or(Outcome::Truncated)?;
    if ethertype != u16::from_ne_bytes(ETHERTYPE_IPV4) {
        return Err(Outcome::NotIpv4);
    }
    let ip: Ipv4Header = packet.read(ETH_LEN).ok_or(Outcome::Truncated)?;
    if !skb.is_to_host() {
        return Err(Outcome::NotOverlay);
    }
    if skb.vlan_present() != 0 {
        return Err(Outcome::Vlan);
    }
    if ip.dst == config.vtep {
        match ip.protocol {
            IPPROTO_UDP => return from_tunnel(skb, config),
            IPPROTO_ICMP if ip.version_ihl == IPV4_NO_OPTIONS => heed_too_big(skb),
            _ => {}
        }
        return Err(Outcome::NotOverlay);
    }
    if config.is_local_pod(ip.dst) && config.is_remote_pod(ip.src) {
        return from_direct(skb, config);
    }
    Err(Outcome::NotOverlay)
}

/// "Fragmentation needed" about a packet to a node: it was fast, the kernel's own may be fragmented.
/// The kernel is about to note the smaller MTU with its route. The next hop is resolved again with
/// the next packet, which takes the kernel tier; without this, large packets would go on being lost
/// until the leases run out.
#[inline(always)]
fn heed_too_big(skb: &Skb) {
    const MESSAGE: usize = ETH_LEN + IPV4_LEN;
    const QUOTED: usize = MESSAGE + ICMP_LEN;
    let packet = skb.packet_with((QUOTED + IPV4_LEN) as u32);
    let Some(about) = packet.read::<Ipv4Header>(QUOTED) else {
        return;
    };
    if packet.read(MESSAGE) == Some(ICMP_TOO_BIG)
        && let Some(node) = maps::node_at(about.dst)
        && let Some(nexthop) = NexthopEntry::find(node)
    {
        nexthop.invalidate();
    }
}

/// Looks up the ingress lease of `flow`, a packet that came `by` tunnel or directly.
#[inline(always)]
fn lease(
    skb: &Skb,
    config: &Config,
    flow: &Flow4,
    offset: usize,
    by: u8,
    outer_source: Option<Ipv4Be>,
) -> Result<Delivery, Outcome> {
    let entry = FlowEntry::find(flow.words).ok_or(Outcome::NoLease)?;
    if flow.control != Control::None {
        return Err(Outcome::TcpControl);
    }
    let until = entry.ingress_until();
    let (generation, index) = entry.generation_and_node();
    let (dst, mtu) = entry.pod_and_mtu();
    let (src, _, mode) = entry.deliver_and_modes();
    let ifindex = entry.pod_ifindex();
    if now() >= until || !entry.is_still(flow.words) {
        return Err(Outcome::NoLease);
    }
    if generation != config.generation {
        return Err(Outcome::Generation);
    }
    if mode != by {
        return Err(Outcome::OtherMode);
    }
    if let Some(source) = outer_source
        && maps::node(index).ok_or(Outcome::WrongPeer)?.vtep != source
    {
        return Err(Outcome::WrongPeer);
    }
    if flow.ttl <= 1 {
        return Err(Outcome::Ttl);
    }
    let frame_len = skb.len();
    if !flow.is_whole(frame_len, offset as u32) {
        return Err(Outcome::Length);
    }
    if !flow.fits(frame_len, offset as u32, skb.gso_size(), mtu) {
        return Err(Outcome::Mtu);
    }
    Ok(Delivery { ifindex, dst, src })
}

#[inline(always)]
fn from_tunnel(skb: &Skb, config: &Config) -> Result<Handled, Outcome> {
    let packet = skb.packet_with(INNER as u32 + FLOW_LEN);
    let ip: Ipv4Header = packet.read(ETH_LEN).ok_or(Outcome::Truncated)?;
    let udp: UdpHeader = packet.read(ETH_LEN + IPV4_LEN).ok_or(Outcome::Truncated)?;
    if ip.version_ihl != IPV4_NO_OPTIONS {
        return Err(Outcome::IpOptions);
    }
    if u16::from_be_bytes(ip.fragment) & 0x3fff != 0 {
        return Err(Outcome::Fragment);
    }
    if udp.dst_port != config.vxlan_port {
        return Err(Outcome::NotOverlay);
    }
    let encap: EncapHeader = packet.read(ETH_LEN).ok_or(Outcome::Truncated)?;
    // Reserved bits set: vxlan extensions, which the kernel judges.
    let vxlan = &encap.vxlan;
    if vxlan.flags != VXLAN_FLAG_VNI
        || vxlan.reserved != [0; 3]
        || vxlan.reserved2 != 0
        || vxlan.vni != config.vni
        || encap.inner_eth.dst != config.vtep_mac
    {
        return Err(Outcome::VxlanHeader);
    }
    if encap.inner_eth.ethertype != ETHERTYPE_IPV4 {
        return Err(Outcome::NotIpv4);
    }
    let flow = Flow4::parse(packet, INNER, Local::Destination, config)?;
    let delivery = match lease(skb, config, &flow, INNER, MODE_TUNNEL, Some(ip.src)) {
        Ok(delivery) => delivery,
        Err(Outcome::NoLease) if !maps::is_peer(ip.src) => return Err(Outcome::UnknownPeer),
        Err(outcome) => return Err(outcome),
    };
    // The kernel cuts the packet to what the outer headers announce, or drops it.
    let outer_len = skb.len() - ETH_LEN as u32;
    if u32::from(u16::from_be_bytes(ip.total_len)) != outer_len
        || u32::from(u16::from_be_bytes(udp.len)) != outer_len - IPV4_LEN as u32
    {
        return Err(Outcome::Length);
    }
    let tos = ecn::decapsulate(ip.tos, flow.tos).ok_or(Outcome::Ecn)?;
    // A TCP socket takes a GSO packet whole. A UDP socket has it split into datagrams, and there the
    // tunnel marks make the kernel look for a tunnel header that is gone.
    if flow.protocol == IPPROTO_UDP && skb.gso_size() != 0 {
        return Err(Outcome::UdpGso);
    }
    skb.shrink_for_decap(udp.check != [0; 2])
        .map_err(|()| Outcome::AdjustRoom)?;
    deliver(skb, &flow, tos, &delivery, Outcome::FastTunnel)
}

#[inline(always)]
fn from_direct(skb: &Skb, config: &Config) -> Result<Handled, Outcome> {
    let packet = skb.packet();
    let flow = Flow4::parse(packet, ETH_LEN, Local::Destination, config)?;
    match lease(skb, config, &flow, ETH_LEN, MODE_DIRECT, None) {
        Ok(delivery) => deliver(skb, &flow, flow.tos, &delivery, Outcome::FastDirect),
        Err(outcome) => {
            skb.set_hash(stamp(flow.words, &config.stamp_key, config.generation));
            Err(outcome)
        }
    }
}

/// Takes the packet, bare of any encapsulation, one hop further: into the pod.
#[inline(always)]
fn deliver(
    skb: &Skb,
    flow: &Flow4,
    tos: u8,
    delivery: &Delivery,
    outcome: Outcome,
) -> Result<Handled, Outcome> {
    match write_delivery(skb.packet(), flow, tos, delivery) {
        Some(()) => Ok(Handled::redirect(outcome, redirect_peer(delivery.ifindex))),
        None => Ok(Handled::drop(Outcome::Rewrite)),
    }
}

#[inline(always)]
fn write_delivery(packet: Packet, flow: &Flow4, tos: u8, delivery: &Delivery) -> Option<()> {
    write_pair(packet, delivery.dst, delivery.src)?;
    flow.write_hop(packet, ETH_LEN)?;
    if tos != flow.tos {
        let at = ETH_LEN + offset_of!(Ipv4Header, check);
        let check = u16::from_be_bytes(packet.read(at)?);
        let old = u16::from_be_bytes([IPV4_NO_OPTIONS, flow.tos]);
        let new = u16::from_be_bytes([IPV4_NO_OPTIONS, tos]);
        packet.write(at, replace_word(check, old, new).to_be_bytes())?;
        packet.write(ETH_LEN + offset_of!(Ipv4Header, tos), tos)?;
    }
    Some(())
}
