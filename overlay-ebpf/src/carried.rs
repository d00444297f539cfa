//! The programs of the udp backend at its device and behind it. The forwarder, a process, carries packets between
//! the device and a socket, and nothing that a program writes to a packet gets through it. So what proves that
//! packets leave and arrive is of the nodes, not of the flows: all datagrams to a node have the same
//! addresses and ports, and no rule of the host can tell them apart, unless it judges each by itself.
//!
//! At the underlay a datagram of the forwarder's gives its node a way, for a second. At the device a flow's packet
//! is compared with its stamp, and earns the permit if its node has a way.

use overlay_common::{
    addr::Address as _,
    config::FASTPATH_OFF,
    encap::DATAGRAM_LEN,
    family::{V4, WireFamily as _},
    node::{MODE_TUNNEL, Node},
    outcome::Outcome,
    wire::{ETHERTYPE_IPV4, Ipv4Header},
};

use crate::{
    datagram::Datagram,
    earn,
    fib::{self, Lookup},
    flow_packet::Local,
    flows,
    helpers::{Mark, Skb},
    ip::Header as _,
    mac::read_pair,
    maps::{self, Tables as _},
    nexthop::NexthopEntry,
    observe::{enter, observe_bare, observe_leaving_bare, permit_until},
    packet::ETH_LEN,
    parse::why_off,
    told,
    ways::{Entry, Terms, Way},
};

/// What leaves by the device, on its way to the forwarder, or by the underlay.
#[inline(always)]
pub fn confirm(skb: &Skb) -> Outcome {
    if skb.take_mark() == Mark::Forwarded {
        return Outcome::Forwarded;
    }
    let Some(config) = V4::config() else {
        return Outcome::Disabled;
    };
    if skb.ifindex() == config.vtep_ifindex {
        at_device(*skb)
    } else {
        at_underlay(*skb)
    }
}

// Functions of their own: what each needs of the stack, the others share.

#[inline(never)]
fn at_device(skb: Skb) -> Outcome {
    told(leaves(&skb))
}

#[inline(never)]
fn at_underlay(skb: Skb) -> Outcome {
    told(opens(&skb))
}

/// A pod's packet at the device.
#[inline(always)]
fn leaves(skb: &Skb) -> Result<Outcome, Outcome> {
    let seen = observe_leaving_bare::<V4>(skb, Local::Source)?;
    let (config, flow) = (seen.config, &seen.flow);
    let passage = seen.may_earn(skb)?;
    let gateway = maps::gateway(skb.ingress_ifindex()).ok_or(Outcome::NoGateway)?;
    let index = V4::node_of(flow.words.remote()).ok_or(Outcome::Nexthop)?;
    let node = V4::node(index).ok_or(Outcome::Nexthop)?;
    let nexthop = NexthopEntry::find::<V4>(index).ok_or(Outcome::Nexthop)?;
    let terms = terms(passage.generation, node, &nexthop);
    let entry = Entry::find::<V4>(index).ok_or(Outcome::Nexthop)?;
    // The datagram that the forwarder makes of this packet may open it for the next.
    let Some(found) = entry.way(&terms) else {
        return Ok(Outcome::Leaving);
    };
    let until = permit_until(config, flow, passage.is_translated)?;
    let way = flows::Way {
        vtep: terms.vtep,
        ifindex: found.ifindex,
        next_hop: found.next_hop,
        source: found.source,
        mtu: found.mtu as u16,
        mode: MODE_TUNNEL,
        header: flow.header_bits(0),
        path_changes: terms.path_changes,
        mark: found.mark,
        priority: found.priority,
    };
    nexthop.show(&way);
    let source_port = u16::from_ne_bytes(config.vxlan_port);
    earn::egress(&passage, index, until, (gateway, source_port), &way)?;
    Ok(Outcome::PermitGranted)
}

/// A datagram has nothing of the mark and the priority of what is in it.
#[inline(always)]
fn terms(generation: u32, node: &Node, nexthop: &NexthopEntry) -> Terms {
    Terms {
        generation,
        vtep: u32::from_ne_bytes(node.vtep.tag()),
        path_changes: nexthop.path_changes(),
        inner_mark: 0,
        inner_priority: 0,
    }
}

/// A packet of the host's at the underlay. If the forwarder sent it to a node, as a fast one would be, the node's
/// packets go the way that it goes.
#[inline(always)]
fn opens(skb: &Skb) -> Result<Outcome, Outcome> {
    let config = V4::config().ok_or(Outcome::Disabled)?;
    if config.fastpath == FASTPATH_OFF {
        return Err(why_off(config));
    }
    let packet = skb.packet_with(ETH_LEN as u32 + DATAGRAM_LEN);
    if packet.read(12) != Some(ETHERTYPE_IPV4) {
        return Err(Outcome::NotIp);
    }
    let header: Ipv4Header = packet.read(ETH_LEN).ok_or(Outcome::Truncated)?;
    if header.src != config.vtep {
        return Err(Outcome::NotOverlay);
    }
    let Some(index) = V4::node_at(header.dst) else {
        return Err(Outcome::NotOverlay);
    };
    let datagram = Datagram::read(packet, config)?;
    if u16::to_ne_bytes(datagram.source_port) != config.vxlan_port {
        return Err(Outcome::NotOverlay);
    }
    let node = V4::node(index).ok_or(Outcome::Nexthop)?;
    let ip = header.fields();
    if node.vtep != header.dst || ip.ttl != V4::encap_ttl(&node.encap) || ip.tos != 0 {
        return Err(Outcome::OtherPath);
    }
    let nexthop = NexthopEntry::find::<V4>(index).ok_or(Outcome::Nexthop)?;
    let terms = terms(maps::generation(config), node, &nexthop);
    let (next_hop, source) = read_pair(packet).ok_or(Outcome::Truncated)?;
    let lookup = Lookup::of_tunnel(skb, config, node, datagram.source_port);
    let mtu = fib::mtu_of_way(skb, &lookup, next_hop).ok_or(Outcome::OtherPath)?;
    let room = node.room(mtu, DATAGRAM_LEN);
    let way = Way {
        ifindex: skb.ifindex(),
        next_hop,
        source,
        mtu: if room < config.pod_mtu {
            room
        } else {
            config.pod_mtu
        },
        mark: skb.mark(),
        priority: skb.priority(),
    };
    let entry = Entry::find::<V4>(index).ok_or(Outcome::Nexthop)?;
    entry.open(&terms, &way);
    Ok(Outcome::WayOpened)
}

/// Stamps what the forwarder gives to the device, so that `overlay_deliver` can tell whether it reaches the pod
/// unchanged.
#[inline(always)]
pub fn arrive(skb: &Skb) -> Outcome {
    match observe_bare::<V4>(skb, Local::Destination) {
        Ok(seen) if seen.config.is_remote_pod(seen.flow.words.remote()) => {
            enter(skb, &seen.flow, seen.config);
            Outcome::Stamped
        }
        Ok(_) => Outcome::NotOverlay,
        Err(outcome) => outcome,
    }
}
