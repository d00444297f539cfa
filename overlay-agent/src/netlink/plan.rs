//! From what is wanted and what is there to the changes in between. Pure.
//!
//! What a peer has at the backend's device is the backend's say, in the terms of
//! [`ViaDevice`](crate::model::ViaDevice). A direct peer has one plain route.
//!
//! What belongs to whom, where [`Marks`] are the backends' say:
//! - another device that is a backend's is ours if it carries this node's address;
//! - permanent neighbours and forwarding entries of the device are all ours;
//! - routes with one of [`ROUTE_PROTOCOLS`] are ours;
//! - routes flannel left are adopted, that is replaced: in flannel's shape on the device, or
//!   to exactly a peer's subnet, with protocol "boot" and metric 0. One through a gateway to this
//!   node's own subnet is from the time another node leased it, and goes;
//! - every other route stays. One to a peer's subnet is shadowed, not removed: ours goes in front.
//!   In IPv6, where it would share the traffic, ours takes its place, as flannel's does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
};

use ipnetwork::IpNetwork;
use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::route::{RouteHeader, RouteScope, RouteType};

use super::{
    admit::{Admission, PeerPath},
    device::Marks,
    object::{Address, FdbEntry, Neighbour, Route},
};
use crate::model::{DeviceRoute, Family, LocalNode, Peer, V4, pack};

/// Protocol number of routes installed by this agent, shown as `proto 241` by `ip route`. Neither
/// `rtnetlink.h` nor iproute2's `rt_protos` assigns it.
pub const ROUTE_PROTOCOL: u8 = 241;

/// Those of routes to peers where there can be many: the kernel looks for an equal description of the next
/// hop among all of one device and protocol, one after the other, whenever it adds a route.
pub const ROUTE_PROTOCOLS: RangeInclusive<u8> = ROUTE_PROTOCOL..=254;

/// Networks that are divided into more subnets than this have many: two to the power of it.
const MANY_SUBNETS: u8 = 9;

/// `RTPROT_BOOT`: what flannel's routes carry, because it sets none.
const PROTOCOL_BOOT: u8 = 3;

/// Kernel state this agent answers for.
#[derive(Clone, Debug)]
pub struct Wanted<F: Family = V4> {
    /// Index of the backend's device, for those that have one.
    pub vtep: Option<u32>,
    /// The address of the device, and the range in which it has no other.
    pub address: Option<(F::Network, F::Network)>,
    /// The subnet of this node and the underlay interface: no gateway there leads to it.
    pub subnet: Option<(F::Network, u32)>,
    pub neighbours: BTreeMap<F::Address, MacAddr>,
    pub fdb: BTreeMap<MacAddr, F::Address>,
    pub routes: BTreeMap<F::Network, Route<F>>,
    /// Routes to peers have one of so many protocols.
    pub protocols: u8,
    pub marks: Marks<F>,
}

/// Kernel state as dumped: addresses, neighbours and forwarding entries of the device, the
/// main routing table in the kernel's order, and devices of an earlier configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedObjects<F: Family = V4> {
    pub addresses: Vec<Address<F>>,
    pub neighbours: Vec<Neighbour<F>>,
    pub fdb: Vec<FdbEntry>,
    pub routes: Vec<Route<F>>,
    pub leftovers: Vec<Leftover>,
}

impl<F: Family> ObservedObjects<F> {
    /// What is there if all of `wanted` is, and nothing else.
    pub fn just(wanted: &Wanted<F>) -> Self {
        let mut observed = Self {
            routes: wanted.routes.values().copied().collect(),
            ..Self::default()
        };
        let Some(ifindex) = wanted.vtep else {
            return observed;
        };
        observed
            .addresses
            .extend(wanted.address.map(|(local, _)| Address {
                ifindex,
                local,
                remote: F::first(local),
            }));
        let neighbours = wanted.neighbours.iter();
        observed
            .neighbours
            .extend(neighbours.map(|(&address, &mac)| Neighbour {
                ifindex,
                address,
                mac: Some(mac),
                permanent: true,
            }));
        let fdb = wanted.fdb.iter();
        observed.fdb.extend(fdb.map(|(&mac, &remote)| FdbEntry {
            ifindex,
            mac,
            remote: Some(remote.into()),
            permanent: true,
            overridden: false,
        }));
        observed
    }
}

