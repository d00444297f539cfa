//! What the packet filter would say, of the packet and of the tunnel packet around it.

use super::{routes::Asked, scene::Scene};
use crate::{
    check::Rules,
    netlink::Link,
    trace::{
        facts::{End, Peer},
        packet::{Packet, Protocol},
        rules::{self, Course, Passage, Seen},
    },
};

/// The packet's way past the packet filter.
pub struct Way<'a> {
    pub incoming: Option<&'a Link>,
    pub outgoing: Option<Link>,
    pub is_local: bool,
    pub is_established: bool,
    pub source: End,
}

impl Way<'_> {
    pub fn rules(&self, rules: &Rules, packet: &Packet) -> Option<Passage> {
        let course = if self.is_local {
            Course::Received
        } else if self.source == End::Host {
            Course::Sent
        } else {
            Course::Forwarded
        };
        if !self.is_local && self.outgoing.is_none() {
            return None;
        }
        let seen = Seen {
            packet: *packet,
            incoming: self.incoming.map(|link| link.name.clone()),
            outgoing: self.outgoing.as_ref().map(|link| link.name.clone()),
            is_established: self.is_established,
        };
        Some(rules::passage(rules, &seen, course))
    }
}

/// What rules say of the tunnel packet.
pub fn outer_rules(
    rules: &Rules,
    scene: &Scene,
    peer: Option<&Peer>,
    underlay: Option<&Asked>,
    source: End,
) -> Option<Passage> {
    let overlay = scene.overlay.as_ref()?;
    let vtep = peer.filter(|peer| peer.is_tunnelled)?.vtep?;
    let interface = underlay?.link()?.name;
    let arrives = source == End::PodElsewhere;
    let [from, to] = if arrives {
        [vtep, overlay.vtep]
    } else {
        [overlay.vtep, vtep]
    };
    let seen = Seen {
        packet: Packet {
            protocol: Protocol::Udp,
            source: from,
            source_port: None,
            destination: to,
            destination_port: Some(overlay.port?),
        },
        incoming: arrives.then(|| interface.clone()),
        outgoing: (!arrives).then_some(interface),
        is_established: false,
    };
    let course = if arrives {
        Course::Received
    } else {
        Course::Sent
    };
    Some(rules::passage(rules, &seen, course))
}
