//! Grants egress permits: a packet leaves the host as it came from the pod, so the kernel and its
//! packet filter let it pass unchanged, and the way it leaves is remembered with it.
//!
//! A tunnel packet is met twice. At the vxlan device the pod's own packet is compared with its stamp;
//! what becomes of it behind that is for the host's output rules, IPsec policies and routes to say. At
//! the underlay it earns the permit if it is there, in clear. A direct packet is met at the underlay alone.

use overlay_common::{
    addr::Address as _,
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_DIRECT, Node},
    outcome::Outcome,
};

use crate::{
    Conclusion,
    earn::{self, Passage},
    fib::{self, Lookup},
    flow_packet::{FlowPacket, Local},
    flows::Way,
    helpers::{Mark, Skb},
    ip::Ip,
    leaving::{Leaving, Left},
    mac::{Mac, read_pair},
    maps,
    nexthop::NexthopEntry,
    observe::{observe_leaving, passage, permit_until},
    packet::ETH_LEN,
    parse::Tunnel,
    short, told,
};

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Conclusion {
    let mark = skb.take_mark();
    if mark == Mark::Forwarded {
        return Outcome::Forwarded.into();
    }
    let Some(config) = F::config() else {
        return Outcome::Disabled.into();
    };
    if skb.ifindex() == config.vtep_ifindex {
        let outcome = at_tunnel::<F>(*skb);
        return match outcome {
            // The packet earns its flow a permit, or the packet filter judges each.
            Outcome::Leaving | Outcome::PerPacketRule => outcome.into(),
            _ => short::concluded(short::leave::<F>(*skb), outcome),
        };
    }
    let outcome = match mark {
        Mark::Leaving => at_underlay::<F>(*skb),
        Mark::Opening => short::open::<F>(*skb),
        Mark::Forwarded | Mark::None => at_underlay_directly::<F>(*skb),
    };
    outcome.into()
}

// Functions of their own: what each needs of the stack, the others share.

#[inline(never)]
fn at_tunnel<F: Ip>(skb: Skb) -> Outcome {
    told(enters_tunnel::<F>(&skb))
}

#[inline(never)]
fn at_underlay<F: Ip>(skb: Skb) -> Outcome {
    told(leaves_in_tunnel::<F>(&skb))
}

#[inline(never)]
fn at_underlay_directly<F: Ip>(skb: Skb) -> Outcome {
    told(leaves_directly::<F>(&skb))
}

/// A pod's packet at the vxlan device.
#[inline(always)]
fn enters_tunnel<F: Ip>(skb: &Skb) -> Result<Outcome, Outcome> {
    let seen = observe_leaving::<F>(skb, Local::Source)?;
    let passage = seen.may_earn(skb)?;
    let gateway = maps::gateway(skb.ingress_ifindex()).ok_or(Outcome::NoGateway)?;
    let (_, node) = node_of::<F>(&seen.flow)?;
    if !node.takes_tunnel_packets() {
        return Err(Outcome::PeerChecksum);
    }
    // Whoever else changes the kernel's tables, stock flanneld for one, is followed by that even if
    // the maps are out of date.
    if seen.dst != Mac::of(&node.vtep_mac) {
        return Err(Outcome::OtherPath);
    }
    let leaving = Leaving::on_this_cpu().ok_or(Outcome::Disabled)?;
    leaving.note(&Left {
        flow: seen.flow.words.id(),
        gateway,
        generation: passage.generation,
        stamp: if passage.is_translated { skb.hash() } else { 0 },
    });
    skb.mark_leaving();
    Ok(Outcome::Leaving)
}

