//! Kernel objects as this agent sees them, decoded from route netlink messages.
//!
//! Only what decisions need is kept. Messages about other families, cached routes or half-described
//! objects decode to `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType,
    },
};

use crate::model::{Family, V4};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    pub kind: LinkKind,
    /// `None` for interfaces without an Ethernet address.
    pub mac: Option<MacAddr>,
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The bridge, bond or VRF the interface is enslaved to.
    pub master: Option<u32>,
}

/// What an interface is, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    Veth,
    /// One side of a netkit pair. In mode L3 its MAC address, and those of its frames, are all zeros.
    Netkit,
    Vxlan(VxlanLink),
    /// A virtual interface of another kind, as the kernel calls it: `tun`, `vlan`.
    Virtual(String),
    /// Hardware, paravirtual hardware, and what else has no kind.
    Other,
}

/// Attributes of a vxlan device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the kernel's own flags")]
pub struct VxlanLink {
    pub vni: u32,
    /// Lower device.
    pub underlay: Option<u32>,
    /// Its family is that of the tunnel.
    pub local: Option<IpAddr>,
    pub port: u16,
    pub ttl: u8,
    pub learning: bool,
    pub gbp: bool,
    /// Tunnel packets over IPv6 may have UDP checksum 0 (`udp6zerocsumrx`).
    pub zero_checksum: bool,
    /// The device has a mode flannel never sets: a multicast group or default remote, L2 or L3
    /// miss notifications, ARP proxy, external control or GPE.
    pub exotic: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<F: Family = V4> {
    pub ifindex: u32,
    /// The address itself with its prefix length.
    pub local: F::Network,
    /// The other end of a point-to-point address; equal to the address otherwise.
    pub remote: F::Address,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<F: Family = V4> {
    pub destination: F::Network,
    pub gateway: Option<F::Address>,
    /// `None` for routes without a device (blackhole) or with several next hops.
    pub ifindex: Option<u32>,
    pub onlink: bool,
    pub kind: RouteType,
    pub protocol: u8,
    pub scope: RouteScope,
    pub metric: u32,
    pub tos: u8,
    pub table: u32,
}

/// A neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour<F: Family = V4> {
    pub ifindex: u32,
    pub address: F::Address,
    /// `None` while unresolved.
    pub mac: Option<MacAddr>,
    pub permanent: bool,
}

/// A forwarding entry of a vxlan device (`bridge fdb … self`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    pub ifindex: u32,
    pub mac: MacAddr,
    /// Where the tunnel for this address ends.
    pub remote: Option<IpAddr>,
    pub permanent: bool,
    /// The entry overrides the device's port, VNI or interface.
    pub overridden: bool,
}

