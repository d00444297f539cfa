//! The comparison against a model of the kernel's IPv6: a route takes the place of one with the same
//! metric, and an onlink gateway is refused while a route through another interface leads to it.

use std::{collections::BTreeSet, net::Ipv6Addr};

use ipnetwork::Ipv6Network;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::model::V6;

const VTEP: u32 = 7;
const OTHER: u32 = 8;

fn subnet(n: u16) -> Ipv6Network {
    Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x10, 5, n, 0, 0, 0, 0), 64).expect("a subnet")
}

fn node(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, n)
}

fn wanted_with(peers: &BTreeSet<(u8, bool)>) -> Wanted<V6> {
    let mut wanted = Wanted {
        vtep: Some(VTEP),
        subnet: Some((subnet(1), OTHER)),
        address: Some((
            Ipv6Network::from(subnet(1).network()),
            "fd00:10:5::/48".parse().expect("a network"),
        )),
        marks: Marks {
            is_flannels: Route::is_tunnel_shaped,
            ..Marks::NONE
        },
        ..Wanted::default()
    };
    for &(n, direct) in peers {
        let destination = subnet(n.into());
        let route = if direct {
            peer_route(destination, node(n.into()), OTHER, false)
        } else {
            let base = destination.network();
            let mac = MacAddr::new([2, 0, 0, 0, 6, n]);
            wanted.neighbours.insert(base, mac);
            wanted.fdb.insert(mac, node(n.into()));
            peer_route(destination, base, VTEP, true)
        };
        wanted.routes.insert(destination, route);
    }
    wanted
}

/// A kernel that does what the changes say, as IPv6 does it.
fn apply(routes: &mut Vec<Route<V6>>, changes: &[ObjectChange<V6>]) {
    for change in changes {
        match change.clone() {
            ObjectChange::AddRoute(route) => {
                if let Some(gateway) = route.gateway.filter(|_| route.onlink) {
                    let elsewhere = routes.iter().find(|other| {
                        other.destination.contains(gateway) && other.ifindex != route.ifindex
                    });
                    assert_eq!(elsewhere, None, "the kernel refuses {route}");
                }
                let key = |r: &Route<V6>| (r.destination, r.metric);
                routes.retain(|other| key(other) != key(&route));
                routes.push(route);
            }
            ObjectChange::DeleteRoute(route) => {
                let position = routes.iter().position(|other| *other == route);
                routes.remove(position.expect("a plan deletes only what is there"));
            }
            _ => {}
        }
    }
}

fn arbitrary_wanted() -> impl Strategy<Value = Wanted<V6>> {
    proptest::collection::btree_map(2..12_u8, any::<bool>(), 0..10)
        .prop_map(|peers| wanted_with(&peers.into_iter().collect()))
}

/// What flannel, an earlier configuration of this agent, or this agent left: one route at most to
/// each subnet with the default metric.
fn arbitrary_left() -> impl Strategy<Value = Vec<Route<V6>>> {
    let protocol = prop_oneof![Just(ROUTE_PROTOCOL), Just(PROTOCOL_BOOT)];
    vec((2..14_u16, protocol, any::<bool>()), 0..12).prop_map(|routes| {
        let mut seen = BTreeSet::new();
        routes
            .into_iter()
            .filter(|(n, ..)| seen.insert(*n))
            .map(|(n, protocol, direct)| {
                let shape = if direct {
                    peer_route(subnet(n), node(n), OTHER, false)
                } else {
                    peer_route(subnet(n), subnet(n).network(), VTEP, true)
                };
                Route { protocol, ..shape }
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn whatever_was_left_one_application_reaches_what_is_wanted(
        wanted in arbitrary_wanted(),
        routes in arbitrary_left(),
    ) {
        let mut observed = ObservedObjects { routes, ..ObservedObjects::default() };
        let changes = diff(&wanted, &observed).changes;
        apply(&mut observed.routes, &changes);
        for route in wanted.routes.values() {
            prop_assert!(observed.routes.contains(route), "{route} is missing");
        }
        let ours = observed.routes.iter().filter(|route| route.protocol == ROUTE_PROTOCOL);
        prop_assert_eq!(ours.count(), wanted.routes.len());
        let again = diff(&wanted, &observed).changes;
        let about_routes = |change: &ObjectChange<V6>| {
            matches!(change, ObjectChange::AddRoute(_) | ObjectChange::DeleteRoute(_))
        };
        prop_assert!(!again.iter().any(about_routes), "{again:#?}");
    }
}

#[test]
fn a_tunnel_gives_way_to_a_direct_route_without_a_gap_and_a_direct_route_to_a_tunnel_first() {
    let tunnel = wanted_with(&[(2, false)].into());
    let direct = wanted_with(&[(2, true)].into());
    let routes = |changes: Vec<ObjectChange<V6>>| -> Vec<_> {
        let about_routes = |change: &ObjectChange<V6>| {
            matches!(
                change,
                ObjectChange::AddRoute(_) | ObjectChange::DeleteRoute(_)
            )
        };
        changes.into_iter().filter(about_routes).collect()
    };
    let mut observed = ObservedObjects::default();
    let from_nothing = diff(&tunnel, &observed).changes;
    apply(&mut observed.routes, &from_nothing);
    let to_direct = routes(diff(&direct, &observed).changes);
    assert!(
        matches!(to_direct[..], [ObjectChange::AddRoute(_)]),
        "{to_direct:#?}"
    );
    apply(&mut observed.routes, &to_direct);
    let to_tunnel = routes(diff(&tunnel, &observed).changes);
    assert!(
        matches!(
            to_tunnel[..],
            [ObjectChange::DeleteRoute(_), ObjectChange::AddRoute(_)]
        ),
        "{to_tunnel:#?}"
    );
}

#[test]
fn of_several_next_hops_that_share_the_traffic_ours_alone_remains() {
    // The kernel lists them as one route without a gateway of its own.
    let wanted = wanted_with(&[(2, true)].into());
    let shared = Route {
        gateway: None,
        ifindex: None,
        ..peer_route(subnet(2), node(2), OTHER, false)
    };
    let mut observed = ObservedObjects {
        routes: vec![shared],
        ..ObservedObjects::default()
    };
    let changes = diff(&wanted, &observed).changes;
    assert!(
        !changes.contains(&ObjectChange::DeleteRoute(shared)),
        "{changes:#?}"
    );
    apply(&mut observed.routes, &changes);
    assert_eq!(
        observed.routes,
        wanted.routes.values().copied().collect::<Vec<_>>()
    );
}

#[test]
fn routes_of_the_administrator_stay() {
    let wanted = wanted_with(&[(2, false)].into());
    let preferred = Route {
        protocol: 4,
        metric: 512,
        ..peer_route(subnet(2), node(9), VTEP, false)
    };
    let elsewhere = Route {
        protocol: 4,
        ..peer_route(subnet(40), node(9), OTHER, false)
    };
    let mut observed = ObservedObjects {
        routes: vec![preferred, elsewhere],
        ..ObservedObjects::default()
    };
    let changes = diff(&wanted, &observed).changes;
    apply(&mut observed.routes, &changes);
    assert!(observed.routes.contains(&preferred) && observed.routes.contains(&elsewhere));
}
