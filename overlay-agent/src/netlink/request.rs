//! Encodes changes and queries as route netlink messages.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;
use rtnetlink::{
    AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{InfoKind, InfoVxlan, LinkMessage},
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteMessage, RouteProtocol, RouteType},
    },
};

use super::{
    object::{Address, Route},
    transport::Request,
    vtep::VtepSpec,
};

pub(super) fn dump_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

pub(super) fn link_named(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).build())
}

pub(super) fn link_at(ifindex: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(ifindex).build())
}

pub(super) fn dump_addresses() -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    RouteNetlinkMessage::GetAddress(message)
}

pub(super) fn dump_routes() -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    RouteNetlinkMessage::GetRoute(message)
}

/// Neighbours of one interface.
pub(super) fn dump_neighbours(ifindex: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
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
pub(super) fn route_to(address: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .build();
    // A lookup takes no route attributes beyond its key.
    message.header.table = 0;
    message.header.protocol = RouteProtocol::Unspec;
    message.header.kind = RouteType::Unspec;
    RouteNetlinkMessage::GetRoute(message)
}

pub(super) fn create_vtep(spec: &VtepSpec, mtu: u32, mac: MacAddr) -> Request {
    let mut builder = LinkVxlan::new(&spec.name, spec.vni)
        .dev(spec.underlay_ifindex)
        .local(spec.local)
        .learning(spec.learning)
        .ttl(0)
        .tos(0);
    if let Some(port) = spec.port {
        builder = builder.port(port);
    }
    if spec.gbp {
        builder = builder.gbp();
    }
    let message = builder.mtu(mtu).address(mac.octets.to_vec()).build();
    Request::new(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Changes vxlan attributes of an existing device. The kernel keeps what is not mentioned.
pub(super) fn change_vxlan(ifindex: u32, attributes: Vec<InfoVxlan>) -> Request {
    let mut builder =
        LinkMessageBuilder::<LinkVxlan>::new_with_info_kind(InfoKind::Vxlan).index(ifindex);
    for attribute in attributes {
        builder = builder.append_info_data(attribute);
    }
    Request::new(RouteNetlinkMessage::NewLink(builder.build()), 0)
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

pub(super) fn add_address(ifindex: u32, address: Ipv4Network) -> Request {
    let message = AddressMessageBuilder::<Ipv4Addr>::new()
        .index(ifindex)
        .address(address.ip(), address.prefix())
        .build();
    Request::new(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

pub(super) fn delete_address(address: Address) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = address.local.prefix();
    message.header.index = address.ifindex;
    message.attributes = vec![
        AddressAttribute::Local(address.local.ip().into()),
        AddressAttribute::Address(address.remote.into()),
    ];
    Request::new(RouteNetlinkMessage::DelAddress(message), 0)
}

pub(super) fn set_neighbour(ifindex: u32, address: Ipv4Addr, mac: MacAddr) -> Request {
    Request::new(
        RouteNetlinkMessage::NewNeighbour(neighbour(ifindex, address, Some(mac))),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

pub(super) fn delete_neighbour(ifindex: u32, address: Ipv4Addr) -> Request {
    Request::new(
        RouteNetlinkMessage::DelNeighbour(neighbour(ifindex, address, None)),
        0,
    )
}

fn neighbour(ifindex: u32, address: Ipv4Addr, mac: Option<MacAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    if let Some(mac) = mac {
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.octets.to_vec()));
    }
    message
}

pub(super) fn set_fdb(ifindex: u32, mac: MacAddr, remote: Ipv4Addr) -> Request {
    Request::new(
        RouteNetlinkMessage::NewNeighbour(fdb(ifindex, mac, Some(remote))),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

pub(super) fn delete_fdb(ifindex: u32, mac: MacAddr, remote: Option<Ipv4Addr>) -> Request {
    Request::new(
        RouteNetlinkMessage::DelNeighbour(fdb(ifindex, mac, remote)),
        0,
    )
}

fn fdb(ifindex: u32, mac: MacAddr, remote: Option<Ipv4Addr>) -> NeighbourMessage {
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
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(
                remote,
            )));
    }
    message
}

/// Adds a route in front of others to the same destination: the kernel uses the first, and the
/// others stay.
pub(super) fn prepend_route(route: &Route) -> Request {
    Request::new(
        RouteNetlinkMessage::NewRoute(encode_route(route)),
        NLM_F_CREATE,
    )
}

/// Deletes exactly this route: everything that identifies it is in the request.
pub(super) fn delete_route(route: &Route) -> Request {
    Request::new(RouteNetlinkMessage::DelRoute(encode_route(route)), 0)
}

fn encode_route(route: &Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.destination.network(), route.destination.prefix())
        .protocol(RouteProtocol::from(route.protocol))
        .kind(route.kind)
        .scope(route.scope)
        .tos(route.tos)
        .table_id(route.table);
    if let Some(gateway) = route.gateway {
        builder = builder.gateway(gateway);
    }
    if let Some(ifindex) = route.ifindex {
        builder = builder.output_interface(ifindex);
    }
    if route.metric != 0 {
        builder = builder.priority(route.metric);
    }
    if route.onlink {
        builder = builder.onlink();
    }
    builder.build()
}
