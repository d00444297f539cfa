//! Does to a packet what the entry of its flow says: sends it by its way to another node, or hands it to
//! its pod.

use overlay_common::{
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_DIRECT, Node},
    outcome::Outcome,
    wire::IPPROTO_UDP,
};

use crate::{
    Handled,
    encap::Encap,
    flow_packet::{FlowPacket, Local},
    flows::{FlowEnd, Way},
    helpers::{Skb, redirect, redirect_peer},
    ip::Ip,
    mac::{Mac, write_pair},
    packet::ETH_LEN,
};

/// Offsets of the checksums in the transport headers.
const UDP_CHECK: usize = 6;
const TCP_CHECK: usize = 16;

/// Largest value of the outer headers' length fields: IPv4's counts its own header, IPv6's does not.
pub const LEN_MAX: u32 = 0xffff;

/// How a packet gets to the other node.
pub struct Departure<'a, F: Ip> {
    pub way: &'a Way,
    pub node: &'a Node<F>,
    /// UDP source port of the tunnel packet, as it goes into the packet.
    pub source_port: u16,
}

/// Sends the packet, to the end `to` instead of its own if there is one, and if the node may still be
/// sent to in this way: its flags may have changed since the permit was granted.
#[inline(always)]
pub fn send<F: Ip, E: Encap<F>>(
    skb: &Skb,
    flow: &FlowPacket<F>,
    to: Option<FlowEnd<F>>,
    departure: &Departure<'_, F>,
    frame_len: u32,
) -> Result<Handled, Outcome> {
    match departure.way.mode {
        MODE_TUNNEL if departure.node.takes_tunnel_packets() => {
            encapsulate::<F, E>(skb, flow, to, departure, frame_len)
        }
        MODE_DIRECT if departure.node.flags & NODE_DIRECT != 0 => {
            route(skb, flow, to, departure.way)
        }
        MODE_TUNNEL | MODE_DIRECT => Err(Outcome::Nexthop),
        _ => Err(Outcome::NoPermit),
    }
}

#[inline(always)]
fn encapsulate<F: Ip, E: Encap<F>>(
    skb: &Skb,
    flow: &FlowPacket<F>,
    to: Option<FlowEnd<F>>,
    departure: &Departure<'_, F>,
    frame_len: u32,
) -> Result<Handled, Outcome> {
    let outer_len = frame_len - ETH_LEN as u32 + E::LEN;
    if outer_len > LEN_MAX {
        return Err(Outcome::Mtu);
    }
    E::make_room(skb).map_err(|()| Outcome::AdjustRoom)?;
    match write_encap::<F, E>(skb, flow, to, departure, outer_len) {
        Some(()) => Ok(depart(
            skb,
            counted(Outcome::FastTunnel, &to),
            departure.way,
        )),
        None => Ok(Handled::drop(Outcome::Rewrite)),
    }
}

/// Writes everything before the inner packet, and the inner hops.
#[inline(always)]
fn write_encap<F: Ip, E: Encap<F>>(
    skb: &Skb,
    flow: &FlowPacket<F>,
    to: Option<FlowEnd<F>>,
    departure: &Departure<'_, F>,
    outer_len: u32,
) -> Option<()> {
    let Departure {
        way,
        node,
        source_port,
    } = *departure;
    let inner = ETH_LEN + E::LEN as usize;
    write_inner(skb, inner, flow, E::HOPS, to)?;
    let packet = skb.packet();
    E::write(packet, flow.tos, node, outer_len, source_port)?;
    write_pair(packet, way.next_hop, way.source)
}

#[inline(always)]
fn route<F: Ip>(
    skb: &Skb,
    flow: &FlowPacket<F>,
    to: Option<FlowEnd<F>>,
    way: &Way,
) -> Result<Handled, Outcome> {
    match write_route(skb, flow, to, way) {
        Some(()) => Ok(depart(skb, counted(Outcome::FastDirect, &to), way)),
        None => Ok(Handled::drop(Outcome::Rewrite)),
    }
}

