//! Kernel notifications as typed events.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};
use rtnetlink::{
    constants::{
        RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_IFADDR,
        RTMGRP_IPV6_ROUTE, RTMGRP_LINK, RTMGRP_NEIGH,
    },
    packet_core::NetlinkPayload,
    packet_route::{AddressFamily, RouteNetlinkMessage},
};

use super::{
    Netlink, NetlinkError,
    object::{Address, FdbEntry, Link, Neighbour, Route},
    plan::ROUTE_PROTOCOL,
    transport::{Subscription, subscribe},
    vtep::Vtep,
};
use crate::model::{Family, V4, V6};

/// `RTNLGRP_IPV6_RULE` as a bit of the mask.
const IPV6_RULE: u32 = 1 << 18;

const GROUPS: u32 = RTMGRP_LINK
    | RTMGRP_IPV4_RULE
    | IPV6_RULE
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_NEIGH;

/// Something changed in this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A link appeared or changed.
    Link(Link),
    /// A link was deleted or moved to another network namespace.
    LinkRemoved {
        ifindex: u32,
        name: String,
    },
    Ipv4(IpEvent<V4>),
    Ipv6(IpEvent<V6>),
    Fdb(FdbEntry),
    FdbRemoved(FdbEntry),
    /// A policy routing rule appeared or went.
    PolicyRule,
    /// Events were lost: everything has to be looked at afresh.
    Resync,
}

/// Something changed that is of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpEvent<F: Family> {
    Address(Address<F>),
    AddressRemoved(Address<F>),
    /// A route of any table. The kernel is silent about IPv4 routes that go with their interface.
    Route(Route<F>),
    RouteRemoved(Route<F>),
    Neighbour(Neighbour<F>),
    NeighbourRemoved(Neighbour<F>),
}

impl<F: Family> IpEvent<F> {
    fn decode(message: &RouteNetlinkMessage) -> Option<Self> {
        use RouteNetlinkMessage as Message;
        match message {
            Message::NewAddress(message) => Address::decode(message).map(Self::Address),
            Message::DelAddress(message) => Address::decode(message).map(Self::AddressRemoved),
            Message::NewRoute(message) => Route::decode(message).map(Self::Route),
            Message::DelRoute(message) => Route::decode(message).map(Self::RouteRemoved),
            Message::NewNeighbour(message) => Neighbour::decode(message).map(Self::Neighbour),
            Message::DelNeighbour(message) => {
                Neighbour::decode(message).map(Self::NeighbourRemoved)
            }
            _ => None,
        }
    }
}

impl<F: Family> IpEvent<F> {
    /// Whether the event can make the kernel tier of the family differ from what is desired. Our
    /// own additions are no reason; entries of the device are, because only a comparison tells ours
    /// from altered ones.
    fn concerns(&self, ours: impl Fn(u32) -> bool, is_vtep: impl Fn(u32) -> bool) -> bool {
        match self {
            Self::Address(address) | Self::AddressRemoved(address) => ours(address.ifindex),
            // Any route can decide whether a peer is on-link.
            Self::Route(route) => route.protocol != ROUTE_PROTOCOL,
            Self::RouteRemoved(_) => true,
            Self::Neighbour(entry) | Self::NeighbourRemoved(entry) => is_vtep(entry.ifindex),
        }
    }
}

impl KernelEvent {
    /// Whether the event can make the kernel tier differ from what is desired, so that
    /// [`Netlink::ensure_vtep`] and [`Netlink::reconcile`] are due.
    pub fn concerns(&self, underlay_ifindex: u32, vtep: Option<&Vtep>) -> bool {
        let is_vtep = |ifindex| vtep.is_some_and(|vtep| vtep.ifindex == ifindex);
        let ours = |ifindex| ifindex == underlay_ifindex || is_vtep(ifindex);
        let named = |name: &str| vtep.is_some_and(|vtep| vtep.name == name);
        match self {
            Self::Link(link) => ours(link.ifindex) || named(&link.name),
            Self::LinkRemoved { ifindex, name } => ours(*ifindex) || named(name),
            Self::Ipv4(event) => event.concerns(ours, is_vtep),
            Self::Ipv6(event) => event.concerns(ours, is_vtep),
            Self::Fdb(entry) | Self::FdbRemoved(entry) => is_vtep(entry.ifindex),
            Self::PolicyRule | Self::Resync => true,
        }
    }

