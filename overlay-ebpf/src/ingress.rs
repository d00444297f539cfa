//! From another node to a pod: decapsulate, or take as it is, whatever has an ingress permit.
//!
//! Only ever delivered to a local pod: up to Linux 6.18 the kernel keeps tunnel marks on a packet
//! that BPF decapsulated, which would mislead segmentation if it were transmitted again.

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use overlay_common::{
    config::{Config, FASTPATH_OFF},
    ecn,
    encap::DATAGRAM_LEN,
    family::V4,
    flow::REWRITE_NONE,
    node::{MODE_DIRECT, MODE_TUNNEL},
    outcome::Outcome,
    wire::IPPROTO_UDP,
};

use crate::{
    Conclusion, Handled,
    act::{self, Delivery},
    datagram::Datagram,
    encap::{Datagrams, Encap},
    flow_packet::{Control, FlowPacket, Local},
    flows::FlowEntry,
    helpers::{Skb, now},
    injection,
    ip::{Header as _, Ip},
    maps::{self, Tables as _},
    nexthop::NexthopEntry,
    observe::enter,
    packet::ETH_LEN,
    parse::{Tunnel, why_off},
    short,
};

const ICMP_LEN: usize = 8;

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Conclusion {
    if !is_from_tunnel::<F>(skb) {
        return concluded(at_host::<F>(*skb));
    }
    let outcome = at_tunnel::<F>(*skb);
    match concluded(outcome) {
        Conclusion {
            verdict: TC_ACT_UNSPEC,
            ..
        } => short::concluded(short::enter::<F>(*skb), outcome),
        handled => handled,
    }
}

/// As [`run`], where tunnel packets are the udp backend's.
#[inline(always)]
pub fn run_datagrams(skb: &Skb) -> Conclusion {
    let outcome = if is_from_tunnel::<V4>(skb) {
        at_socket(*skb)
    } else {
        at_host::<V4>(*skb)
    };
    concluded(outcome)
}

/// The verdict that goes with an outcome: helpers that redirect return but the one.
#[inline(always)]
fn concluded(outcome: Outcome) -> Conclusion {
    let verdict = match outcome {
        Outcome::FastTunnel | Outcome::FastDirect | Outcome::FastTranslated => TC_ACT_REDIRECT,
        Outcome::Rewrite | Outcome::PodTunnel => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    };
    Conclusion { outcome, verdict }
}

// Functions of their own: what each needs of the stack, the others share.

#[inline(never)]
fn at_host<F: Ip>(skb: Skb) -> Outcome {
    told(judge::<F>(&skb))
}

#[inline(never)]
fn at_tunnel<F: Ip>(skb: Skb) -> Outcome {
    let result = F::config()
        .ok_or(Outcome::Disabled)
        .and_then(|config| from_tunnel::<F>(&skb, config));
    told(result)
}

#[inline(never)]
fn at_socket(skb: Skb) -> Outcome {
    let result = V4::config()
        .ok_or(Outcome::Disabled)
        .and_then(|config| from_forwarder(&skb, config));
    told(result)
}

#[inline(always)]
fn told(result: Result<Handled, Outcome>) -> Outcome {
    match result {
        Ok(handled) => handled.outcome,
        Err(outcome) => outcome,
    }
}

/// Whether the packet is what other nodes' tunnel packets are: UDP to this node's VTEP.
#[inline(always)]
fn is_from_tunnel<F: Ip>(skb: &Skb) -> bool {
    let Some(config) = F::config() else {
        return false;
    };
    let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
    let Some(header) = packet.read::<F::Header>(ETH_LEN) else {
        return false;
    };
    let ip = header.fields();
    ip.dst == config.vtep
        && ip.protocol == IPPROTO_UDP
        && packet.read(12) == Some(F::ETHERTYPE)
        && config.fastpath != FASTPATH_OFF
        && skb.is_to_host()
        && skb.vlan_present() == 0
}

