//! What tells pods' interfaces from others in one address family: addresses and host routes.

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_route::route::RouteType;

use crate::{
    model::Family,
    netlink::{
        object::{Address, Route},
        watch::IpEvent,
    },
};

/// Addresses and host routes of the interfaces, by index.
#[derive(Clone, Debug)]
pub(super) struct Addressing<F: Family> {
    addresses: BTreeMap<u32, BTreeSet<F::Network>>,
    /// Routes to one address, without a gateway.
    host_routes: BTreeMap<u32, BTreeSet<F::Address>>,
}

impl<F: Family> Default for Addressing<F> {
    fn default() -> Self {
        Self {
            addresses: BTreeMap::new(),
            host_routes: BTreeMap::new(),
        }
    }
}

impl<F: Family> Addressing<F> {
    pub(super) fn new(addresses: &[Address<F>], routes: &[Route<F>]) -> Self {
        let mut addressing = Self::default();
        for address in addresses {
            addressing.apply(&IpEvent::Address(*address));
        }
        for route in routes {
            addressing.apply(&IpEvent::Route(*route));
        }
        addressing
    }

    /// Takes over an event. Returns whether anything changed.
    pub(super) fn apply(&mut self, event: &IpEvent<F>) -> bool {
        match event {
            // Every interface with IPv6 gets such an address, and no subnet contains it.
            IpEvent::Address(address) if address.is_link_local() => false,
            IpEvent::Address(address) => {
                insert(&mut self.addresses, address.ifindex, address.local)
            }
            IpEvent::AddressRemoved(address) => {
                remove(&mut self.addresses, address.ifindex, &address.local)
            }
            IpEvent::Route(route) => host_route(route)
                .is_some_and(|(ifindex, address)| insert(&mut self.host_routes, ifindex, address)),
            IpEvent::RouteRemoved(route) => host_route(route)
                .is_some_and(|(ifindex, address)| remove(&mut self.host_routes, ifindex, &address)),
            IpEvent::Neighbour(_) | IpEvent::NeighbourRemoved(_) => false,
        }
    }

    /// Forgets the routes through an interface. Returns whether there were any.
    pub(super) fn drop_routes(&mut self, ifindex: u32) -> bool {
        self.host_routes.remove(&ifindex).is_some()
    }

    /// Forgets an interface.
    pub(super) fn forget(&mut self, ifindex: u32) {
        self.addresses.remove(&ifindex);
        self.host_routes.remove(&ifindex);
    }

    /// Whether an interface has an address in the subnet.
    pub(super) fn is_in(&self, ifindex: u32, subnet: F::Network) -> bool {
        self.addresses(ifindex)
            .any(|address| F::contains(subnet, address))
    }

    /// Whether a host of the subnet is behind an interface.
    pub(super) fn leads_into(&self, ifindex: u32, subnet: F::Network) -> bool {
        let mut hosts = self.host_routes.get(&ifindex).into_iter().flatten();
        hosts.any(|host| F::contains(subnet, *host) && !self.is_own(ifindex, *host))
    }

    /// Whether a host route leads to the interface's own address, as IPv6 has them in the main
    /// table for an address with the prefix of one host (`addrconf_prefix_route`).
    fn is_own(&self, ifindex: u32, host: F::Address) -> bool {
        self.addresses(ifindex).any(|own| own == host)
    }

    fn addresses(&self, ifindex: u32) -> impl Iterator<Item = F::Address> {
        let addresses = self.addresses.get(&ifindex).into_iter().flatten();
        addresses.filter_map(|address| F::address((*address).into().ip()))
    }
}

fn host_route<F: Family>(route: &Route<F>) -> Option<(u32, F::Address)> {
    let host = F::first(route.destination);
    let to_one_host = route.destination == F::host(host)
        && route.gateway.is_none()
        && route.kind == RouteType::Unicast
        && route.in_main_table();
    to_one_host.then_some((route.ifindex?, host))
}

fn insert<T: Ord>(map: &mut BTreeMap<u32, BTreeSet<T>>, ifindex: u32, value: T) -> bool {
    map.entry(ifindex).or_default().insert(value)
}

fn remove<T: Ord>(map: &mut BTreeMap<u32, BTreeSet<T>>, ifindex: u32, value: &T) -> bool {
    let Some(values) = map.get_mut(&ifindex) else {
        return false;
    };
    let removed = values.remove(value);
    if values.is_empty() {
        map.remove(&ifindex);
    }
    removed
}
