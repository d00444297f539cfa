//! Observe, compare, apply: the kernel tier of the desired state.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    neighbour::NeighbourMessage,
    route::{
        RouteAttribute::{Gateway, Oif, Via},
        RouteHeader, RouteMessage, RouteScope, RouteType,
    },
};

use super::{
    Netlink, NetlinkError,
    admit::{OnLink, Refusal},
    device::{Marks, Vtep},
    object::{Address, FdbEntry, Neighbour, Route},
    plan::{Leftover, ObjectChange, ObjectPlan, ObservedObjects, ROUTE_PROTOCOL, diff},
    request,
    route_mtu::{self, RouteMtu},
    standing::{Before, Standing},
    tally::Tally,
    transport::Request,
};
use crate::model::{Desired, Direct, Family, LocalNode, V4};

/// Metric of the blackhole route: it must lose against the bridge's own route to the subnet.
const BLACKHOLE_METRIC: u32 = u32::MAX - 1;

/// A change the kernel refused.
#[derive(Debug)]
pub struct Failure<F: Family = V4> {
    pub change: ObjectChange<F>,
    pub error: io::Error,
}

/// What a reconciliation did.
#[derive(Debug)]
pub struct Summary<F: Family = V4> {
    pub changed: Tally,
    pub kept: usize,
    /// Routes were among what changed.
    pub rerouted: bool,
    pub failed: Vec<Failure<F>>,
    pub refused: Vec<Refusal<F>>,
    /// Number of programmed peers.
    pub peers: usize,
    /// MTUs of the kernel's routes to peers, where they carry one.
    pub route_mtus: BTreeMap<F::Address, u32>,
    /// From where [`Netlink::follow`] goes on; `None` after a failure.
    pub standing: Option<Standing<F>>,
}

impl<F: Family> fmt::Display for Failure<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.change, self.error)
    }
}

fn route_mtus<F: Family>(
    desired: &Desired<F>,
    routes: &[RouteMtu<F>],
) -> BTreeMap<F::Address, u32> {
    if routes.is_empty() {
        return BTreeMap::new();
    }
    let peers = desired.peers.values().map(|peer| peer.public_ip);
    peers
        .filter_map(|address| Some((address, route_mtu::to(address, routes)?)))
        .collect()
}

impl Netlink {
    /// Makes addresses, neighbours, forwarding entries and routes as desired. `vtep` is the device
    /// [`Netlink::ensure_vtep`] returned; backends without a device have none.
    pub async fn reconcile<F: Family>(
        &self,
        desired: &Desired<F>,
        vtep: Option<&Vtep>,
        marks: Marks<F>,
    ) -> Result<Summary<F>, NetlinkError> {
        match self.reconcile_once(desired, vtep, marks).await {
            // The changes are made or not: another look tells.
            Err(NetlinkError::Closed) => self.reconcile_once(desired, vtep, marks).await,
            reconciled => reconciled,
        }
    }

    async fn reconcile_once<F: Family>(
        &self,
        desired: &Desired<F>,
        vtep: Option<&Vtep>,
        marks: Marks<F>,
    ) -> Result<Summary<F>, NetlinkError> {
        let on_link = self.on_link_of(desired, vtep, OnLink::<F>::new()).await?;
        let (observed, mut routes) = self.observe(&desired.local, vtep, marks).await?;
        // Hardly any host has such a route, and the list has a place for each of all routes.
        if routes.iter().all(|found| found.mtu.is_none()) {
            routes = Vec::new();
        }
        let device = device(desired, vtep)?;
        let standing = Standing::of(desired, on_link, routes, device, marks);
        let plan = diff(&standing.wanted, &observed);
        self.bring_about(desired, plan, standing).await
    }

