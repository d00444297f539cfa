//! Kernel notifications as typed events.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, ready},
};

use rtnetlink::{
    constants::{
        RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_IFADDR,
        RTMGRP_IPV6_ROUTE, RTMGRP_LINK, RTMGRP_NEIGH,
    },
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM},
};
use tracing::debug;

use super::{
    Netlink, NetlinkError,
    datagram::messages,
    groups::GroupSocket,
    object::{Address, FdbEntry, Link, Neighbour, Route},
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

/// `XFRMNLGRP_EXPIRE`, `_SA`, `_POLICY` and `_MIGRATE` of linux/xfrm.h as bits of the mask: a policy
/// may let a packet pass in clear until there is a state for it.
const IPSEC_GROUPS: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;

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
    /// A policy or a state of IPsec appeared, changed or went.
    Ipsec,
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

impl KernelEvent {
    fn decode(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Self> {
        use RouteNetlinkMessage as Message;
        let NetlinkPayload::InnerMessage(message) = payload else {
            return None;
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

/// [`KernelEvent`]s as they come. Subscribe again and look at everything afresh when they end.
pub struct Watch {
    route: GroupSocket,
    /// `None` where the kernel has no IPsec.
    ipsec: Option<GroupSocket>,
    /// The rest of the datagram read last.
    events: VecDeque<KernelEvent>,
}

impl Netlink {
    /// Subscribes to links, addresses, routes, policy routing rules, neighbours, forwarding entries and IPsec
    /// policies, in the network namespace of the calling thread. Subscribe before taking a first look, so that
    /// nothing falls between the two.
    pub fn watch() -> Result<Watch, NetlinkError> {
        let route = GroupSocket::join(NETLINK_ROUTE, GROUPS)
            .map_err(|source| NetlinkError::Open { source })?;
        let ipsec = match GroupSocket::join(NETLINK_XFRM, IPSEC_GROUPS) {
            Ok(ipsec) => Some(ipsec),
            Err(error) => {
                debug!(%error, "the kernel announces no IPsec policies, so there are none");
                None
            }
        };
        Ok(Watch {
            route,
            ipsec,
            events: VecDeque::new(),
        })
    }
}

impl Watch {
    /// The next event, or `None` when the subscription has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<KernelEvent> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<KernelEvent>> {
        // Ahead of what waits: it ends fast flows.
        if let Some(ipsec) = &mut self.ipsec
            && let Poll::Ready(received) = ipsec.poll_next(cx)
        {
            return Poll::Ready(received.ok().map(|_| KernelEvent::Ipsec));
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(event));
            }
            match ready!(self.route.poll_next(cx)) {
                Ok(Some(datagram)) => self.events.extend(events(datagram)),
                Ok(None) => return Poll::Ready(Some(KernelEvent::Resync)),
                Err(error) => {
                    debug!(%error, "kernel notifications end");
                    return Poll::Ready(None);
                }
            }
        }
    }
}

/// The events of one datagram. Messages that cannot be read concern nothing that is known here.
fn events(datagram: &[u8]) -> Vec<KernelEvent> {
    let mut events = Vec::new();
    for message in messages(datagram) {
        match NetlinkMessage::deserialize(message.into_inner()) {
            Ok(message) => events.extend(KernelEvent::decode(&message.payload)),
            Err(error) => debug!(%error, "unreadable kernel notification"),
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::{
        AddressFamily,
        link::{LinkAttribute, LinkMessage},
    };

    use super::*;

    #[test]
    fn all_messages_of_a_datagram_are_read_and_rubbish_ends_it() {
        let mut datagram = Vec::new();
        for ifindex in [5, 6] {
            let mut link = LinkMessage::default();
            link.header.index = ifindex;
            link.attributes
                .push(LinkAttribute::IfName(format!("link{ifindex}")));
            let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            datagram.extend(bytes);
        }
        datagram.extend([1, 0, 0]);
        let found = events(&datagram);
        let indexes: Vec<_> = found
            .iter()
            .map(|event| match event {
                KernelEvent::Link(link) => link.ifindex,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(indexes, [5, 6]);
        for end in 0..datagram.len() {
            events(&datagram[..end]);
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
