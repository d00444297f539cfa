//! From what is wanted and what is there to the changes in between. Pure.
//!
//! flannel's layout, per tunnelled peer: a permanent neighbour for the first address of the peer's
//! subnet, a forwarding entry from the VTEP MAC to the peer's address, and an onlink route through
//! the two. A direct peer has one plain route.
//!
//! What belongs to whom:
//! - a device `flannel.<VNI>` of another VNI is ours if it carries this node's tunnel address;
//! - permanent neighbours and forwarding entries of `flannel.<VNI>` are all ours;
//! - routes with [`ROUTE_PROTOCOL`] are ours;
//! - routes flannel left are adopted, that is replaced: in flannel's shape on `flannel.<VNI>`, or
//!   to exactly a peer's subnet, with protocol "boot" and metric 0. One through a gateway to this
//!   node's own subnet is from the time another node leased it, and goes;
//! - every other route stays. One to a peer's subnet is shadowed, not removed: ours goes in front.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::route::{RouteHeader, RouteScope, RouteType};

use super::{
    admit::{Admission, PeerPath},
    object::{Address, FdbEntry, Neighbour, Route},
};
use crate::model::{Backend, LocalNode};

/// Protocol number of routes installed by this agent, shown as `proto 241` by `ip route`. Neither
/// `rtnetlink.h` nor iproute2's `rt_protos` assigns it.
pub const ROUTE_PROTOCOL: u8 = 241;

/// `RTPROT_BOOT`: what flannel's routes carry, because it sets none.
const PROTOCOL_BOOT: u8 = 3;

/// Kernel state this agent answers for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Index of `flannel.<VNI>`, for backends that have it.
    pub vtep: Option<u32>,
    /// The address of the device, and the range in which it has no other.
    pub address: Option<(Ipv4Network, Ipv4Network)>,
    /// The subnet of this node and the underlay interface: no gateway there leads to it.
    pub subnet: Option<(Ipv4Network, u32)>,
    pub neighbours: BTreeMap<Ipv4Addr, MacAddr>,
    pub fdb: BTreeMap<MacAddr, Ipv4Addr>,
    pub routes: BTreeMap<Ipv4Network, Route>,
}

/// Kernel state as dumped: addresses, neighbours and forwarding entries of `flannel.<VNI>`, the
/// main routing table in the kernel's order, and devices of an earlier configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub addresses: Vec<Address>,
    pub neighbours: Vec<Neighbour>,
    pub fdb: Vec<FdbEntry>,
    pub routes: Vec<Route>,
    pub leftovers: Vec<Leftover>,
}

/// A vxlan device named `flannel.<its VNI>` that carries this node's tunnel address and is not the
/// configured one: the VNI or the backend was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub ifindex: u32,
    pub vni: u32,
}

/// One step from observed to wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    AddAddress {
        ifindex: u32,
        address: Ipv4Network,
    },
    DeleteAddress(Address),
    SetFdb {
        ifindex: u32,
        mac: MacAddr,
        remote: Ipv4Addr,
    },
    SetNeighbour {
        ifindex: u32,
        address: Ipv4Addr,
        mac: MacAddr,
    },
    AddRoute(Route),
    DeleteRoute(Route),
    DeleteNeighbour {
        ifindex: u32,
        address: Ipv4Addr,
    },
    DeleteFdb {
        ifindex: u32,
        mac: MacAddr,
        remote: Option<Ipv4Addr>,
    },
    DeleteVtep(Leftover),
}

/// The changes, in an order that never leaves a peer without a path it has before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub changes: Vec<Change>,
    /// Objects that are already as wanted.
    pub kept: usize,
    /// Foreign routes to a peer's subnet that ours is put in front of.
    pub shadowed: Vec<Route>,
}

impl Change {
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
}

impl fmt::Display for Change {
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
            Self::DeleteVtep(leftover) => write!(f, "delete interface flannel.{}", leftover.vni),
        }
    }
}