/// Judges a packet of any other kind.
#[inline(always)]
fn judge<F: Ip>(skb: &Skb) -> Result<Handled, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    let packet = skb.packet_with(ETH_LEN as u32 + F::FLOW_LEN);
    if config.fastpath == FASTPATH_OFF {
        return if injection::arrives(skb, packet, config) {
            Ok(Handled::drop(Outcome::PodTunnel))
        } else {
            Err(why_off(config))
        };
    }
    let ethertype: u16 = packet.read(12).ok_or(Outcome::Truncated)?;
    if ethertype != u16::from_ne_bytes(F::ETHERTYPE) {
        return Err(Outcome::NotIp);
    }
    let Some(header) = packet.read::<F::Header>(ETH_LEN) else {
        return Err(Outcome::Truncated);
    };
    let ip = header.fields();
    if !skb.is_to_host() {
        return Err(Outcome::NotOverlay);
    }
    if skb.vlan_present() != 0 {
        return Err(Outcome::Vlan);
    }
    if ip.dst == config.vtep {
        if ip.protocol == F::ICMP && header.is_plain().is_ok() {
            heed_too_big::<F>(skb);
        }
        return Err(Outcome::NotOverlay);
    }
    if !config.is_remote_pod(ip.src) {
        return Err(Outcome::NotOverlay);
    }
    if injection::is_for_host(skb, packet, config) {
        return Ok(Handled::drop(Outcome::PodTunnel));
    }
    if config.is_local_pod(ip.dst) {
        return from_direct(skb, config);
    }
    Err(Outcome::NotOverlay)
}

/// "Fragmentation needed", or "packet too big", about a packet to a node: it was fast, the kernel's
/// own over IPv4 may be fragmented. The kernel is about to note the smaller MTU with its route. All flows
/// to the node earn their way again with it; without this, large packets would go on being lost until
/// the permits run out.
#[inline(always)]
fn heed_too_big<F: Ip>(skb: &Skb) {
    let message = ETH_LEN + F::LEN;
    let quoted = message + ICMP_LEN;
    let packet = skb.packet_with((quoted + F::LEN) as u32);
    let Some(about) = packet.read::<F::Header>(quoted) else {
        return;
    };
    if packet.read(message) == Some(F::TOO_BIG)
        && let Some(node) = F::node_at(about.fields().dst)
        && let Some(nexthop) = NexthopEntry::find::<F>(node)
    {
        nexthop.note_change();
    }
}

/// Looks up the ingress permit of `flow`, a packet that came `by` tunnel or directly, and for which this node is so
/// many hops.
#[inline(always)]
fn permit<F: Ip>(
    skb: &Skb,
    config: &Config<F>,
    flow: &FlowPacket<F>,
    offset: usize,
    (by, hops): (u8, u8),
    outer_source: Option<F::Be>,
) -> Result<Delivery<F>, Outcome> {
    let entry = FlowEntry::find(flow.key()).ok_or(Outcome::NoPermit)?;
    if flow.control != Control::None {
        return Err(Outcome::TcpControl);
    }
    let until = entry.ingress_until();
    let (generation, index, rewrite) = entry.owner();
    let (dst, mtu) = entry.pod_and_mtu();
    let (src, mode, header) = entry.deliver_and_mode();
    let (ifindex, moves) = entry.pod_ifindex_and_moves();
    let from = (rewrite != REWRITE_NONE).then(|| entry.rewrite());
    if now() >= until || !entry.is_still(flow.key()) {
        return Err(Outcome::NoPermit);
    }
    if generation != config.generation {
        return Err(Outcome::Generation);
    }
    if moves != maps::moves(dst) {
        return Err(Outcome::PodMoved);
    }
    if mode != by {
        return Err(Outcome::OtherMode);
    }
    if let Some(source) = outer_source
        && F::node(index).ok_or(Outcome::WrongPeer)?.vtep != source
    {
        return Err(Outcome::WrongPeer);
    }
    if flow.ttl <= hops {
        return Err(Outcome::Ttl);
    }
    if flow.header_bits(hops) != header {
        return Err(Outcome::OtherHeader);
    }
    let frame_len = skb.len();
    if !flow.is_whole(frame_len, offset as u32) {
        return Err(Outcome::Length);
    }
    if !flow.fits(frame_len, offset as u32, skb.gso_size(), mtu) {
        return Err(Outcome::Mtu);
    }
    Ok(Delivery {
        ifindex,
        dst,
        src,
        from,
        hops,
    })
}