impl Link {
    pub(super) fn decode(message: &LinkMessage) -> Option<Self> {
        // Bridge ports are announced a second time with family AF_BRIDGE; a deletion there means
        // "left the bridge", and an AF_UNSPEC message tells the same.
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let mut link = Self {
            ifindex: message.header.index,
            name: String::new(),
            kind: LinkKind::Other,
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            master: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = mac_from(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(master) => link.master = Some(*master),
                LinkAttribute::LinkInfo(info) => link.kind = LinkKind::decode(info),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

impl LinkKind {
    fn decode(info: &[LinkInfo]) -> Self {
        let mut kind = Self::Other;
        for item in info {
            match item {
                LinkInfo::Kind(InfoKind::Bridge) => kind = Self::Bridge,
                LinkInfo::Kind(InfoKind::Veth) => kind = Self::Veth,
                LinkInfo::Kind(InfoKind::Vxlan) => {}
                LinkInfo::Kind(InfoKind::Netkit) => kind = Self::Netkit,
                LinkInfo::Kind(other) => kind = Self::Virtual(other.to_string()),
                LinkInfo::Data(InfoData::Vxlan(data)) => {
                    kind = Self::Vxlan(VxlanLink::decode(data));
                }
                _ => {}
            }
        }
        kind
    }
}

impl VxlanLink {
    fn decode(data: &[InfoVxlan]) -> Self {
        let mut vxlan = Self::default();
        for item in data {
            match item {
                InfoVxlan::Id(vni) => vxlan.vni = *vni,
                InfoVxlan::Link(ifindex) => vxlan.underlay = Some(*ifindex),
                InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
                InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
                InfoVxlan::Port(port) => vxlan.port = *port,
                InfoVxlan::Ttl(ttl) => vxlan.ttl = *ttl,
                InfoVxlan::Learning(on) => vxlan.learning = *on,
                InfoVxlan::Gbp => vxlan.gbp = true,
                InfoVxlan::UDPZeroCsumRX(on) => vxlan.zero_checksum = *on,
                InfoVxlan::Group(_)
                | InfoVxlan::Group6(_)
                | InfoVxlan::Gpe
                | InfoVxlan::Proxy(true)
                | InfoVxlan::L2Miss(true)
                | InfoVxlan::L3Miss(true)
                | InfoVxlan::CollectMetadata(true)
                | InfoVxlan::Vnifilter(true) => vxlan.exotic = true,
                _ => {}
            }
        }
        vxlan
    }
}

impl<F: Family> Address<F> {
    pub(super) fn decode(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut remote) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = F::address(*ip),
                AddressAttribute::Address(ip) => remote = F::address(*ip),
                _ => {}
            }
        }
        let local = local.or(remote)?;
        Some(Self {
            ifindex: message.header.index,
            local: F::with_prefix(local, message.header.prefix_len)?,
            remote: remote.unwrap_or(local),
        })
    }

    /// The kernel gives one to every IPv6 interface.
    pub(super) fn is_link_local(&self) -> bool {
        matches!(self.local.into().ip(), IpAddr::V6(ip) if ip.is_unicast_link_local())
    }
}

impl<F: Family> Route<F> {
    pub(super) fn decode(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let unspecified = match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        if header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let mut destination = F::address(unspecified)?;
        let (mut gateway, mut ifindex) = (None, None);
        let (mut metric, mut table) = (0, u32::from(header.table));
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = F::address(ip(address)?)?,
                RouteAttribute::Gateway(address) => gateway = ip(address).and_then(F::address),
                RouteAttribute::Oif(index) => ifindex = Some(*index),
                RouteAttribute::Priority(value) => metric = *value,
                RouteAttribute::Table(id) => table = *id,
                _ => {}
            }
        }
        // IPv6 lists routes that forward nothing with the loopback interface.
        let ifindex = ifindex.filter(|_| header.kind != RouteType::BlackHole);
        Some(Self {
            destination: F::with_prefix(destination, header.destination_prefix_length)?,
            gateway,
            ifindex,
            onlink: header.flags.contains(RouteFlags::Onlink),
            kind: header.kind,
            protocol: header.protocol.into(),
            scope: header.scope,
            metric,
            tos: header.tos,
            table,
        })
    }

    /// The route is in the main table, where flannel's routes are.
    pub fn in_main_table(&self) -> bool {
        self.table == u32::from(RouteHeader::RT_TABLE_MAIN)
    }

    /// The route goes through a gateway that is its destination's first address, on a link where
    /// that cannot be: flannel's route through a tunnel.
    pub fn is_tunnel_shaped(&self) -> bool {
        self.onlink && self.gateway == Some(F::first(self.destination))
    }

    /// Everything for the destination goes into an interface, as flannel writes it: of global scope, which
    /// nobody gives such a route by accident.
    pub fn is_device_wide(&self) -> bool {
        self.gateway.is_none()
            && self.ifindex.is_some()
            && self.kind == RouteType::Unicast
            && self.scope == RouteScope::Universe
    }
}

impl<F: Family> Neighbour<F> {
    pub(super) fn decode(message: &NeighbourMessage) -> Option<Self> {
        if message.header.flags.contains(NeighbourFlags::Proxy) {
            return None;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(value)) => {
                    address = F::address((*value).into());
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(value)) => {
                    address = F::address((*value).into());
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_from(bytes),
                _ => {}
            }
        }
        Some(Self {
            ifindex: message.header.ifindex,
            address: address?,
            mac,
            permanent: has_state(message, PERMANENT),
        })
    }
}

impl FdbEntry {
    pub(super) fn decode(message: &NeighbourMessage) -> Option<Self> {
        if message.header.family != AddressFamily::Bridge {
            return None;
        }
        let (mut mac, mut remote, mut overridden) = (None, None, false);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_from(bytes),
                NeighbourAttribute::Destination(address) => remote = tunnel_end(address),
                NeighbourAttribute::Port(_)
                | NeighbourAttribute::Vni(_)
                | NeighbourAttribute::IfIndex(_) => overridden = true,
                _ => {}
            }
        }
        Some(Self {
            ifindex: message.header.ifindex,
            mac: mac?,
            remote,
            permanent: has_state(message, PERMANENT | NOARP),
            overridden,
        })
    }
}

/// In messages of family bridge the length of an address tells what it is.
fn tunnel_end(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => {
            let ipv4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
            let ipv6 = || <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from);
            ipv4.or_else(|_| ipv6()).ok()
        }
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// `NUD_PERMANENT`: an entry that does not age.
const PERMANENT: u16 = 0x80;
/// `NUD_NOARP`: a forwarding entry that is neither learned nor ages; iproute2 sets it as well.
const NOARP: u16 = 0x40;

fn has_state(message: &NeighbourMessage, states: u16) -> bool {
    u16::from(message.header.state) & states != 0
}

fn mac_from(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr::new)
}