#[inline(always)]
fn write_route<F: Ip>(
    skb: &Skb,
    flow: &FlowPacket<F>,
    to: Option<FlowEnd<F>>,
    way: &Way,
) -> Option<()> {
    write_inner(skb, ETH_LEN, flow, 1, to)?;
    write_pair(skb.packet(), way.next_hop, way.source)
}

/// Writes what changes of the pod's own packet, which is at `offset`. Packet pointers have to be taken again
/// afterwards.
#[inline(always)]
fn write_inner<F: Ip>(
    skb: &Skb,
    offset: usize,
    flow: &FlowPacket<F>,
    hops: u8,
    to: Option<FlowEnd<F>>,
) -> Option<()> {
    F::write_hops(skb.packet(), offset, flow, hops)?;
    match to {
        Some(to) => rewrite(skb, offset, flow, Local::Source, to),
        None => Some(()),
    }
}

#[inline(always)]
fn counted<F: Ip>(outcome: Outcome, rewritten: &Option<FlowEnd<F>>) -> Outcome {
    match rewritten {
        Some(_) => Outcome::FastTranslated,
        None => outcome,
    }
}

#[inline(always)]
fn depart(skb: &Skb, outcome: Outcome, way: &Way) -> Handled {
    let verdict = send_by(skb, way.ifindex, (way.mark, way.priority));
    Handled::redirect(outcome, verdict)
}

/// Sends the finished packet, marked so that `overlay_confirm` lets it be, by an interface of the underlay.
#[inline(always)]
pub fn send_by(skb: &Skb, ifindex: u32, (mark, priority): (u32, u32)) -> i32 {
    skb.mark_forwarded();
    skb.set_mark_and_priority(mark, priority);
    redirect(ifindex)
}

/// Where a packet is handed over.
pub struct Delivery<F: Ip> {
    pub ifindex: u32,
    pub dst: Mac,
    pub src: Mac,
    /// The end it is from, where that is not its own.
    pub from: Option<FlowEnd<F>>,
    /// How many hops this node is for the packet.
    pub hops: u8,
}

/// Takes the packet, bare of any encapsulation, into the pod. `tos` is what it arrives
/// with.
#[inline(always)]
pub fn deliver<F: Ip>(
    skb: &Skb,
    flow: &FlowPacket<F>,
    tos: u8,
    to: &Delivery<F>,
    outcome: Outcome,
) -> Handled {
    match write_delivery(skb, flow, tos, to) {
        Some(()) => {
            F::heed_checksum(skb, flow, tos);
            Handled::redirect(counted(outcome, &to.from), redirect_peer(to.ifindex))
        }
        None => Handled::drop(Outcome::Rewrite),
    }
}

#[inline(always)]
fn write_delivery<F: Ip>(skb: &Skb, flow: &FlowPacket<F>, tos: u8, to: &Delivery<F>) -> Option<()> {
    let packet = skb.packet();
    write_pair(packet, to.dst, to.src)?;
    F::write_hops(packet, ETH_LEN, flow, to.hops)?;
    if tos != flow.tos {
        F::write_tos(packet, flow, tos)?;
    }
    if let Some(from) = to.from {
        rewrite(skb, ETH_LEN, flow, Local::Destination, from)?;
    }
    Some(())
}

/// Makes `end` the remote end of the IP packet at `offset`, as netfilter does, with the checksums that
/// cover it. Packet pointers have to be taken again afterwards.
#[inline(always)]
fn rewrite<F: Ip>(
    skb: &Skb,
    offset: usize,
    flow: &FlowPacket<F>,
    local: Local,
    end: FlowEnd<F>,
) -> Option<()> {
    let words = flow.words;
    let is_udp = words.protocol() == IPPROTO_UDP;
    let l4 = offset + F::LEN;
    let check = l4 + if is_udp { UDP_CHECK } else { TCP_CHECK };
    let packet = skb.packet();
    F::write_address(packet, offset, local, words.remote(), end.address)?;
    let port = match local {
        Local::Source => l4 + 2,
        Local::Destination => l4,
    };
    packet.write(port, end.port)?;
    F::replace_in_l4_checksum(skb, check as u32, is_udp, (words.remote(), end.address))?;
    skb.replace_port_in_checksum(check as u32, is_udp, words.remote_port(), end.port)
}
