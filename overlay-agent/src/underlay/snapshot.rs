//! What the kernel says about this host's links, addresses and routes, taken over rtnetlink.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::{TryStream, TryStreamExt as _};
use ipnetwork::IpNetwork;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteVia},
    },
};

/// The facts that the choice of the underlay rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSnapshot {
    /// In the order of their indices.
    pub links: Vec<UnderlayLink>,
    /// In the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
    /// The main table, in the kernel's order.
    pub routes: Vec<UnderlayRoute>,
    /// The kernel's answer for `--iface-can-reach`, or why there is none; `None` if it was not asked.
    pub reach: Option<Result<Reach, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderlayLink {
    pub ifindex: u32,
    pub name: String,
    pub mtu: u32,
    /// See [`Underlay::hardware`](crate::model::Underlay::hardware).
    pub hardware: bool,
    /// See [`Underlay::ethernet`](crate::model::Underlay::ethernet).
    pub ethernet: bool,
}

/// What the kernel says about an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the kernel's own flags, and its prefix"
)]
pub struct AddressFlags {
    pub permanent: bool,
    /// IPv6: a temporary one; IPv4: a secondary one. The kernel uses one bit for both.
    pub temporary: bool,
    pub deprecated: bool,
    /// Its prefix is the address alone, and no other end of a point-to-point link: `/32`, `/128`.
    pub host: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    pub ifindex: u32,
    pub ip: IpAddr,
    pub flags: AddressFlags,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderlayRoute {
    pub destination: IpNetwork,
    pub gateway: Option<IpAddr>,
    /// One per next hop; none for a route that forwards nothing.
    pub interfaces: Vec<u32>,
}

/// How the kernel reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    pub ifindex: u32,
    pub source: Option<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] io::Error),
    #[error("cannot list the host's {what}: {source}")]
    List {
        what: &'static str,
        source: rtnetlink::Error,
    },
}

/// Takes a snapshot of the caller's network namespace.
pub async fn snapshot(can_reach: Option<IpAddr>) -> Result<HostSnapshot, SnapshotError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = ask(&handle, can_reach).await;
    connection.abort();
    result
}

async fn ask(handle: &Handle, can_reach: Option<IpAddr>) -> Result<HostSnapshot, SnapshotError> {
    let found = list("links", handle.link().get().execute(), link).await?;
    let links = links(&found);
    let addresses = list("addresses", handle.address().get().execute(), |message| {
        address(&message)
    })
    .await?;
    let ipv4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = list("routes", handle.route().get(ipv4).execute(), route).await?;
    let ipv6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    routes.extend(list("routes", handle.route().get(ipv6).execute(), route).await?);
    let reach = match can_reach {
        Some(ip) => Some(reach(handle, ip).await),
        None => None,
    };
    Ok(HostSnapshot {
        links,
        addresses,
        routes,
        reach,
    })
}

async fn list<M, T>(
    what: &'static str,
    messages: impl TryStream<Ok = M, Error = rtnetlink::Error>,
    convert: impl Fn(M) -> Option<T>,
) -> Result<Vec<T>, SnapshotError> {
    messages
        .try_filter_map(|message| std::future::ready(Ok(convert(message))))
        .try_collect()
        .await
        .map_err(|source| SnapshotError::List { what, source })
}

/// A link, and what tells whether a bond is made of hardware.
struct Found {
    link: UnderlayLink,
    is_bond: bool,
    master: Option<u32>,
}

fn link(message: LinkMessage) -> Option<Found> {
    let mut found = Found {
        link: UnderlayLink {
            ifindex: message.header.index,
            name: String::new(),
            mtu: 0,
            // Network cards, paravirtual ones too, have no kind; /sys would show those of another
            // namespace.
            hardware: true,
            ethernet: matches!(
                message.header.link_layer_type,
                LinkLayerType::Ether | LinkLayerType::Loopback
            ),
        },
        is_bond: false,
        master: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => found.link.name = text,
            LinkAttribute::Mtu(bytes) => found.link.mtu = bytes,
            LinkAttribute::Controller(master) => found.master = Some(master),
            LinkAttribute::LinkInfo(info) => {
                let kind = |info: &LinkInfo| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                };
                let kind = info.iter().find_map(kind);
                found.is_bond = kind == Some(InfoKind::Bond);
                found.link.hardware = kind.is_none();
            }
            _ => {}
        }
    }
    (!found.link.name.is_empty()).then_some(found)
}