    fn decode(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Self> {
        use RouteNetlinkMessage as Message;
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Some(Self::Resync),
            _ => return None,
        };
        match message {
            Message::NewLink(message) => Link::decode(message).map(Self::Link),
            Message::DelLink(message) => Link::decode(message).map(|link| Self::LinkRemoved {
                ifindex: link.ifindex,
                name: link.name,
            }),
            Message::NewNeighbour(entry) if entry.header.family == AddressFamily::Bridge => {
                FdbEntry::decode(entry).map(Self::Fdb)
            }
            Message::DelNeighbour(entry) if entry.header.family == AddressFamily::Bridge => {
                FdbEntry::decode(entry).map(Self::FdbRemoved)
            }
            Message::NewRule(_) | Message::DelRule(_) => Some(Self::PolicyRule),
            message => IpEvent::decode(message)
                .map(Self::Ipv4)
                .or_else(|| IpEvent::decode(message).map(Self::Ipv6)),
        }
    }
}

/// A stream of [`KernelEvent`]s. It ends when its socket fails; watch again and look at everything
/// afresh.
pub struct Watch {
    subscription: Subscription,
}

impl Netlink {
    /// Subscribes to links, addresses, routes, policy routing rules, neighbours and forwarding entries, in the network
    /// namespace of the calling thread. Subscribe before taking a first look, so that nothing
    /// falls between the two.
    pub fn watch() -> Result<Watch, NetlinkError> {
        Ok(Watch {
            subscription: subscribe(GROUPS)?,
        })
    }
}

impl Watch {
    /// The next event, or `None` when the subscription has ended.
    pub async fn next(&mut self) -> Option<KernelEvent> {
        StreamExt::next(self).await
    }
}

impl Stream for Watch {
    type Item = KernelEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<KernelEvent>> {
        loop {
            let next = ready!(self.subscription.messages.poll_next_unpin(cx));
            let Some((message, _)) = next else {
                return Poll::Ready(None);
            };
            if let Some(event) = KernelEvent::decode(&message.payload) {
                return Poll::Ready(Some(event));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use overlay_common::addr::MacAddr;
    use rtnetlink::packet_route::{AddressFamily, link::LinkMessage};

    use super::*;

    #[test]
    fn lost_events_become_an_explicit_resync() {
        let overrun = NetlinkPayload::Overrun(Vec::new());
        assert_eq!(KernelEvent::decode(&overrun), Some(KernelEvent::Resync));
    }

    #[test]
    fn only_events_about_the_tier_concern_it() {
        let vtep = Vtep {
            ifindex: 7,
            name: "flannel.1".to_owned(),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            mtu: 1450,
            port: 8472,
            zero_checksum: false,
        };
        let entry = |ifindex| Neighbour {
            ifindex,
            address: Ipv4Addr::new(10, 5, 2, 0),
            mac: None,
            permanent: true,
        };
        let removed = |ifindex, name: &str| KernelEvent::LinkRemoved {
            ifindex,
            name: name.to_owned(),
        };
        for (event, expected) in [
            (KernelEvent::Resync, true),
            (KernelEvent::Ipv4(IpEvent::Neighbour(entry(7))), true),
            (
                KernelEvent::Ipv4(IpEvent::NeighbourRemoved(entry(2))),
                false,
            ),
            (removed(7, "renamed"), true),
            (removed(2, "eth0"), true),
            (removed(9, "flannel.1"), true),
            (removed(9, "veth9"), false),
        ] {
            assert_eq!(event.concerns(2, Some(&vtep)), expected, "{event:?}");
        }
    }

    #[test]
    fn leaving_a_bridge_is_not_a_deleted_link() {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.header.index = 5;
        let payload = NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message));
        assert_eq!(KernelEvent::decode(&payload), None);
    }
}