/// A backend's device that carries this node's address and is not the configured one: the backend, or
/// what it calls the device, was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub ifindex: u32,
    pub name: String,
}

/// One step from observed to wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectChange<F: Family = V4> {
    AddAddress {
        ifindex: u32,
        address: F::Network,
    },
    DeleteAddress(Address<F>),
    SetFdb {
        ifindex: u32,
        mac: MacAddr,
        remote: F::Address,
    },
    SetNeighbour {
        ifindex: u32,
        address: F::Address,
        mac: MacAddr,
    },
    AddRoute(Route<F>),
    DeleteRoute(Route<F>),
    DeleteNeighbour {
        ifindex: u32,
        address: F::Address,
    },
    DeleteFdb {
        ifindex: u32,
        mac: MacAddr,
        remote: Option<IpAddr>,
    },
    DeleteVtep(Leftover),
}

/// The changes, in an order that never leaves a peer without a path it has before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectPlan<F: Family = V4> {
    pub changes: Vec<ObjectChange<F>>,
    /// Objects that are already as wanted.
    pub kept: usize,
}

impl<F: Family> Default for Wanted<F> {
    fn default() -> Self {
        Self {
            vtep: None,
            address: None,
            subnet: None,
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
            routes: BTreeMap::new(),
            protocols: 1,
            marks: Marks::NONE,
        }
    }
}

impl<F: Family> ObjectChange<F> {
    /// What it changes.
    pub const fn objects(&self) -> &'static str {
        match self {
            Self::AddAddress { .. } | Self::DeleteAddress(_) => "addresses",
            Self::SetFdb { .. } | Self::DeleteFdb { .. } => "forwarding entries",
            Self::SetNeighbour { .. } | Self::DeleteNeighbour { .. } => "neighbours",
            Self::AddRoute(_) | Self::DeleteRoute(_) => "routes",
            Self::DeleteVtep(_) => "interfaces",
        }
    }

    /// The step takes something away.
    pub const fn removes(&self) -> bool {
        matches!(
            self,
            Self::DeleteAddress(_)
                | Self::DeleteRoute(_)
                | Self::DeleteNeighbour { .. }
                | Self::DeleteFdb { .. }
                | Self::DeleteVtep(_)
        )
    }

    /// Packets may go another way than before.
    pub const fn reroutes(&self) -> bool {
        matches!(self, Self::AddRoute(_) | Self::DeleteRoute(_))
    }
}

impl<F: Family> fmt::Display for ObjectChange<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddAddress { address, .. } => write!(f, "add address {address}"),
            Self::DeleteAddress(address) => write!(f, "delete address {}", address.local),
            Self::SetFdb { mac, remote, .. } => {
                write!(f, "set forwarding entry {mac} dst {remote}")
            }
            Self::SetNeighbour { address, mac, .. } => {
                write!(f, "set neighbour {address} lladdr {mac}")
            }
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::DeleteNeighbour { address, .. } => write!(f, "delete neighbour {address}"),
            Self::DeleteFdb { mac, .. } => write!(f, "delete forwarding entry {mac}"),
            Self::DeleteVtep(leftover) => write!(f, "delete interface {}", leftover.name),
        }
    }
}

impl<F: Family> fmt::Display for Route<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == RouteType::BlackHole {
            f.write_str("blackhole ")?;
        }
        self.destination.fmt(f)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(ifindex) = self.ifindex {
            write!(f, " on interface {ifindex}")?;
        }
        Ok(())
    }
}