/// A bond hands native XDP on to its members: it is hardware if all of them are.
fn links(found: &[Found]) -> Vec<UnderlayLink> {
    let members = |bond: &Found| {
        let mut members = found
            .iter()
            .filter(|member| member.master == Some(bond.link.ifindex))
            .peekable();
        members.peek().is_some() && members.all(|member| member.link.hardware)
    };
    let mut links: Vec<UnderlayLink> = found
        .iter()
        .map(|found| UnderlayLink {
            hardware: found.link.hardware || (found.is_bond && members(found)),
            ..found.link.clone()
        })
        .collect();
    links.sort_by_key(|link| link.ifindex);
    links
}

/// On a point-to-point interface `Local` is the own address and `Address` the peer's.
fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let flags = message.header.flags;
    let is_host_prefix = match message.header.family {
        AddressFamily::Inet => message.header.prefix_len == 32,
        _ => message.header.prefix_len == 128,
    };
    Some(InterfaceAddress {
        ifindex: message.header.index,
        ip: local.or(address)?,
        flags: AddressFlags {
            permanent: flags.contains(AddressHeaderFlags::Permanent),
            temporary: flags.contains(AddressHeaderFlags::Secondary),
            deprecated: flags.contains(AddressHeaderFlags::Deprecated),
            host: is_host_prefix && (local.is_none() || local == address),
        },
    })
}

fn route(message: RouteMessage) -> Option<UnderlayRoute> {
    let mut table = u32::from(message.header.table);
    let mut destination = None;
    let mut gateway = None;
    let mut interfaces = Vec::new();
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = number,
            RouteAttribute::Destination(address) => destination = ip(&address),
            RouteAttribute::Gateway(address) => gateway = ip(&address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(address.into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(address.into()),
            RouteAttribute::Oif(ifindex) => interfaces.push(ifindex),
            RouteAttribute::MultiPath(hops) => {
                interfaces.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let destination = destination.or(match message.header.address_family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    })?;
    let prefix = message.header.destination_prefix_length;
    Some(UnderlayRoute {
        destination: IpNetwork::new(destination, prefix).ok()?,
        gateway,
        interfaces,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

async fn reach(handle: &Handle, ip: IpAddr) -> Result<Reach, String> {
    let message = match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(ip, 32)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip, 128)
            .build(),
    };
    let answer = std::pin::pin!(handle.route().get(message).execute())
        .try_next()
        .await
        .map_err(|error| error.to_string())?;
    let attributes = answer.map(|message| message.attributes).unwrap_or_default();
    let mut ifindex = None;
    let mut source = None;
    for attribute in &attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::PrefSource(address) => source = self::ip(address),
            _ => {}
        }
    }
    let ifindex = ifindex.ok_or("the route has no interface")?;
    Ok(Reach { ifindex, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ifindex: u32, kind: Option<&InfoKind>, master: Option<u32>) -> Found {
        Found {
            link: UnderlayLink {
                ifindex,
                name: format!("if{ifindex}"),
                mtu: 1500,
                hardware: kind.is_none(),
                ethernet: true,
            },
            is_bond: kind == Some(&InfoKind::Bond),
            master,
        }
    }

    fn hardware(all: &[Found]) -> Vec<u32> {
        let links = links(all).into_iter();
        links
            .filter(|link| link.hardware)
            .map(|link| link.ifindex)
            .collect()
    }

    #[test]
    fn a_bond_is_hardware_if_all_its_members_are() {
        let bond = |ifindex| found(ifindex, Some(&InfoKind::Bond), None);
        let veth = |ifindex, master| found(ifindex, Some(&InfoKind::Veth), Some(master));
        let card = |ifindex, master| found(ifindex, None, Some(master));
        assert_eq!(hardware(&[bond(9), card(2, 9), card(3, 9)]), [2, 3, 9]);
        assert_eq!(hardware(&[bond(9), card(2, 9), veth(3, 9)]), [2]);
        assert_eq!(hardware(&[bond(9), veth(3, 9), card(4, 8)]), [4]);
        assert_eq!(hardware(&[bond(9)]), [] as [u32; 0]);
    }
}
