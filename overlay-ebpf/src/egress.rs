//! From a pod to another node: encapsulate, or route directly, whatever has an egress lease.

use core::mem::offset_of;

use overlay_common::{
    addr::Address as _,
    config::{Config, FASTPATH_OFF},
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_DIRECT, Node},
    outcome::Outcome,
    wire::{ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, EthHeader, VLAN_ID_MASK},
};

use crate::{
    Handled,
    flows::{FlowEntry, Way},
    helpers::{Skb, now, redirect},
    injection,
    ip::Ip,
    mac::{Mac, write_pair},
    maps,
    nexthop::NexthopEntry,
    packet::Packet,
    parse::{Control, ETH_LEN, Flow, Local, why_off},
};

/// Largest value of the outer headers' length fields: IPv4's counts its own header, IPv6's does not.
const LEN_MAX: u32 = 0xffff;

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Result<Handled, Outcome> {
    let result = classify::<F>(skb);
    // What the fast path takes was learned when its lease was granted.
    if !matches!(result, Ok(_) | Err(Outcome::Disabled))
        && let Some(source) = Mac::read(skb.packet(), offset_of!(EthHeader, src))
    {
        maps::learn_pod(source, skb.ifindex());
    }
    result
}

#[inline(always)]
fn classify<F: Ip>(skb: &Skb) -> Result<Handled, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
    let frame_dst = Mac::read(packet, 0).ok_or(Outcome::Truncated)?;
    let source_and_type: u64 = packet.read(6).ok_or(Outcome::Truncated)?;
    let ethertype = (source_and_type >> 48) as u16;
    if skb.vlan_present() != 0 {
        return guard_tagged(skb, packet, config, ethertype);
    }
    if config.fastpath == FASTPATH_OFF {
        return guard_tunnel(skb, packet, config, Some(why_off(config)));
    }
    if ethertype != u16::from_ne_bytes(F::ETHERTYPE) {
        return Err(Outcome::NotIp);
    }
    let flow = match Flow::parse(packet, ETH_LEN, Local::Source, config) {
        Ok(flow) if config.is_remote_pod(flow.words.remote()) => flow,
        other => return guard_tunnel(skb, packet, config, other.err()),
    };
    let source = Mac::from_low_bits(source_and_type);
    forward(skb, config, packet, [frame_dst, source], &flow).inspect_err(|_| {
        skb.set_hash(flow.stamp_before_hop(config));
    })
}

/// Stops tunnel packets of a pod. Anything else that is no pod-to-pod packet goes on.
#[inline(always)]
fn guard_tunnel<F: Ip>(
    skb: &Skb,
    packet: Packet,
    config: &Config<F>,
    reason: Option<Outcome>,
) -> Result<Handled, Outcome> {
    if injection::is_sent(skb, packet, config) {
        return Ok(Handled::drop(Outcome::PodTunnel));
    }
    Err(reason.unwrap_or(Outcome::NotOverlay))
}

/// The kernel takes priority tags (VLAN 0) off, however many there are one inside another, and goes
/// on with what is in them; frames of a VLAN that has no device it does not route. The outermost tag
/// is already off the packet. Nobody but an attacker puts more tags into a priority tag, and what is
/// under all of them cannot be read here.
#[inline(always)]
fn guard_tagged<F: Ip>(
    skb: &Skb,
    packet: Packet,
    config: &Config<F>,
    ethertype: u16,
) -> Result<Handled, Outcome> {
    let is_tag = ethertype == u16::from_ne_bytes(ETHERTYPE_VLAN)
        || ethertype == u16::from_ne_bytes(ETHERTYPE_SERVICE_VLAN);
    if is_tag && skb.vlan_tci() & VLAN_ID_MASK == 0 {
        return Ok(Handled::drop(Outcome::PodTunnel));
    }
    if ethertype == u16::from_ne_bytes(F::ETHERTYPE) {
        return guard_tunnel(skb, packet, config, Some(Outcome::Vlan));
    }
    Err(Outcome::Vlan)
}