    /// As [`Netlink::reconcile`], after peers have changed from `before` and nothing else has: the kernel is
    /// not asked what is there, but taken to be as it was left.
    pub async fn follow<F: Family>(
        &self,
        desired: &Desired<F>,
        vtep: Option<&Vtep>,
        before: &Before<F>,
        mut standing: Standing<F>,
    ) -> Result<Summary<F>, NetlinkError> {
        let device = device(desired, vtep)?;
        if desired.local.forwarding.direct == Direct::OnLink {
            let unknown = standing.unknown(desired, before);
            let found = self.look_up::<F>(unknown, vtep).await?;
            standing.on_link.extend(found);
        }
        if let Some(plan) = standing.change(desired, before, device) {
            return self.bring_about(desired, plan, standing).await;
        }
        let on_link = self.on_link_of(desired, vtep, standing.on_link).await?;
        let observed = ObservedObjects::just(&standing.wanted);
        let (routes, marks) = (standing.routes, standing.wanted.marks);
        let standing = Standing::of(desired, on_link, routes, device, marks);
        let plan = diff(&standing.wanted, &observed);
        self.bring_about(desired, plan, standing).await
    }

    /// Makes the changes after which `standing` is there.
    async fn bring_about<F: Family>(
        &self,
        desired: &Desired<F>,
        plan: ObjectPlan<F>,
        standing: Standing<F>,
    ) -> Result<Summary<F>, NetlinkError> {
        // Encoded as they are sent: all requests of a large cluster take more room than what they are about.
        let requests = plan.changes.iter().map(encode::<F>);
        let verdicts = self.transport.apply(requests).await?;
        let mut summary = Summary {
            changed: Tally::default(),
            kept: plan.kept,
            rerouted: plan.changes.iter().any(ObjectChange::reroutes),
            failed: Vec::new(),
            refused: standing.refused().collect(),
            peers: standing.peers(),
            route_mtus: route_mtus(desired, &standing.routes),
            standing: None,
        };
        for (change, verdict) in plan.changes.into_iter().zip(verdicts) {
            match verdict {
                Err(error) if !already_so(&change, &error) => {
                    summary.failed.push(Failure { change, error });
                }
                _ => summary.changed.note(change.objects(), change.removes()),
            }
        }
        summary.standing = summary.failed.is_empty().then_some(standing);
        Ok(summary)
    }

    /// The interface through which the kernel reaches each of the addresses without a gateway, of those
    /// that it does.
    async fn on_link<F: Family>(
        &self,
        addresses: BTreeSet<F::Address>,
    ) -> Result<BTreeMap<F::Address, u32>, NetlinkError> {
        let queries = addresses
            .iter()
            .map(|address| request::route_to::<F>(*address))
            .collect();
        let answers = self
            .transport
            .query("look up routes to peers", queries)
            .await?;
        Ok(addresses
            .into_iter()
            .zip(answers)
            .filter_map(|(address, answer)| match answer {
                Ok(Some(RouteNetlinkMessage::NewRoute(message))) => {
                    Some((address, directly_connected(&message)?))
                }
                // No route at all is an error of the lookup.
                _ => None,
            })
            .collect())
    }

    /// Keeps exactly one blackhole route of ours, to `subnet`, or none. Traffic to addresses of the
    /// local subnet that no pod has then ends here instead of following a default route.
    pub async fn set_blackhole<F: Family>(
        &self,
        subnet: Option<F::Network>,
    ) -> Result<(), NetlinkError> {
        let wanted = subnet.map(|destination| Route::<F> {
            destination,
            gateway: None,
            ifindex: None,
            onlink: false,
            kind: RouteType::BlackHole,
            protocol: ROUTE_PROTOCOL,
            scope: RouteScope::Universe,
            metric: BLACKHOLE_METRIC,
            tos: 0,
            table: u32::from(RouteHeader::RT_TABLE_MAIN),
        });
        let found = self.list_routes::<F>(request::dump_blackholes::<F>());
        let own: Vec<_> = found
            .await?
            .into_iter()
            .map(|found| found.route)
            .filter(|r| r.is_ours() && r.kind == RouteType::BlackHole)
            .collect();
        for stale in own.iter().filter(|route| Some(**route) != wanted) {
            self.change(
                format!("delete route {stale}"),
                request::delete_route(stale),
            )
            .await?;
        }
        match wanted {
            Some(route) if !own.contains(&route) => {
                self.change(format!("add route {route}"), request::set_route(&route))
                    .await
            }
            _ => Ok(()),
        }
    }