#[inline(always)]
fn from_tunnel<F: Ip>(skb: &Skb, config: &Config<F>) -> Result<Handled, Outcome> {
    let inner = ETH_LEN + F::ENCAP_LEN as usize;
    let packet = skb.packet_with(inner as u32 + F::FLOW_LEN);
    let tunnel = Tunnel::read(packet, config, config.vtep_mac)?;
    let flow = FlowPacket::parse(packet, inner, Local::Destination, config)?;
    let source = tunnel.source;
    let by = (MODE_TUNNEL, 1);
    let delivery = match permit(skb, config, &flow, inner, by, Some(source)) {
        Ok(delivery) => delivery,
        Err(Outcome::NoPermit) if !F::is_peer(source) => return Err(Outcome::UnknownPeer),
        Err(outcome) => return Err(outcome),
    };
    // The kernel cuts the packet to what the outer headers announce, or drops it.
    let outer_len = skb.len() - ETH_LEN as u32;
    if tunnel.len != outer_len || tunnel.udp_len != outer_len - F::LEN as u32 {
        return Err(Outcome::Length);
    }
    let tos = ecn::decapsulate(tunnel.tos, flow.tos).ok_or(Outcome::Ecn)?;
    // A TCP socket takes a GSO packet whole. A UDP socket has it split into datagrams, and there the
    // tunnel marks make the kernel look for a tunnel header that is gone.
    if flow.protocol == IPPROTO_UDP && skb.gso_size() != 0 {
        return Err(Outcome::UdpGso);
    }
    skb.shrink_for_decap(F::ENCAP_LEN, tunnel.checksum)
        .map_err(|()| Outcome::AdjustRoom)?;
    Ok(act::deliver(
        skb,
        &flow,
        tos,
        &delivery,
        Outcome::FastTunnel,
    ))
}

/// A datagram to this node's forwarder, which judges all that is not fast. What it asks of a sender, a node's address
/// and the backend's port, is asked here; the inner source is of the node's subnet, whose permit it is.
#[inline(always)]
fn from_forwarder(skb: &Skb, config: &Config) -> Result<Handled, Outcome> {
    const HOPS: u8 = <Datagrams as Encap<V4>>::HOPS;
    let inner = ETH_LEN + DATAGRAM_LEN as usize;
    let packet = skb.packet_with(inner as u32 + V4::FLOW_LEN);
    let datagram = Datagram::read(packet, config)?;
    if u16::to_ne_bytes(datagram.source_port) != config.vxlan_port {
        return Err(Outcome::UnknownPeer);
    }
    let flow = FlowPacket::parse(packet, inner, Local::Destination, config)?;
    let source = datagram.source;
    let by = (MODE_TUNNEL, HOPS);
    let delivery = match permit(skb, config, &flow, inner, by, Some(source)) {
        Ok(delivery) => delivery,
        Err(Outcome::NoPermit) if !V4::is_peer(source) => return Err(Outcome::UnknownPeer),
        Err(outcome) => return Err(outcome),
    };
    let outer_len = skb.len() - ETH_LEN as u32;
    if datagram.len != outer_len || datagram.udp_len != outer_len - V4::LEN as u32 {
        return Err(Outcome::Length);
    }
    if flow.protocol == IPPROTO_UDP && skb.gso_size() != 0 {
        return Err(Outcome::UdpGso);
    }
    // What a card says of checksums is of the datagram's: none looks for a packet in it.
    skb.shrink_for_decap(DATAGRAM_LEN, true)
        .map_err(|()| Outcome::AdjustRoom)?;
    Ok(act::deliver(
        skb,
        &flow,
        flow.tos,
        &delivery,
        Outcome::FastTunnel,
    ))
}

#[inline(always)]
fn from_direct<F: Ip>(skb: &Skb, config: &Config<F>) -> Result<Handled, Outcome> {
    let packet = skb.packet();
    let flow = FlowPacket::parse(packet, ETH_LEN, Local::Destination, config)?;
    match permit(skb, config, &flow, ETH_LEN, (MODE_DIRECT, 1), None) {
        Ok(delivery) => Ok(act::deliver(
            skb,
            &flow,
            flow.tos,
            &delivery,
            Outcome::FastDirect,
        )),
        Err(outcome) => {
            enter(skb, &flow, config);
            Err(outcome)
        }
    }
}