/// What `local` and its admitted peers need in the kernel.
pub fn want<F: Family>(
    local: &LocalNode<F>,
    admission: &Admission<F>,
    vtep: Option<u32>,
    marks: Marks<F>,
) -> Wanted<F> {
    let mut wanted = Wanted {
        vtep,
        marks,
        protocols: protocols(local),
        subnet: local
            .forwarding
            .is_any()
            .then_some((local.subnet, local.underlay.ifindex)),
        ..Wanted::default()
    };
    if let (Some(device), Some(ifindex)) = (&local.device, vtep) {
        wanted.address = Some((device.address, local.network));
        wanted.add_routes(&device.routes, ifindex, ROUTE_PROTOCOL);
    }
    for (peer, path) in admission.accepted.values() {
        wanted.add_peer(peer, *path);
    }
    pack(&mut wanted.neighbours);
    pack(&mut wanted.fdb);
    pack(&mut wanted.routes);
    wanted
}

/// By how many protocols routes to the peers of a node are told apart. It follows from the network, not from
/// how many peers there are, so that no route is ever made anew for it. IPv6 routes share no description.
fn protocols<F: Family>(local: &LocalNode<F>) -> u8 {
    match (local.network.into(), local.subnet.into()) {
        (IpNetwork::V4(network), IpNetwork::V4(subnet))
            if subnet.prefix().saturating_sub(network.prefix()) > MANY_SUBNETS =>
        {
            ROUTE_PROTOCOLS.end() - ROUTE_PROTOCOLS.start() + 1
        }
        _ => 1,
    }
}

impl<F: Family> Wanted<F> {
    /// The protocol of the route to a peer's subnet.
    fn protocol(&self, subnet: F::Network) -> u8 {
        match subnet.into() {
            IpNetwork::V4(subnet) if subnet.prefix() > 0 => {
                let number = u32::from(subnet.network()) >> (32 - subnet.prefix());
                let [.., place] = (number % u32::from(self.protocols)).to_be_bytes();
                ROUTE_PROTOCOL + place
            }
            _ => ROUTE_PROTOCOL,
        }
    }

    /// Adds what a peer needs. False if something else has a part of it already, which then is the
    /// peer's.
    pub(super) fn add_peer(&mut self, peer: &Peer<F>, path: PeerPath) -> bool {
        match (path, self.vtep) {
            (PeerPath::Direct { ifindex }, _) => {
                let route = Route {
                    protocol: self.protocol(peer.subnet),
                    ..peer_route(peer.subnet, peer.public_ip, ifindex, false)
                };
                self.routes.insert(peer.subnet, route).is_none()
            }
            (PeerPath::Tunnel, Some(ifindex)) => {
                let Some(via) = &peer.via_device else {
                    return true;
                };
                let before = self.objects();
                self.neighbours.extend(via.neighbour);
                self.fdb.extend(via.fdb);
                self.add_routes(&via.route, ifindex, self.protocol(peer.subnet));
                let parts = [
                    via.neighbour.is_some(),
                    via.fdb.is_some(),
                    via.route.is_some(),
                ];
                let added = parts.into_iter().filter(|is_some| *is_some).count();
                self.objects() == before + added
            }
            (PeerPath::Tunnel, None) => true,
        }
    }

    /// Number of neighbours, forwarding entries and routes.
    pub(super) fn objects(&self) -> usize {
        self.neighbours.len() + self.fdb.len() + self.routes.len()
    }

    fn add_routes<'a>(
        &mut self,
        routes: impl IntoIterator<Item = &'a DeviceRoute<F>>,
        device: u32,
        protocol: u8,
    ) {
        self.routes.extend(routes.into_iter().map(|route| {
            let &DeviceRoute {
                destination,
                gateway,
                onlink,
                metric,
            } = route;
            let route = Route {
                metric: metric.unwrap_or(F::DEFAULT_METRIC),
                protocol,
                ..peer_route(destination, gateway, device, onlink)
            };
            (destination, route)
        }));
    }
}