    /// Which peers are on-link, where that matters; only addresses that are not known yet are looked
    /// up.
    async fn on_link_of<F: Family>(
        &self,
        desired: &Desired<F>,
        vtep: Option<&Vtep>,
        mut known: OnLink<F>,
    ) -> Result<OnLink<F>, NetlinkError> {
        if desired.local.forwarding.direct != Direct::OnLink {
            return Ok(OnLink::<F>::new());
        }
        let peers: BTreeSet<_> = desired.peers.values().map(|peer| peer.public_ip).collect();
        known.retain(|address, _| peers.contains(address));
        let is_new = |address: &F::Address| !known.contains_key(address);
        let new: BTreeSet<_> = peers.into_iter().filter(is_new).collect();
        known.extend(self.look_up::<F>(new, vtep).await?);
        Ok(known)
    }

    /// Asks the kernel where addresses are; what is behind the backend's device itself is not on-link.
    async fn look_up<F: Family>(
        &self,
        addresses: BTreeSet<F::Address>,
        vtep: Option<&Vtep>,
    ) -> Result<OnLink<F>, NetlinkError> {
        let mut found = self.on_link::<F>(addresses.clone()).await?;
        found.retain(|_, ifindex| Some(*ifindex) != vtep.map(|vtep| vtep.ifindex));
        let looked_up = addresses.into_iter();
        Ok(looked_up
            .map(|address| (address, found.remove(&address)))
            .collect())
    }

    async fn observe<F: Family>(
        &self,
        local: &LocalNode<F>,
        vtep: Option<&Vtep>,
        marks: Marks<F>,
    ) -> Result<(ObservedObjects<F>, Vec<RouteMtu<F>>), NetlinkError> {
        let routes = self.routes_with_mtu().await?;
        let mut observed = ObservedObjects {
            routes: routes.iter().map(|found| found.route).collect(),
            addresses: self.addresses().await?,
            ..ObservedObjects::default()
        };
        let current = vtep.map(|vtep| vtep.ifindex);
        let own: IpAddr = F::first(local.subnet).into();
        let is_own = |address: &&Address<F>| address.local.into().ip() == own;
        for address in observed.addresses.iter().filter(is_own) {
            if Some(address.ifindex) != current {
                let link = self.link_at(address.ifindex).await?;
                let link = link.filter(marks.is_device);
                observed.leftovers.extend(link.map(|link| Leftover {
                    ifindex: link.ifindex,
                    name: link.name,
                }));
            }
        }
        observed.addresses.retain(|a| Some(a.ifindex) == current);
        let Some(vtep) = vtep else {
            return Ok((observed, routes));
        };
        let link = self.link_at(vtep.ifindex).await?;
        if link.is_none_or(|link| link.name != vtep.name) {
            return Err(NetlinkError::VtepGone {
                name: vtep.name.clone(),
                ifindex: vtep.ifindex,
            });
        }
        observed.neighbours = self.neighbours(vtep.ifindex).await?;
        if local.device.as_ref().is_some_and(|device| device.has_fdb) {
            observed.fdb = self.forwarding_entries(vtep.ifindex).await?;
        }
        Ok((observed, routes))
    }

    /// Addresses of all interfaces.
    pub async fn addresses<F: Family>(&self) -> Result<Vec<Address<F>>, NetlinkError> {
        let decode = |message| match message {
            RouteNetlinkMessage::NewAddress(message) => Address::decode(&message),
            _ => None,
        };
        self.transport
            .dump("list addresses", request::dump_addresses::<F>(), decode)
            .await
    }

    /// Neighbours at an interface.
    pub async fn neighbours<F: Family>(
        &self,
        ifindex: u32,
    ) -> Result<Vec<Neighbour<F>>, NetlinkError> {
        let decode = |message| {
            let decoded = new_neighbour(message).as_ref().and_then(Neighbour::decode);
            decoded.filter(|neighbour| neighbour.ifindex == ifindex)
        };
        let query = request::dump_neighbours::<F>(ifindex);
        self.transport.dump("list neighbours", query, decode).await
    }

