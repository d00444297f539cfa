//! The MTU that the kernel's route to an address carries (`ip route … mtu N`). Packets that the host
//! itself sends, those of a vxlan device too, respect it; `bpf_fib_lookup` reports it only if it is
//! locked (`ip_mtu_from_fib_result` in the kernel). Pure.

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric};

use super::object::Route;
use crate::model::{Family, V4};

/// A route of the main table, and its MTU if it carries one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteMtu<F: Family = V4> {
    pub route: Route<F>,
    pub mtu: Option<u32>,
}

impl<F: Family> RouteMtu<F> {
    pub(super) fn decode(message: &RouteMessage) -> Option<Self> {
        let mtu = message.attributes.iter().find_map(|attribute| {
            let RouteAttribute::Metrics(metrics) = attribute else {
                return None;
            };
            metrics.iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                _ => None,
            })
        });
        Some(Self {
            route: Route::decode(message)?,
            mtu,
        })
    }
}

/// The MTU of the route the kernel takes to `address`: the most specific one, among those the one
/// with the least metric.
pub fn to<F: Family>(address: F::Address, routes: &[RouteMtu<F>]) -> Option<u32> {
    let prefix = |network: F::Network| IpNetwork::prefix(&network.into());
    routes
        .iter()
        .filter(|found| F::contains(found.route.destination, address))
        .max_by_key(|found| {
            let metric = std::cmp::Reverse(found.route.metric);
            (prefix(found.route.destination), metric)
        })?
        .mtu
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::packet_route::route::{RouteScope, RouteType};

    use super::*;

    fn route(destination: &str, metric: u32, mtu: Option<u32>) -> RouteMtu {
        let route = Route {
            destination: destination.parse().unwrap(),
            gateway: None,
            ifindex: Some(2),
            onlink: false,
            kind: RouteType::Unicast,
            protocol: 4,
            scope: RouteScope::Universe,
            metric,
            tos: 0,
            table: 254,
        };
        RouteMtu { route, mtu }
    }

    #[test]
    fn the_most_specific_route_with_the_least_metric_decides() {
        let routes = [
            route("0.0.0.0/0", 0, Some(1500)),
            route("192.0.2.0/24", 100, Some(1300)),
            route("192.0.2.0/24", 50, Some(1400)),
            route("198.51.100.0/24", 0, None),
        ];
        let mtu = |address: [u8; 4]| to::<V4>(Ipv4Addr::from(address), &routes);
        assert_eq!(mtu([192, 0, 2, 7]), Some(1400));
        assert_eq!(mtu([198, 51, 100, 7]), None);
        assert_eq!(mtu([203, 0, 113, 7]), Some(1500));
        assert_eq!(to::<V4>(Ipv4Addr::LOCALHOST, &routes[1..]), None);
    }
}
