//! From a pod to another node: sends whatever has an egress permit.

use core::mem::offset_of;

use overlay_common::{
    addr::Address as _,
    config::{Config, FASTPATH_OFF},
    flow::REWRITE_NONE,
    outcome::Outcome,
    wire::{ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, EthHeader, VLAN_ID_MASK},
};

use crate::{
    Handled,
    act::{self, Departure},
    encap::Encap,
    flow_packet::{Control, FlowPacket, Local},
    flows::FlowEntry,
    helpers::{Skb, now},
    injection,
    ip::Ip,
    mac::Mac,
    maps,
    nexthop::NexthopEntry,
    observe::enter,
    packet::{ETH_LEN, Packet},
    parse::why_off,
};

#[inline(always)]
pub fn run<F: Ip, E: Encap<F>>(skb: &Skb) -> Result<Handled, Outcome> {
    let result = classify::<F, E>(skb);
    // What the fast path takes was learned when its permit was granted.
    if !matches!(result, Ok(_) | Err(Outcome::Disabled))
        && let Some(source) = Mac::read(skb.packet(), offset_of!(EthHeader, src))
    {
        maps::learn_pod(source, skb.ifindex());
    }
    result
}

#[inline(always)]
fn classify<F: Ip, E: Encap<F>>(skb: &Skb) -> Result<Handled, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
    let frame_dst = Mac::read(packet, 0).ok_or(Outcome::Truncated)?;
    let source_and_type: u64 = packet.read(6).ok_or(Outcome::Truncated)?;
    let ethertype = (source_and_type >> 48) as u16;
    if skb.vlan_present() != 0 {
        return guard_tagged(skb, packet, config, ethertype);
    }
    if config.fastpath == FASTPATH_OFF {
        return guard_tunnel(skb, packet, config, why_off(config));
    }
    if ethertype != u16::from_ne_bytes(F::ETHERTYPE) {
        return Err(Outcome::NotIp);
    }
    let flow = match FlowPacket::parse(packet, ETH_LEN, Local::Source, config) {
        Ok(flow) => flow,
        // At once: older verifiers lose sight of which of the two it was, and of what there is of a flow.
        Err(outcome) => return guard_tunnel(skb, packet, config, outcome),
    };
    let to_pod = config.is_remote_pod(flow.words.remote());
    if !to_pod {
        if injection::is_sent(skb, packet, config) {
            return Ok(Handled::drop(Outcome::PodTunnel));
        }
        if !may_be_translated(&flow, config) {
            return Err(Outcome::NotOverlay);
        }
    }
    let macs = [frame_dst, Mac::from_low_bits(source_and_type)];
    let entry = FlowEntry::find(flow.key());
    let result = match entry {
        Some(entry) => forward::<F, E>(skb, config, macs, &flow, entry),
        None if to_pod => Err(Outcome::NoPermit),
        None => Err(Outcome::NotOverlay),
    };
    result.inspect_err(|_| enter(skb, &flow, config))
}

/// Whether netfilter may make a packet of one for another pod, as of one for a service.
#[inline(always)]
fn may_be_translated<F: Ip>(flow: &FlowPacket<F>, config: &Config<F>) -> bool {
    flow.has_ports()
        && config.is_local_pod(flow.words.local())
        && !config.is_local_pod(flow.words.remote())
}

/// Stops tunnel packets of a pod. Anything else goes on in the kernel, for the reason given.
#[inline(always)]
fn guard_tunnel<F: Ip>(
    skb: &Skb,
    packet: Packet,
    config: &Config<F>,
    reason: Outcome,
) -> Result<Handled, Outcome> {
    if injection::is_sent(skb, packet, config) {
        return Ok(Handled::drop(Outcome::PodTunnel));
    }
    Err(reason)
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
        return guard_tunnel(skb, packet, config, Outcome::Vlan);
    }
    Err(Outcome::Vlan)
}

#[inline(always)]
fn forward<F: Ip, E: Encap<F>>(
    skb: &Skb,
    config: &Config<F>,
    [frame_dst, frame_src]: [Mac; 2],
    flow: &FlowPacket<F>,
    entry: FlowEntry,
) -> Result<Handled, Outcome> {
    if flow.control != Control::None {
        return Err(Outcome::TcpControl);
    }
    let until = entry.egress_until();
    let (generation, index, rewrite) = entry.owner();
    let (gateway, source_port) = entry.gateway_and_port();
    let way = entry.way();
    let to = (rewrite != REWRITE_NONE).then(|| entry.rewrite());
    if now() >= until || !entry.is_still(flow.key()) {
        return Err(Outcome::NoPermit);
    }
    if generation != config.generation {
        return Err(Outcome::Generation);
    }
    if frame_dst != gateway || !is_received(skb, gateway, frame_src) {
        return Err(Outcome::NotGateway);
    }
    if flow.ttl <= E::HOPS {
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
    let departure = Departure {
        way: &way,
        node,
        source_port,
    };
    act::send::<F, E>(skb, flow, to, &departure, frame_len)
}

/// Whether the host takes a frame to `gateway` from this address on the interface. One without addresses it takes
/// where all are: a bridge or a veth that gets such a one has an address of its own.
#[inline(always)]
fn is_received(skb: &Skb, gateway: Mac, source: Mac) -> bool {
    if gateway == Mac::NONE {
        maps::has_no_addresses(skb.ifindex())
    } else {
        source.is_station()
    }
}