pub fn peer_route<F: Family>(
    destination: F::Network,
    gateway: impl Into<Option<F::Address>>,
    ifindex: u32,
    onlink: bool,
) -> Route<F> {
    Route {
        destination,
        gateway: gateway.into(),
        ifindex: Some(ifindex),
        onlink,
        kind: RouteType::Unicast,
        protocol: ROUTE_PROTOCOL,
        scope: RouteScope::Universe,
        metric: F::DEFAULT_METRIC,
        tos: 0,
        table: u32::from(RouteHeader::RT_TABLE_MAIN),
    }
}

/// The changes that turn `observed` into `wanted`.
pub fn diff<F: Family>(wanted: &Wanted<F>, observed: &ObservedObjects<F>) -> ObjectPlan<F> {
    let mut plan = ObjectPlan::default();
    let mut removals = Vec::new();
    if let Some(vtep) = wanted.vtep {
        diff_addresses(wanted, observed, vtep, &mut plan);
        diff_fdb(wanted, observed, vtep, &mut plan, &mut removals);
        diff_neighbours(wanted, observed, vtep, &mut plan, &mut removals);
    }
    diff_routes(wanted, observed, &mut plan);
    // Neighbours and forwarding entries go after the routes that lead to them.
    removals.reverse();
    plan.changes.append(&mut removals);
    let leftovers = observed.leftovers.iter();
    plan.changes
        .extend(leftovers.cloned().map(ObjectChange::DeleteVtep));
    plan
}

fn diff_addresses<F: Family>(
    wanted: &Wanted<F>,
    observed: &ObservedObjects<F>,
    vtep: u32,
    plan: &mut ObjectPlan<F>,
) {
    let Some((address, network)) = wanted.address else {
        return;
    };
    let on_vtep = || observed.addresses.iter().filter(|a| a.ifindex == vtep);
    if on_vtep().any(|a| a.local == address) {
        plan.kept += 1;
    } else {
        plan.changes.push(ObjectChange::AddAddress {
            ifindex: vtep,
            address,
        });
    }
    // Addresses outside the pod network are the administrator's, as with flannel.
    let is_ours = |other: &&Address<F>| {
        let ip = F::address(other.local.into().ip());
        other.local != address && ip.is_some_and(|ip| F::contains(network, ip))
    };
    for other in on_vtep().filter(is_ours) {
        plan.changes.push(ObjectChange::DeleteAddress(*other));
    }
}

fn diff_fdb<F: Family>(
    wanted: &Wanted<F>,
    observed: &ObservedObjects<F>,
    vtep: u32,
    plan: &mut ObjectPlan<F>,
    removals: &mut Vec<ObjectChange<F>>,
) {
    let mut present = BTreeSet::new();
    for entry in observed
        .fdb
        .iter()
        .filter(|e| e.ifindex == vtep && e.permanent)
    {
        match wanted.fdb.get(&entry.mac) {
            Some(remote) => {
                if entry.remote == Some((*remote).into()) && !entry.overridden {
                    present.insert(entry.mac);
                }
            }
            None => removals.push(ObjectChange::DeleteFdb {
                ifindex: vtep,
                mac: entry.mac,
                remote: entry.remote,
            }),
        }
    }
    plan.kept += present.len();
    for (&mac, &remote) in wanted.fdb.iter().filter(|(mac, _)| !present.contains(mac)) {
        plan.changes.push(ObjectChange::SetFdb {
            ifindex: vtep,
            mac,
            remote,
        });
    }
}

