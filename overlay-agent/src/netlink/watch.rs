//! Kernel notifications as typed events.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};
use rtnetlink::{
    constants::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_LINK, RTMGRP_NEIGH},
    packet_core::NetlinkPayload,
    packet_route::RouteNetlinkMessage,
};

use super::{
    Netlink, NetlinkError,
    object::{Address, FdbEntry, Link, Neighbour, Route},
    plan::ROUTE_PROTOCOL,
    transport::{Subscription, subscribe},
    vtep::Vtep,
};

const GROUPS: u32 = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_NEIGH;

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
    Address(Address),
    AddressRemoved(Address),
    /// A route of any table. The kernel is silent about routes that go with their interface.
    Route(Route),
    RouteRemoved(Route),
    Neighbour(Neighbour),
    NeighbourRemoved(Neighbour),
    Fdb(FdbEntry),
    FdbRemoved(FdbEntry),
    /// Events were lost: everything has to be looked at afresh.
    Resync,
}

impl KernelEvent {
    /// Whether the event can make the kernel tier differ from what is desired, so that
    /// [`Netlink::ensure_vtep`] and [`Netlink::reconcile`] are due. Our own additions are no
    /// reason; entries of the device are, because only a comparison tells ours from altered ones.
    pub fn concerns(&self, underlay_ifindex: u32, vtep: Option<&Vtep>) -> bool {
        let is_vtep = |ifindex| vtep.is_some_and(|vtep| vtep.ifindex == ifindex);
        let ours = |ifindex| ifindex == underlay_ifindex || is_vtep(ifindex);
        let named = |name: &str| vtep.is_some_and(|vtep| vtep.name == name);
        match self {
            Self::Link(link) => ours(link.ifindex) || named(&link.name),
            Self::LinkRemoved { ifindex, name } => ours(*ifindex) || named(name),
            Self::Address(address) | Self::AddressRemoved(address) => ours(address.ifindex),
            // Any route can decide whether a peer is on-link.
            Self::Route(route) => route.protocol != ROUTE_PROTOCOL,
            Self::RouteRemoved(_) | Self::Resync => true,
            Self::Neighbour(entry) | Self::NeighbourRemoved(entry) => is_vtep(entry.ifindex),
            Self::Fdb(entry) | Self::FdbRemoved(entry) => is_vtep(entry.ifindex),
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
            Message::NewAddress(message) => Address::decode(message).map(Self::Address),
            Message::DelAddress(message) => Address::decode(message).map(Self::AddressRemoved),
            Message::NewRoute(message) => Route::decode(message).map(Self::Route),
            Message::DelRoute(message) => Route::decode(message).map(Self::RouteRemoved),
            Message::NewNeighbour(message) => Neighbour::decode(message)
                .map(Self::Neighbour)
                .or_else(|| FdbEntry::decode(message).map(Self::Fdb)),
            Message::DelNeighbour(message) => Neighbour::decode(message)
                .map(Self::NeighbourRemoved)
                .or_else(|| FdbEntry::decode(message).map(Self::FdbRemoved)),
            _ => None,
        }
    }
}

/// A stream of [`KernelEvent`]s. It ends when its socket fails; watch again and look at everything
/// afresh.
pub struct Watch {
    subscription: Subscription,
}

impl Netlink {
    /// Subscribes to links, addresses, routes, neighbours and forwarding entries, in the network
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
            (KernelEvent::Neighbour(entry(7)), true),
            (KernelEvent::NeighbourRemoved(entry(2)), false),
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
