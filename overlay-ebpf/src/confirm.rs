//! Grants egress leases: a packet leaves the host as it came from the pod, so the kernel and its
//! packet filter let it pass unchanged. The way it leaves is resolved and remembered with it.

use overlay_common::{
    addr::Address as _,
    config::Config,
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_DIRECT},
    outcome::Outcome,
    stamp::source_port,
};

use crate::{
    flows::{self, Lease},
    helpers::{Skb, now},
    ip::Ip,
    mac::Mac,
    maps,
    nexthop::{NexthopCopy, NexthopEntry},
    observe::{Observed, observe},
    parse::Local,
};

#[inline(always)]
pub fn run<F: Ip>(skb: &Skb) -> Outcome {
    match confirm::<F>(skb) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn confirm<F: Ip>(skb: &Skb) -> Result<Outcome, Outcome> {
    if skb.take_forwarded() {
        return Ok(Outcome::Forwarded);
    }
    let seen = observe::<F>(skb, Local::Source)?;
    seen.may_earn(skb)?;
    let Observed {
        config,
        dst,
        flow,
        stamp,
        ..
    } = seen;
    let gateway = maps::gateway(skb.ingress_ifindex()).ok_or(Outcome::NoGateway)?;
    let index = F::node_of(flow.words.remote()).ok_or(Outcome::Nexthop)?;
    let mode = resolve(skb, config, index, dst)?;
    let port = source_port(stamp, config.source_port_min, config.source_port_span);
    let lease = Lease::Egress {
        mode,
        gateway,
        source_port: port.to_be(),
    };
    flows::grant(
        flow.words,
        config.generation,
        index,
        now() + config.lease_ns,
        &lease,
    )?;
    Ok(Outcome::LeaseGranted)
}

/// Resolves the way to node `index` with the kernel's own tables and remembers it. Fails unless the
/// kernel just sent this packet that way: by the tunnel device to the node's VTEP, or straight out of
/// the interface that reaches the node directly, to the same neighbour. Whoever else changes the
/// kernel's routes, stock flanneld for one, is followed by that even if the maps are out of date.
#[inline(always)]
fn resolve<F: Ip>(skb: &Skb, config: &Config<F>, index: u32, to: Mac) -> Result<u8, Outcome> {
    let node = F::node(index).ok_or(Outcome::Nexthop)?;
    let nexthop = NexthopEntry::find::<F>(index).ok_or(Outcome::Nexthop)?;
    let Some(fib) = skb.route::<F>(skb.ingress_ifindex(), config.vtep, node.vtep) else {
        nexthop.invalidate();
        return Err(Outcome::Nexthop);
    };
    let direct = node.flags & NODE_DIRECT != 0 && fib.on_link;
    let (mode, mtu, device, neighbour) = if direct {
        (MODE_DIRECT, fib.mtu, fib.ifindex, fib.dst_mac)
    } else {
        if node.flags & F::TUNNEL_FLAGS != F::TUNNEL_FLAGS {
            return Err(Outcome::PeerChecksum);
        }
        let route_mtu = u32::from(node.route_mtu);
        let outer = if route_mtu != 0 && route_mtu < fib.mtu {
            route_mtu
        } else {
            fib.mtu
        };
        let room = outer.saturating_sub(F::ENCAP_LEN);
        let mtu = if room < config.pod_mtu {
            room
        } else {
            config.pod_mtu
        };
        (
            MODE_TUNNEL,
            mtu,
            config.vtep_ifindex,
            Mac::of(&node.vtep_mac),
        )
    };
    if skb.ifindex() != device || to != neighbour {
        return Err(Outcome::OtherPath);
    }
    nexthop.set(&NexthopCopy {
        vtep: u32::from_ne_bytes(node.vtep.tag()),
        ifindex: fib.ifindex,
        dst_mac: fib.dst_mac,
        src_mac: fib.src_mac,
        mtu,
        mode,
    });
    Ok(mode)
}
