//! Encodes changes and queries as route netlink messages.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay_common::addr::MacAddr;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType},
    },
};

use super::{
    object::{Address, Route},
    plan::ROUTE_PROTOCOL,
    transport::Request,
};
use crate::model::{Family, V6};

pub(super) fn dump_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

pub(super) fn link_named(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).build())
}

pub(super) fn link_at(ifindex: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(ifindex).build())
}

fn number<F: Family>() -> AddressFamily {
    AddressFamily::from(F::NUMBER)
}

pub(super) fn dump_addresses<F: Family>() -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = number::<F>();
    RouteNetlinkMessage::GetAddress(message)
}

pub(super) fn dump_routes<F: Family>() -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number::<F>();
    RouteNetlinkMessage::GetRoute(message)
}

/// This agent's blackhole routes. A kernel that does not choose tells all routes.
pub(super) fn dump_blackholes<F: Family>() -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number::<F>();
    message.header.kind = RouteType::BlackHole;
    message.header.protocol = ROUTE_PROTOCOL.into();
    RouteNetlinkMessage::GetRoute(message)
}

/// Neighbours of one interface.
pub(super) fn dump_neighbours<F: Family>(ifindex: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = number::<F>();
    message
        .attributes
        .push(NeighbourAttribute::IfIndex(ifindex));
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Forwarding entries of one interface.
pub(super) fn dump_fdb(ifindex: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// The kernel's route to an address (`ip route get`).
pub(super) fn route_to<F: Family>(address: F::Address) -> RouteNetlinkMessage {
    // A lookup takes nothing beyond its key.
    RouteNetlinkMessage::GetRoute(route_key::<F>(F::host(address)))
}

pub(super) fn create_link(message: LinkMessage) -> Request {
    Request::new(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Changes what an existing device has by its kind. The kernel keeps what is not mentioned.
pub(super) fn change_kind(ifindex: u32, kind: InfoKind, data: InfoData) -> Request {
    let mut message = LinkUnspec::new_with_index(ifindex).build();
    let info = vec![LinkInfo::Kind(kind), LinkInfo::Data(data)];
    message.attributes.push(LinkAttribute::LinkInfo(info));
    Request::new(RouteNetlinkMessage::NewLink(message), 0)
}

/// Changes generic attributes of a link.
pub(super) fn set_link(
    ifindex: u32,
    change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) -> Request {
    let message = change(LinkUnspec::new_with_index(ifindex)).build();
    Request::new(RouteNetlinkMessage::SetLink(message), 0)
}

pub(super) fn delete_link(ifindex: u32) -> Request {
    let message = LinkUnspec::new_with_index(ifindex).build();
    Request::new(RouteNetlinkMessage::DelLink(message), 0)
}

pub(super) fn add_address<F: Family>(ifindex: u32, address: F::Network) -> Request {
    let mut message = address_message::<F>(ifindex, address);
    let ip = address.into().ip();
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if F::NUMBER == V6::NUMBER {
        // Nobody else has an address of this node's subnet, so there is nothing to wait for.
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    Request::new(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

pub(super) fn delete_address<F: Family>(address: Address<F>) -> Request {
    let mut message = address_message::<F>(address.ifindex, address.local);
    message.attributes = vec![
        AddressAttribute::Local(address.local.into().ip()),
        AddressAttribute::Address(address.remote.into()),
    ];
    Request::new(RouteNetlinkMessage::DelAddress(message), 0)
}

fn address_message<F: Family>(ifindex: u32, address: F::Network) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = number::<F>();
    message.header.prefix_len = address.into().prefix();
    message.header.index = ifindex;
    message
}

pub(super) fn set_neighbour<F: Family>(ifindex: u32, address: F::Address, mac: MacAddr) -> Request {
    Request::new(
        RouteNetlinkMessage::NewNeighbour(neighbour::<F>(ifindex, address, Some(mac))),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

pub(super) fn delete_neighbour<F: Family>(ifindex: u32, address: F::Address) -> Request {
    Request::new(
        RouteNetlinkMessage::DelNeighbour(neighbour::<F>(ifindex, address, None)),
        0,
    )
}

fn neighbour<F: Family>(
    ifindex: u32,
    address: F::Address,
    mac: Option<MacAddr>,
) -> NeighbourMessage {
    let destination: IpAddr = address.into();
    let mut message = NeighbourMessage::default();
    message.header.family = number::<F>();
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination.into()));
    if let Some(mac) = mac {
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.octets.to_vec()));
    }
    message
}

pub(super) fn set_fdb(ifindex: u32, mac: MacAddr, remote: IpAddr) -> Request {
    Request::new(
        RouteNetlinkMessage::NewNeighbour(fdb(ifindex, mac, Some(remote))),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

pub(super) fn delete_fdb(ifindex: u32, mac: MacAddr, remote: Option<IpAddr>) -> Request {
    Request::new(
        RouteNetlinkMessage::DelNeighbour(fdb(ifindex, mac, remote)),
        0,
    )
}

fn fdb(ifindex: u32, mac: MacAddr, remote: Option<IpAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.octets.to_vec()));
    if let Some(remote) = remote {
        message
            .attributes
            .push(NeighbourAttribute::Destination(remote.into()));
    }
    message
}

/// Puts a route in force. In IPv4 it comes in front of others to the same destination: the kernel
/// uses the first, and the others stay. IPv6 would share the traffic between such routes, so there
/// it takes the place of one with the same metric, as flannel's does.
pub(super) fn set_route<F: Family>(route: &Route<F>) -> Request {
    let replace = if F::ROUTES_SHARE { NLM_F_REPLACE } else { 0 };
    Request::new(
        RouteNetlinkMessage::NewRoute(encode_route(route)),
        NLM_F_CREATE | replace,
    )
}

/// Deletes exactly this route: everything that identifies it is in the request.
pub(super) fn delete_route<F: Family>(route: &Route<F>) -> Request {
    delete_encoded_route(encode_route(route))
}

/// Deletes the route that [`encode_route`] made this of.
pub(super) fn delete_encoded_route(message: RouteMessage) -> Request {
    Request::new(RouteNetlinkMessage::DelRoute(message), 0)
}

pub(super) fn encode_route<F: Family>(route: &Route<F>) -> RouteMessage {
    let mut message = route_key::<F>(route.destination);
    let header = &mut message.header;
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = route.kind;
    header.scope = route.scope;
    header.tos = route.tos;
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    if let Some(gateway) = route.gateway {
        let gateway: IpAddr = gateway.into();
        attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    attributes.extend(route.ifindex.map(RouteAttribute::Oif));
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

pub(super) fn route_key<F: Family>(destination: F::Network) -> RouteMessage {
    let destination: IpNetwork = destination.into();
    let mut message = RouteMessage::default();
    message.header.address_family = number::<F>();
    message.header.destination_prefix_length = destination.prefix();
    if destination.prefix() > 0 {
        let network = destination.network();
        message
            .attributes
            .push(RouteAttribute::Destination(network.into()));
    }
    message
}
