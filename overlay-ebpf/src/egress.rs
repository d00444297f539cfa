//! From a pod to another node: encapsulate, or route directly, whatever has an egress lease.

use core::mem::offset_of;

use overlay_common::{
    config::{Config, FASTPATH_OFF},
    ecn,
    encap::{ENCAP_LEN, EncapHeader, outer_ipv4_check},
    node::{MODE_DIRECT, MODE_TUNNEL, Node},
    outcome::Outcome,
    stamp::stamp,
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, EthHeader, Ipv4Header, UdpHeader,
        VLAN_ID_MASK,
    },
};

use crate::{
    Handled,
    helpers::{Skb, now, redirect},
    mac::{Mac, write_pair},
    maps::{self, FlowEntry, NexthopCopy, NexthopEntry},
    packet::Packet,
    parse::{Control, ETH_LEN, FLOW_LEN, Flow4, IPV4_LEN, Local, udp_destination},
};

/// Largest value of the outer header's length field.
const IP_LEN_MAX: u32 = 0xffff;

#[inline(always)]
pub fn run(skb: &Skb) -> Result<Handled, Outcome> {
    let result = classify(skb);
    // What the fast path takes was learned when its lease was granted.
    if !matches!(result, Ok(_) | Err(Outcome::Disabled))
        && let Some(source) = Mac::read(skb.packet(), offset_of!(EthHeader, src))
    {
        maps::learn_pod(source, skb.ifindex());
    }
    result
}

#[inline(always)]
fn classify(skb: &Skb) -> Result<Handled, Outcome> {
    let config = maps::config().ok_or(Outcome::Disabled)?;
    let packet = skb.packet_with(ETH_LEN as u32 + FLOW_LEN);
    let frame_dst = Mac::read(packet, 0).ok_or(Outcome::Truncated)?;
    let ethertype: u16 = packet.read(12).ok_or(Outcome::Truncated)?;
    if skb.vlan_present() != 0 {
        return guard_tagged(skb, packet, config, ethertype);
    }
    if config.fastpath == FASTPATH_OFF {
        return guard_tunnel(skb, packet, config, Some(Outcome::Disabled));
    }
    if ethertype != u16::from_ne_bytes(ETHERTYPE_IPV4) {
        return Err(Outcome::NotIpv4);
    }
    let flow = match Flow4::parse(packet, ETH_LEN, Local::Source, config) {
        Ok(flow) if config.is_remote_pod(flow.words.remote()) => flow,
        other => return guard_tunnel(skb, packet, config, other.err()),
    };
    forward(skb, config, packet, frame_dst, &flow).inspect_err(|_| {
        skb.set_hash(stamp(flow.words, &config.stamp_key, config.generation));
    })
}

/// A pod must not be able to inject tunnel packets: the kernel would masquerade them to this node's
/// address, and the peer would believe them. Anything else that is no pod-to-pod packet goes on.
#[inline(always)]
fn guard_tunnel(
    skb: &Skb,
    packet: Packet,
    config: &Config,
    reason: Option<Outcome>,
) -> Result<Handled, Outcome> {
    if let Some(destination) = udp_destination(skb, packet, config.vxlan_port)
        && (destination == config.vtep || maps::is_peer(destination))
    {
        return Ok(Handled::drop(Outcome::PodTunnel));
    }
    Err(reason.unwrap_or(Outcome::NotOverlay))
}

/// The kernel takes priority tags (VLAN 0) off, however many there are one inside another, and goes
/// on with what is in them; frames of a VLAN that has no device it does not route. The outermost tag
/// is already off the packet. Nobody but an attacker puts more tags into a priority tag, and what is
/// under all of them cannot be read here.
#[inline(always)]
fn guard_tagged(
    skb: &Skb,
    packet: Packet,
    config: &Config,
    ethertype: u16,
) -> Result<Handled, Outcome> {
    let is_tag = ethertype == u16::from_ne_bytes(ETHERTYPE_VLAN)
        || ethertype == u16::from_ne_bytes(ETHERTYPE_SERVICE_VLAN);
    if is_tag && skb.vlan_tci() & VLAN_ID_MASK == 0 {
        return Ok(Handled::drop(Outcome::PodTunnel));
    }
    if ethertype == u16::from_ne_bytes(ETHERTYPE_IPV4) {
        return guard_tunnel(skb, packet, config, Some(Outcome::Vlan));
    }
    Err(Outcome::Vlan)
}

