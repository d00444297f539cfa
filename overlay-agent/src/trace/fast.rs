//! What the programs would do with the packet by what their maps say. In the order in which `overlay_egress` and
//! `overlay_ingress` look at things.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use overlay_common::{
    addr::Address as _,
    config::{FASTPATH_OFF, FASTPATH_TRUSTED},
    flow::{Flow, FlowKey, MODE_BITS, REWRITE_DESTINATION, REWRITE_NONE, REWRITE_SOURCE},
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_DIRECT},
    outcome::{Hook, Outcome},
    slow::{self, Match},
};
use serde::Serialize;

use super::packet::{Packet, Protocol, Translated};
use crate::{
    model::Family,
    view::{Overlay, left},
};

/// Whether the packet would be forwarded by a program, and if not, why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fast {
    pub now: bool,
    /// `None` (JSON `null`) where no program would see it.
    pub hook: Option<&'static str>,
    /// As `stats` counts it.
    pub outcome: Option<&'static str>,
    pub reason: String,
    /// Until the packet has to earn it again.
    pub seconds_left: Option<f64>,
    /// Largest packet that the flow's own way takes.
    pub mtu: Option<u16>,
}

/// Which program would forward it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From a pod of this node.
    Egress,
    /// To one.
    Ingress,
}

/// What the maps of a family say.
pub struct Maps<'a, F: Family> {
    pub overlay: &'a Overlay<F>,
    pub flows: &'a [(FlowKey<F>, Flow)],
    /// By the clock of permits.
    pub now: Duration,
    /// Flows that the packet filter judges packet by packet; `None`: all.
    pub matches: Option<&'a [Match<F>]>,
    /// The rules that do so, for people.
    pub rules: String,
}

impl Fast {
    /// For a reason that is not in the maps.
    pub fn never(reason: impl Into<String>) -> Self {
        Self {
            now: false,
            hook: None,
            outcome: None,
            reason: reason.into(),
            seconds_left: None,
            mtu: None,
        }
    }

    fn declined(side: Side, outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            hook: Some(side.hook().name()),
            outcome: Some(outcome.name()),
            ..Self::never(reason)
        }
    }

    /// A permit is withheld where the kernel's packet leaves, or is delivered.
    fn withheld(side: Side, outcome: Outcome, reason: impl Into<String>) -> Self {
        let hook = match side {
            Side::Egress => Hook::Confirm,
            Side::Ingress => Hook::Deliver,
        };
        Self {
            hook: Some(hook.name()),
            ..Self::declined(side, outcome, reason)
        }
    }
}

impl Side {
    const fn hook(self) -> Hook {
        match self {
            Self::Egress => Hook::Egress,
            Self::Ingress => Hook::Ingress,
        }
    }
}

/// What the programs would do. The packet is as it enters the host.
pub fn judge<F: Family>(maps: &Maps<'_, F>, packet: &Packet, side: Side) -> Fast {
    if maps.overlay.config.fastpath == FASTPATH_OFF {
        let reason = "the fast path is switched off";
        return Fast::declined(side, Outcome::Disabled, reason);
    }
    let entries = maps
        .flows
        .iter()
        .filter(|entry| maps.is_of(entry, packet, side));
    let judged: Vec<Fast> = entries.map(|(_, flow)| maps.entry(flow, side)).collect();
    let best = judged.iter().filter(|fast| fast.now).max_by(|one, other| {
        let left = |fast: &Fast| fast.seconds_left.unwrap_or_default();
        left(one).total_cmp(&left(other))
    });
    if let Some(best) = best {
        return best.clone();
    }
    if let Some(reason) = maps.never(packet, side) {
        return reason;
    }
    judged.into_iter().next().unwrap_or_else(|| {
        let reason = match packet.protocol {
            Protocol::Tcp => {
                "none of its packets has earned a permit here: the kernel carries the handshake and what comes \
                 before the acknowledgement"
            }
            _ => {
                "none of its packets has earned a permit here: the kernel carries them until two have passed it \
                 unchanged"
            }
        };
        Fast::declined(side, Outcome::NoPermit, reason)
    })
}

/// The translation that the flow table remembers for the packet.
pub fn translation<F: Family>(
    maps: &Maps<'_, F>,
    packet: &Packet,
    side: Side,
) -> Option<(Translated, SocketAddr)> {
    let mut entries = maps.flows.iter();
    entries.find_map(|entry| {
        let (_, flow) = entry;
        let of = match flow.rewrite {
            REWRITE_DESTINATION if side == Side::Egress => Translated::Destination,
            REWRITE_SOURCE if side == Side::Ingress => Translated::Source,
            _ => return None,
        };
        if !maps.is_of(entry, packet, side) {
            return None;
        }
        let address = F::Be::from_wide(bytemuck::cast(flow.rewrite_address));
        let address: IpAddr = F::Address::from(address).into();
        let port = u16::from_be_bytes(flow.rewrite_port);
        Some((of, SocketAddr::new(address, port)))
    })
}