impl fmt::Display for Route {
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
pub fn want(local: &LocalNode, admission: &Admission, vtep: Option<u32>) -> Wanted {
    let mut wanted = Wanted {
        vtep,
        subnet: (local.backend != Backend::Alloc).then_some((local.subnet, local.underlay.ifindex)),
        ..Wanted::default()
    };
    if vtep.is_some() {
        wanted.address = Some((tunnel_address(local), local.network));
    }
    for (peer, path) in admission.accepted.values() {
        let base = peer.subnet.network();
        match (*path, vtep) {
            (PeerPath::Direct { ifindex }, _) => {
                wanted.routes.insert(
                    peer.subnet,
                    peer_route(peer.subnet, peer.public_ip, ifindex, false),
                );
            }
            (PeerPath::Tunnel, Some(vtep)) => {
                wanted.neighbours.insert(base, peer.vtep_mac);
                wanted.fdb.insert(peer.vtep_mac, peer.public_ip);
                wanted
                    .routes
                    .insert(peer.subnet, peer_route(peer.subnet, base, vtep, true));
            }
            (PeerPath::Tunnel, None) => {}
        }
    }
    wanted
}

fn peer_route(destination: Ipv4Network, gateway: Ipv4Addr, ifindex: u32, onlink: bool) -> Route {
    Route {
        destination,
        gateway: Some(gateway),
        ifindex: Some(ifindex),
        onlink,
        kind: RouteType::Unicast,
        protocol: ROUTE_PROTOCOL,
        scope: RouteScope::Universe,
        metric: 0,
        tos: 0,
        table: u32::from(RouteHeader::RT_TABLE_MAIN),
    }
}

/// The address of this node's end of the tunnels: the first of its subnet, alone.
pub(super) fn tunnel_address(local: &LocalNode) -> Ipv4Network {
    Ipv4Network::from(local.subnet.network())
}

/// The changes that turn `observed` into `wanted`.
pub fn diff(wanted: &Wanted, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
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
        .extend(leftovers.copied().map(Change::DeleteVtep));
    plan
}

fn diff_addresses(wanted: &Wanted, observed: &Observed, vtep: u32, plan: &mut Plan) {
    let Some((address, network)) = wanted.address else {
        return;
    };
    let on_vtep = || observed.addresses.iter().filter(|a| a.ifindex == vtep);
    if on_vtep().any(|a| a.local == address) {
        plan.kept += 1;
    } else {
        plan.changes.push(Change::AddAddress {
            ifindex: vtep,
            address,
        });
    }
    // Addresses outside the pod network are the administrator's, as with flannel.
    for other in on_vtep().filter(|a| a.local != address && network.contains(a.local.ip())) {
        plan.changes.push(Change::DeleteAddress(*other));
    }
}

fn diff_fdb(
    wanted: &Wanted,
    observed: &Observed,
    vtep: u32,
    plan: &mut Plan,
    removals: &mut Vec<Change>,
) {
    let mut present = BTreeSet::new();
    for entry in observed
        .fdb
        .iter()
        .filter(|e| e.ifindex == vtep && e.permanent)
    {
        match wanted.fdb.get(&entry.mac) {
            Some(remote) => {
                if entry.remote == Some(*remote) && !entry.overridden {
                    present.insert(entry.mac);
                }
            }
            None => removals.push(Change::DeleteFdb {
                ifindex: vtep,
                mac: entry.mac,
                remote: entry.remote,
            }),
        }
    }
    plan.kept += present.len();
    for (&mac, &remote) in wanted.fdb.iter().filter(|(mac, _)| !present.contains(mac)) {
        plan.changes.push(Change::SetFdb {
            ifindex: vtep,
            mac,
            remote,
        });
    }
}

fn diff_neighbours(
    wanted: &Wanted,
    observed: &Observed,
    vtep: u32,
    plan: &mut Plan,
    removals: &mut Vec<Change>,
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
            None => removals.push(Change::DeleteNeighbour {
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
        plan.changes.push(Change::SetNeighbour {
            ifindex: vtep,
            address,
            mac,
        });
    }
}

fn diff_routes(wanted: &Wanted, observed: &Observed, plan: &mut Plan) {
    let mut present = BTreeSet::new();
    let mut stale = Vec::new();
    for route in observed.routes.iter().filter(|r| r.in_main_table()) {
        let target = wanted.routes.get(&route.destination);
        if target == Some(route) {
            present.insert(route.destination);
        } else if is_replaceable(route, wanted) {
            stale.push(Change::DeleteRoute(*route));
        } else if target.is_some() && route.metric == 0 && route.tos == 0 {
            plan.shadowed.push(*route);
        }
    }
    plan.kept += present.len();
    plan.changes.extend(
        wanted
            .routes
            .iter()
            .filter(|(destination, _)| !present.contains(destination))
            .map(|(_, route)| Change::AddRoute(*route)),
    );
    plan.changes.append(&mut stale);
}

/// The route is ours or flannel's. A blackhole route of ours has its own reconciliation.
fn is_replaceable(route: &Route, wanted: &Wanted) -> bool {
    if route.kind != RouteType::Unicast {
        return false;
    }
    if route.protocol == ROUTE_PROTOCOL {
        return true;
    }
    let to_peer = wanted.routes.contains_key(&route.destination);
    let to_own_subnet = wanted.subnet.is_some_and(|(subnet, underlay)| {
        route.destination == subnet && route.gateway.is_some() && route.ifindex == Some(underlay)
    });
    let flannel_tunnel = wanted.vtep.is_some()
        && route.ifindex == wanted.vtep
        && route.onlink
        && route.gateway == Some(route.destination.network());
    route.protocol == PROTOCOL_BOOT
        && route.metric == 0
        && route.tos == 0
        && (to_peer || to_own_subnet || flannel_tunnel)
}

#[cfg(test)]
mod tests;