/// The same packet at the underlay, in whatever form it got there.
#[inline(always)]
fn leaves_in_tunnel<F: Ip>(skb: &Skb) -> Result<Outcome, Outcome> {
    let config = F::config().ok_or(Outcome::Disabled)?;
    let inner = ETH_LEN + F::ENCAP_LEN as usize;
    let left = Leaving::on_this_cpu().ok_or(Outcome::Disabled)?.last();
    let packet = skb.packet_with(inner as u32 + F::FLOW_LEN);
    let flow =
        FlowPacket::parse(packet, inner, Local::Source, config).map_err(|_| Outcome::OtherPath)?;
    // A packet of another flow overtook this one, or the flow table was flushed meanwhile. Of this very
    // packet the mark says that it passed unchanged; of which packet of the flow the note is, is all one.
    let generation = maps::generation(config);
    if left.flow != flow.words.id() || left.generation != generation {
        return Err(Outcome::OtherPath);
    }
    let passage = match left.stamp {
        0 => Passage::unchanged(&flow, generation),
        stamp => passage(stamp, config, &flow, generation).ok_or(Outcome::OtherPath)?,
    };
    let (index, node) = node_of::<F>(&flow)?;
    let tunnel = Tunnel::sent(packet, config, node, flow.tos).ok_or(Outcome::OtherPath)?;
    let lookup = Lookup::of_tunnel(skb, config, node, tunnel.source_port);
    let narrow = |mtu: u16| {
        let room = node.room(mtu, F::ENCAP_LEN);
        if room < config.pod_mtu {
            room as u16
        } else {
            config.pod_mtu as u16
        }
    };
    let until = permit_until(config, &flow, passage.is_translated)?;
    grant(
        skb,
        &flow,
        &passage,
        (until, index, node),
        &lookup,
        (MODE_TUNNEL, left.gateway, tunnel.source_port),
        narrow,
    )
}

/// A pod's packet at the underlay.
#[inline(always)]
fn leaves_directly<F: Ip>(skb: &Skb) -> Result<Outcome, Outcome> {
    let seen = observe_leaving::<F>(skb, Local::Source)?;
    let passage = seen.may_earn(skb)?;
    let gateway = maps::gateway(skb.ingress_ifindex()).ok_or(Outcome::NoGateway)?;
    let (index, node) = node_of::<F>(&seen.flow)?;
    if node.flags & NODE_DIRECT == 0 {
        return Err(Outcome::OtherPath);
    }
    let lookup = Lookup::<F> {
        ifindex: skb.ingress_ifindex(),
        is_own: false,
        src: seen.flow.words.local(),
        dst: seen.flow.words.remote(),
        protocol: seen.flow.protocol,
        src_port: seen.flow.words.local_port(),
        dst_port: seen.flow.words.remote_port(),
        tos: seen.flow.tos,
    };
    let until = permit_until(seen.config, &seen.flow, passage.is_translated)?;
    grant(
        skb,
        &seen.flow,
        &passage,
        (until, index, node),
        &lookup,
        (MODE_DIRECT, gateway, 0),
        |mtu| mtu,
    )
}

#[inline(always)]
fn node_of<F: Ip>(flow: &FlowPacket<F>) -> Result<(u32, &'static Node<F>), Outcome> {
    let index = F::node_of(flow.words.remote()).ok_or(Outcome::Nexthop)?;
    Ok((index, F::node(index).ok_or(Outcome::Nexthop)?))
}

/// Grants the permit to the flow of a packet that leaves by the underlay, `until` a time. Interface, addresses, mark and
/// priority are the packet's own; the kernel's routes are asked only for the MTU of its way, and
/// have to tell of the same way. The permit is of the generation in which the packet was let pass.
#[inline(always)]
fn grant<F: Ip>(
    skb: &Skb,
    flow: &FlowPacket<F>,
    passage: &Passage<'_, F>,
    (until, index, node): (u64, u32, &Node<F>),
    lookup: &Lookup<F>,
    (mode, gateway, source_port): (u8, Mac, u16),
    narrow: impl Fn(u16) -> u16,
) -> Result<Outcome, Outcome> {
    let nexthop = NexthopEntry::find::<F>(index).ok_or(Outcome::Nexthop)?;
    let path_changes = nexthop.path_changes();
    let packet = skb.packet();
    let (next_hop, source) = read_pair(packet).ok_or(Outcome::Truncated)?;
    let mtu = fib::mtu_of_way(skb, lookup, next_hop).ok_or(Outcome::OtherPath)?;
    let way = Way {
        vtep: u32::from_ne_bytes(node.vtep.tag()),
        ifindex: skb.ifindex(),
        next_hop,
        source,
        mtu: narrow(mtu),
        mode,
        header: flow.header_bits(0),
        path_changes,
        mark: skb.mark(),
        priority: skb.priority(),
    };
    nexthop.show(&way);
    earn::egress(passage, index, until, (gateway, source_port), &way)?;
    Ok(Outcome::PermitGranted)
}