impl<F: Family> Maps<'_, F> {
    fn is_of(&self, (key, _): &(FlowKey<F>, Flow), packet: &Packet, side: Side) -> bool {
        let (local, remote, local_port, remote_port) = match side {
            Side::Egress => (
                packet.source,
                packet.destination,
                packet.source_port,
                packet.destination_port,
            ),
            Side::Ingress => (
                packet.destination,
                packet.source,
                packet.destination_port,
                packet.source_port,
            ),
        };
        let address = |of: F::Be| -> IpAddr { F::Address::from(of).into() };
        if address(key.local) != local || address(key.remote) != remote {
            return false;
        }
        let is_pair = key.protocol == 0;
        let is_port = |port: Option<u16>, of: [u8; 2]| {
            // Of echo nobody knows the identifier.
            port.is_none_or(|port| port == u16::from_be_bytes(of))
        };
        is_pair && self.overlay.config.fastpath == FASTPATH_TRUSTED
            || key.protocol == packet.protocol_number()
                && is_port(local_port, key.local_port)
                && is_port(remote_port, key.remote_port)
    }

    /// Why none of the flow's packets is fast, whatever they earned before.
    fn never(&self, packet: &Packet, side: Side) -> Option<Fast> {
        let config = &self.overlay.config;
        if let Some(matches) = self.slow(packet, side) {
            return Some(matches);
        }
        if config.permit_ns(packet.protocol_number()) == 0 {
            let reason =
                "no permit is granted for its protocol: conntrack forgets such flows too soon";
            return Some(Fast::withheld(side, Outcome::NoPermit, reason));
        }
        let remote = match side {
            Side::Egress => packet.destination,
            Side::Ingress => packet.source,
        };
        let remote = F::address(remote)?;
        if !config.is_remote_pod(remote.into()) {
            let reason = "the other end is no pod of another node, and the flow has earned no permit as a translated one";
            return Some(Fast::declined(side, Outcome::NotOverlay, reason));
        }
        let mut routes = self.overlay.routes.iter();
        let Some((_, route)) = routes.find(|(subnet, _)| F::contains(**subnet, remote)) else {
            let reason = "no node leases the subnet of the other end";
            return Some(Fast::withheld(side, Outcome::Nexthop, reason));
        };
        let is_direct = { self.overlay.nodes.get(&route.node) }
            .is_some_and(|node| node.flags & NODE_DIRECT != 0);
        if side == Side::Egress
            && F::ASKS_FOR_ZERO_CHECKSUM
            && !is_direct
            && !self.overlay.takes_tunnel_packets(route.node)
        {
            let reason = "the lease of the peer does not say that it takes UDP checksum 0";
            return Some(Fast::withheld(side, Outcome::PeerChecksum, reason));
        }
        None
    }

    fn slow(&self, packet: &Packet, side: Side) -> Option<Fast> {
        let direction = match side {
            Side::Egress => slow::EGRESS,
            Side::Ingress => slow::INGRESS,
        };
        let judged = slow::Packet::<F> {
            src: F::address(packet.source)?.into(),
            dst: F::address(packet.destination)?.into(),
            src_port: packet.source_port.unwrap_or_default(),
            dst_port: packet.destination_port.unwrap_or_default(),
            protocol: packet.slow_bit(),
            direction,
        };
        let is_slow = self
            .matches
            .is_none_or(|matches| matches.iter().any(|entry| entry.contains(&judged)));
        is_slow.then(|| {
            let reason = format!(
                "the packet filter judges each of its packets: {}",
                self.rules
            );
            Fast::withheld(side, Outcome::PerPacketRule, reason)
        })
    }

    /// What follows from an entry of the flow.
    fn entry(&self, flow: &Flow, side: Side) -> Fast {
        let (until, mode) = match side {
            Side::Egress => (flow.egress_until, flow.egress_mode & MODE_BITS),
            Side::Ingress => (flow.ingress_until, flow.ingress_mode & MODE_BITS),
        };
        let Some(left) = left(until, self.now) else {
            let reason = if until == 0 {
                "this direction of the flow has earned no permit: the kernel carries it"
            } else {
                "its permit has run out: the next packet takes the kernel's way and renews it"
            };
            return Fast::declined(side, Outcome::NoPermit, reason);
        };
        if flow.generation != self.overlay.config.generation {
            let reason = "flows were flushed since it earned its permit: it earns it again";
            return Fast::declined(side, Outcome::Generation, reason);
        }
        if let Some(reason) = self.way_is_gone(flow, side, mode) {
            return Fast::declined(side, Outcome::Nexthop, reason);
        }
        let outcome = match (flow.rewrite, mode) {
            (REWRITE_NONE, MODE_DIRECT) => Outcome::FastDirect,
            (REWRITE_NONE, _) => Outcome::FastTunnel,
            _ => Outcome::FastTranslated,
        };
        let reason = match (side, mode) {
            (Side::Egress, MODE_DIRECT) => {
                "the program routes it past the bridge, rules and routes"
            }
            (Side::Egress, _) => "the program encapsulates it and sends it by the underlay",
            (Side::Ingress, MODE_DIRECT) => "the program hands it to the pod",
            (Side::Ingress, _) => "the program decapsulates it and hands it to the pod",
        };
        Fast {
            now: true,
            seconds_left: Some(
                f64::from(u32::try_from(left.as_millis()).unwrap_or(u32::MAX)) / 1e3,
            ),
            mtu: Some(match side {
                Side::Egress => flow.path_mtu,
                Side::Ingress => flow.pod_mtu,
            }),
            ..Fast::declined(side, outcome, reason)
        }
    }

    fn way_is_gone(&self, flow: &Flow, side: Side, mode: u8) -> Option<&'static str> {
        let index = u32::from(flow.node);
        let Some(node) = self.overlay.nodes.get(&index) else {
            return Some("the node that it was for is gone");
        };
        if side == Side::Ingress {
            return None;
        }
        let nexthop = self.overlay.nexthops.get(&index);
        let is_current = nexthop.is_some_and(|nexthop| nexthop.path_changes == flow.path_changes);
        if flow.vtep != node.vtep.tag() || !is_current {
            return Some("the way to the node has changed since: the flow earns it again");
        }
        let is_allowed = match mode {
            MODE_TUNNEL => self.overlay.takes_tunnel_packets(index),
            _ => node.flags & NODE_DIRECT != 0,
        };
        (!is_allowed).then_some("the node is reached another way now: the flow earns it again")
    }
}
