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
    transport::{Subscription, subscribe},
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
    use rtnetlink::packet_route::{AddressFamily, link::LinkMessage};

    use super::*;

    #[test]
    fn lost_events_become_an_explicit_resync() {
        let overrun = NetlinkPayload::Overrun(Vec::new());
        assert_eq!(KernelEvent::decode(&overrun), Some(KernelEvent::Resync));
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