    /// Forwarding entries of a vxlan device.
    pub async fn forwarding_entries(&self, ifindex: u32) -> Result<Vec<FdbEntry>, NetlinkError> {
        let decode = |message| {
            let decoded = new_neighbour(message).as_ref().and_then(FdbEntry::decode);
            decoded.filter(|entry| entry.ifindex == ifindex)
        };
        self.transport
            .dump(
                "list forwarding entries",
                request::dump_fdb(ifindex),
                decode,
            )
            .await
    }

    /// Routes of the main table, in the kernel's order.
    pub async fn routes<F: Family>(&self) -> Result<Vec<Route<F>>, NetlinkError> {
        let found = self.routes_with_mtu().await?;
        Ok(found.into_iter().map(|found| found.route).collect())
    }

    async fn routes_with_mtu<F: Family>(&self) -> Result<Vec<RouteMtu<F>>, NetlinkError> {
        self.list_routes(request::dump_routes::<F>()).await
    }

    async fn list_routes<F: Family>(
        &self,
        query: RouteNetlinkMessage,
    ) -> Result<Vec<RouteMtu<F>>, NetlinkError> {
        let decode = |message| match message {
            RouteNetlinkMessage::NewRoute(message) => {
                RouteMtu::decode(&message).filter(|found| found.route.in_main_table())
            }
            _ => None,
        };
        self.transport.dump("list routes", query, decode).await
    }
}

/// Index of the backend's device.
fn device<F: Family>(
    desired: &Desired<F>,
    vtep: Option<&Vtep>,
) -> Result<Option<u32>, NetlinkError> {
    if vtep.is_none() && desired.local.forwarding.device {
        return Err(NetlinkError::VtepMissing);
    }
    Ok(vtep.map(|vtep| vtep.ifindex))
}

/// The interface of a looked-up route that needs no gateway. flannel asks the same question for
/// DirectRouting.
fn directly_connected(message: &RouteMessage) -> Option<u32> {
    let gatewayed = message
        .attributes
        .iter()
        .any(|a| matches!(a, Gateway(_) | Via(_)));
    if gatewayed || message.header.kind != RouteType::Unicast {
        return None;
    }
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            Oif(ifindex) => Some(*ifindex),
            _ => None,
        })
}

fn new_neighbour(message: RouteNetlinkMessage) -> Option<NeighbourMessage> {
    match message {
        RouteNetlinkMessage::NewNeighbour(message) => Some(message),
        _ => None,
    }
}

fn encode<F: Family>(change: &ObjectChange<F>) -> Request {
    match change {
        ObjectChange::AddAddress { ifindex, address } => {
            request::add_address::<F>(*ifindex, *address)
        }
        ObjectChange::DeleteAddress(address) => request::delete_address(*address),
        ObjectChange::SetFdb {
            ifindex,
            mac,
            remote,
        } => request::set_fdb(*ifindex, *mac, (*remote).into()),
        ObjectChange::SetNeighbour {
            ifindex,
            address,
            mac,
        } => request::set_neighbour::<F>(*ifindex, *address, *mac),
        ObjectChange::AddRoute(route) => request::set_route(route),
        ObjectChange::DeleteRoute(route) => request::delete_route(route),
        ObjectChange::DeleteNeighbour { ifindex, address } => {
            request::delete_neighbour::<F>(*ifindex, *address)
        }
        ObjectChange::DeleteFdb {
            ifindex,
            mac,
            remote,
        } => request::delete_fdb(*ifindex, *mac, *remote),
        ObjectChange::DeleteVtep(leftover) => request::delete_link(leftover.ifindex),
    }
}

/// Someone else made the change between observation and application.
fn already_so<F: Family>(change: &ObjectChange<F>, error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::EEXIST) => !change.removes(),
        Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL | libc::ENODEV) => change.removes(),
        _ => false,
    }
}
