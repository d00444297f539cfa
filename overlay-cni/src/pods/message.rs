//! Messages of route netlink, made and read.

use std::{io, net::IpAddr, os::fd::RawFd};

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        InfoData, InfoKind, InfoNetkit, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
        NetkitMode,
    },
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};

use super::{
    pair::{Mac, Pair},
    rtnl::Rtnl,
    settings::Device,
};
use crate::error::Error;

/// Room in front of what a pod sends, so that tunnel headers fit without a copy: of IPv6, UDP and VXLAN,
/// and twice that of Ethernet. Only netkits take it, from Linux 6.14 on; others ignore it.
const HEADROOM: u16 = 96;

/// What is known of a device.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub index: u32,
    pub mac: Mac,
    /// What is sent by it is not thrown away.
    pub is_active: bool,
}

/// Both devices at once. The pod's is made in the namespace of that file.
pub fn pair(pair: &Pair, sandbox: RawFd, device: Device, mtu: u32) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pair.pod.clone()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(sandbox),
    ];
    let info = match device {
        Device::Veth => vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ],
        Device::Netkit => vec![
            LinkInfo::Kind(InfoKind::Netkit),
            LinkInfo::Data(InfoData::Netkit(vec![
                // The programs of the agent tell pods apart by their MAC addresses.
                InfoNetkit::Mode(NetkitMode::L2),
                InfoNetkit::Headroom(HEADROOM),
                InfoNetkit::Peer(peer),
            ])),
        ],
    };
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(pair.host.clone()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(info),
    ];
    RouteNetlinkMessage::NewLink(message)
}

/// The device of that name.
pub fn device(rtnl: &mut Rtnl, name: &str) -> Result<Option<Found>, Error> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    let failed = |source| Error::Kernel {
        what: format!("looking for {name}"),
        source,
    };
    let link = match rtnl.get(RouteNetlinkMessage::GetLink(message)) {
        Ok(RouteNetlinkMessage::NewLink(link)) => link,
        Ok(_) => return Err(failed(io::ErrorKind::InvalidData.into())),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mac = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        });
    let mac = mac.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    let is_idle = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Qdisc(name) if name == "noop");
    Ok(Some(Found {
        index: link.header.index,
        mac: Mac(mac),
        is_active: !link.attributes.iter().any(is_idle),
    }))
}

pub fn up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
}

pub fn removal(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// An address alone, without a network around it. Nobody else has it, so there is nothing to wait for.
pub fn address(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = IpNetwork::from(address).prefix();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

pub fn addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

pub fn is_address(object: &RouteNetlinkMessage, index: u32, address: IpAddr) -> bool {
    // IPv6 has no other.
    let is_it = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Local(ip) | AddressAttribute::Address(ip) if *ip == address);
    matches!(object, RouteNetlinkMessage::NewAddress(message)
        if message.header.index == index && message.attributes.iter().any(is_it))
}

pub fn neighbour(index: u32, address: IpAddr, mac: Mac) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

/// By a gateway, or to a neighbour.
pub fn route(index: u32, to: IpNetwork, gateway: Option<IpAddr>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.ip());
    message.header.destination_prefix_length = to.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match gateway {
        Some(_) => RouteScope::Universe,
        None => RouteScope::Link,
    };
    message.attributes = vec![RouteAttribute::Oif(index)];
    if to.prefix() > 0 {
        let destination = RouteAttribute::Destination(to.network().into());
        message.attributes.push(destination);
    }
    let gateway = gateway.map(|gateway| RouteAttribute::Gateway(gateway.into()));
    message.attributes.extend(gateway);
    RouteNetlinkMessage::NewRoute(message)
}

/// Those of a family.
pub fn routes(of: IpNetwork) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(of.ip());
    RouteNetlinkMessage::GetRoute(message)
}

pub fn is_route(object: &RouteNetlinkMessage, index: u32, to: IpNetwork, gateway: IpAddr) -> bool {
    let RouteNetlinkMessage::NewRoute(message) = object else {
        return false;
    };
    let has = |wanted: &RouteAttribute| message.attributes.contains(wanted);
    let destination: RouteAddress = to.network().into();
    message.header.destination_prefix_length == to.prefix()
        && (to.prefix() == 0 || has(&RouteAttribute::Destination(destination)))
        && has(&RouteAttribute::Gateway(gateway.into()))
        && has(&RouteAttribute::Oif(index))
}

/// Where the kernel would send what is for an address.
pub fn route_to(address: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = IpNetwork::from(address).prefix();
    message.attributes = vec![RouteAttribute::Destination(address.into())];
    RouteNetlinkMessage::GetRoute(message)
}

pub fn is_by(object: &RouteNetlinkMessage, index: u32) -> bool {
    matches!(object, RouteNetlinkMessage::NewRoute(message)
        if message.attributes.contains(&RouteAttribute::Oif(index)))
}

fn family(of: IpAddr) -> AddressFamily {
    match of {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