#[inline(always)]
fn forward(
    skb: &Skb,
    config: &Config,
    packet: Packet,
    frame_dst: Mac,
    flow: &Flow4,
) -> Result<Handled, Outcome> {
    let entry = FlowEntry::find(flow.words).ok_or(Outcome::NoLease)?;
    if flow.control != Control::None {
        return Err(Outcome::TcpControl);
    }
    let until = entry.egress_until();
    let (generation, index) = entry.generation_and_node();
    let (gateway, source_port) = entry.gateway_and_port();
    let (_, mode, _) = entry.deliver_and_modes();
    if now() >= until || !entry.is_still(flow.words) {
        return Err(Outcome::NoLease);
    }
    if generation != config.generation {
        return Err(Outcome::Generation);
    }
    if frame_dst != gateway {
        return Err(Outcome::NotGateway);
    }
    if flow.ttl <= 1 {
        return Err(Outcome::Ttl);
    }
    let node = maps::node(index).ok_or(Outcome::Nexthop)?;
    let nexthop = NexthopEntry::find(index).ok_or(Outcome::Nexthop)?.get();
    if nexthop.vtep != u32::from_ne_bytes(node.vtep.octets) || nexthop.mode != mode {
        return Err(Outcome::Nexthop);
    }
    let frame_len = skb.len();
    if !flow.is_whole(frame_len, ETH_LEN as u32) {
        return Err(Outcome::Length);
    }
    if !flow.fits(frame_len, ETH_LEN as u32, skb.gso_size(), nexthop.mtu) {
        return Err(Outcome::Mtu);
    }
    match mode {
        MODE_TUNNEL => encapsulate(skb, flow, node, &nexthop, frame_len, source_port),
        MODE_DIRECT => route(skb, packet, flow, &nexthop),
        _ => Err(Outcome::NoLease),
    }
}

#[inline(always)]
fn encapsulate(
    skb: &Skb,
    flow: &Flow4,
    node: &Node,
    nexthop: &NexthopCopy,
    frame_len: u32,
    source_port: u16,
) -> Result<Handled, Outcome> {
    let outer_len = frame_len - ETH_LEN as u32 + ENCAP_LEN;
    if outer_len > IP_LEN_MAX {
        return Err(Outcome::Mtu);
    }
    skb.grow_for_encap().map_err(|()| Outcome::AdjustRoom)?;
    match write_encap(skb.packet(), flow, node, nexthop, outer_len, source_port) {
        Some(()) => Ok(send(skb, Outcome::FastTunnel, nexthop)),
        None => Ok(Handled::drop(Outcome::Rewrite)),
    }
}

/// Writes the same bytes as [`EncapHeader::finish`], the outer Ethernet header and the inner hop.
#[inline(always)]
fn write_encap(
    packet: Packet,
    flow: &Flow4,
    node: &Node,
    nexthop: &NexthopCopy,
    outer_len: u32,
    source_port: u16,
) -> Option<()> {
    const TOS: usize = ETH_LEN + offset_of!(EncapHeader, ipv4) + offset_of!(Ipv4Header, tos);
    const LEN: usize = ETH_LEN + offset_of!(EncapHeader, ipv4) + offset_of!(Ipv4Header, total_len);
    const CHECK: usize = ETH_LEN + offset_of!(EncapHeader, ipv4) + offset_of!(Ipv4Header, check);
    const UDP: usize = ETH_LEN + offset_of!(EncapHeader, udp);
    let tos = ecn::encapsulate(flow.tos);
    let total_len = (outer_len as u16).to_be_bytes();
    let udp_len = ((outer_len - IPV4_LEN as u32) as u16).to_be_bytes();
    flow.write_hop(packet, ETH_LEN + ENCAP_LEN as usize)?;
    let (words, last) = node.encap.words();
    packet.write(ETH_LEN, words[0])?;
    packet.write(ETH_LEN + 8, words[1])?;
    packet.write(ETH_LEN + 16, words[2])?;
    packet.write(ETH_LEN + 24, words[3])?;
    packet.write(ETH_LEN + 32, words[4])?;
    packet.write(ETH_LEN + 40, words[5])?;
    packet.write(ETH_LEN + 48, last)?;
    packet.write(TOS, tos)?;
    packet.write(LEN, total_len)?;
    packet.write(
        CHECK,
        outer_ipv4_check(node.ipv4_sum, total_len, tos).to_ne_bytes(),
    )?;
    packet.write(UDP + offset_of!(UdpHeader, src_port), source_port)?;
    packet.write(UDP + offset_of!(UdpHeader, len), udp_len)?;
    write_pair(packet, nexthop.dst_mac, nexthop.src_mac)
}

#[inline(always)]
fn route(
    skb: &Skb,
    packet: Packet,
    flow: &Flow4,
    nexthop: &NexthopCopy,
) -> Result<Handled, Outcome> {
    let written = flow
        .write_hop(packet, ETH_LEN)
        .and_then(|()| write_pair(packet, nexthop.dst_mac, nexthop.src_mac));
    match written {
        Some(()) => Ok(send(skb, Outcome::FastDirect, nexthop)),
        None => Ok(Handled::drop(Outcome::Rewrite)),
    }
}

/// Sends the finished packet, marked so that `overlay_confirm` on the underlay lets it be.
#[inline(always)]
fn send(skb: &Skb, outcome: Outcome, nexthop: &NexthopCopy) -> Handled {
    skb.mark_forwarded();
    Handled::redirect(outcome, redirect(nexthop.ifindex))
}