fn diff_neighbours<F: Family>(
    wanted: &Wanted<F>,
    observed: &ObservedObjects<F>,
    vtep: u32,
    plan: &mut ObjectPlan<F>,
    removals: &mut Vec<ObjectChange<F>>,
) {
    let mut present = BTreeSet::new();
    for entry in observed
        .neighbours
        .iter()
        .filter(|e| e.ifindex == vtep && e.permanent)
    {
        match wanted.neighbours.get(&entry.address) {
            Some(mac) => {
                if entry.mac == Some(*mac) {
                    present.insert(entry.address);
                }
            }
            None => removals.push(ObjectChange::DeleteNeighbour {
                ifindex: vtep,
                address: entry.address,
            }),
        }
    }
    plan.kept += present.len();
    for (&address, &mac) in wanted
        .neighbours
        .iter()
        .filter(|(a, _)| !present.contains(a))
    {
        plan.changes.push(ObjectChange::SetNeighbour {
            ifindex: vtep,
            address,
            mac,
        });
    }
}

fn diff_routes<F: Family>(
    wanted: &Wanted<F>,
    observed: &ObservedObjects<F>,
    plan: &mut ObjectPlan<F>,
) {
    let in_main_table = || observed.routes.iter().filter(|r| r.in_main_table());
    let target = |route: &Route<F>| wanted.routes.get(&route.destination);
    let present: BTreeSet<F::Network> = in_main_table()
        .filter(|route| target(route) == Some(*route))
        .map(|route| route.destination)
        .collect();
    let missing: Vec<&Route<F>> = wanted
        .routes
        .iter()
        .filter(|(destination, _)| !present.contains(destination))
        .map(|(_, route)| route)
        .collect();
    let (mut obstacles, mut stale) = (Vec::new(), Vec::new());
    for route in in_main_table()
        .filter(|route| target(route) != Some(*route) && is_replaceable(route, wanted))
    {
        let alike = target(route).filter(|t| (t.metric, t.tos) == (route.metric, route.tos));
        if F::ONLINK_IS_CHECKED && missing.iter().any(|new| obstructs(route, new)) {
            obstacles.push(ObjectChange::DeleteRoute(*route));
        } else if F::ROUTES_SHARE && alike.is_some() && !present.contains(&route.destination) {
            // The new route takes its place.
        } else {
            stale.push(ObjectChange::DeleteRoute(*route));
        }
    }
    plan.kept += present.len();
    plan.changes.append(&mut obstacles);
    plan.changes
        .extend(missing.into_iter().copied().map(ObjectChange::AddRoute));
    plan.changes.append(&mut stale);
}

impl<F: Family> Route<F> {
    /// This agent made it.
    pub fn is_ours(&self) -> bool {
        ROUTE_PROTOCOLS.contains(&self.protocol)
    }
}

/// The route leads to the gateway of the other one, through another interface.
fn obstructs<F: Family>(route: &Route<F>, other: &Route<F>) -> bool {
    let gateway = other.gateway.filter(|_| other.onlink);
    route.ifindex != other.ifindex
        && gateway.is_some_and(|gateway| F::contains(route.destination, gateway))
}

/// The route is ours or flannel's. A blackhole route of ours has its own reconciliation.
fn is_replaceable<F: Family>(route: &Route<F>, wanted: &Wanted<F>) -> bool {
    if route.kind != RouteType::Unicast {
        return false;
    }
    if route.is_ours() {
        return true;
    }
    let to_peer = wanted.routes.contains_key(&route.destination);
    let to_own_subnet = wanted.subnet.is_some_and(|(subnet, underlay)| {
        route.destination == subnet && route.gateway.is_some() && route.ifindex == Some(underlay)
    });
    let flannel_tunnel =
        wanted.vtep.is_some() && route.ifindex == wanted.vtep && (wanted.marks.is_flannels)(route);
    route.protocol == PROTOCOL_BOOT
        && route.metric == F::DEFAULT_METRIC
        && route.tos == 0
        && (to_peer || to_own_subnet || flannel_tunnel)
}

#[cfg(test)]
mod ipv6_tests;
#[cfg(test)]
mod tests;