#[inline(always)]
fn forward<F: Ip>(
    skb: &Skb,
    config: &Config<F>,
    packet: Packet,
    [frame_dst, frame_src]: [Mac; 2],
    flow: &Flow<F>,
) -> Result<Handled, Outcome> {
    let entry = FlowEntry::find(flow.words).ok_or(Outcome::NoLease)?;
    if flow.control != Control::None {
        return Err(Outcome::TcpControl);
    }
    let until = entry.egress_until();
    let (generation, index) = entry.generation_and_node();
    let (gateway, source_port) = entry.gateway_and_port();
    let way = entry.way();
    if now() >= until || !entry.is_still(flow.words) {
        return Err(Outcome::NoLease);
    }
    if generation != config.generation {
        return Err(Outcome::Generation);
    }
    if frame_dst != gateway || !frame_src.is_station() {
        return Err(Outcome::NotGateway);
    }
    if flow.ttl <= 1 {
        return Err(Outcome::Ttl);
    }
    if flow.header_bits(1) != way.header {
        return Err(Outcome::OtherHeader);
    }
    let node = F::node(index).ok_or(Outcome::Nexthop)?;
    let nexthop = NexthopEntry::find::<F>(index).ok_or(Outcome::Nexthop)?;
    if way.vtep != u32::from_ne_bytes(node.vtep.tag()) || way.path_changes != nexthop.path_changes()
    {
        return Err(Outcome::Nexthop);
    }
    let frame_len = skb.len();
    if !flow.is_whole(frame_len, ETH_LEN as u32) {
        return Err(Outcome::Length);
    }
    if !flow.fits(frame_len, ETH_LEN as u32, skb.gso_size(), way.mtu.into()) {
        return Err(Outcome::Mtu);
    }
    // The node's flags may have changed since the lease was granted.
    match way.mode {
        MODE_TUNNEL if node.flags & F::TUNNEL_FLAGS == F::TUNNEL_FLAGS => {
            encapsulate(skb, flow, node, &way, frame_len, source_port)
        }
        MODE_DIRECT if node.flags & NODE_DIRECT != 0 => route(skb, packet, flow, &way),
        MODE_TUNNEL | MODE_DIRECT => Err(Outcome::Nexthop),
        _ => Err(Outcome::NoLease),
    }
}

#[inline(always)]
fn encapsulate<F: Ip>(
    skb: &Skb,
    flow: &Flow<F>,
    node: &Node<F>,
    way: &Way,
    frame_len: u32,
    source_port: u16,
) -> Result<Handled, Outcome> {
    let outer_len = frame_len - ETH_LEN as u32 + F::ENCAP_LEN;
    if outer_len > LEN_MAX {
        return Err(Outcome::Mtu);
    }
    skb.grow_for_encap::<F>()
        .map_err(|()| Outcome::AdjustRoom)?;
    match write_encap(skb.packet(), flow, node, way, outer_len, source_port) {
        Some(()) => Ok(send(skb, Outcome::FastTunnel, way)),
        None => Ok(Handled::drop(Outcome::Rewrite)),
    }
}

/// Writes everything before the inner packet, and the inner hop.
#[inline(always)]
fn write_encap<F: Ip>(
    packet: Packet,
    flow: &Flow<F>,
    node: &Node<F>,
    way: &Way,
    outer_len: u32,
    source_port: u16,
) -> Option<()> {
    F::write_hop(packet, ETH_LEN + F::ENCAP_LEN as usize, flow)?;
    F::write_encap(packet, flow, node, outer_len, source_port)?;
    write_pair(packet, way.next_hop, way.source)
}

#[inline(always)]
fn route<F: Ip>(skb: &Skb, packet: Packet, flow: &Flow<F>, way: &Way) -> Result<Handled, Outcome> {
    let written = F::write_hop(packet, ETH_LEN, flow)
        .and_then(|()| write_pair(packet, way.next_hop, way.source));
    match written {
        Some(()) => Ok(send(skb, Outcome::FastDirect, way)),
        None => Ok(Handled::drop(Outcome::Rewrite)),
    }
}

/// Sends the finished packet, marked so that `overlay_confirm` on the underlay lets it be.
#[inline(always)]
fn send(skb: &Skb, outcome: Outcome, way: &Way) -> Handled {
    skb.mark_forwarded();
    skb.set_mark_and_priority(way.mark, way.priority);
    Handled::redirect(outcome, redirect(way.ifindex))
}
