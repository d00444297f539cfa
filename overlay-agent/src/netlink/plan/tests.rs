//! The comparison against a model of the kernel: whatever is there, applying the plan once gives
//! what is wanted, leaves foreign objects alone and has nothing left to do.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use proptest::{collection::vec, prelude::*};

use super::*;

const VTEP: u32 = 7;
const OTHER: u32 = 8;

/// A kernel that does what the changes say.
fn apply(observed: &mut ObservedObjects, changes: &[ObjectChange]) {
    for change in changes {
        match change.clone() {
            ObjectChange::AddAddress { ifindex, address } => observed.addresses.push(Address {
                ifindex,
                local: address,
                remote: address.ip(),
            }),
            ObjectChange::DeleteAddress(address) => remove(&mut observed.addresses, &address),
            ObjectChange::SetFdb {
                ifindex,
                mac,
                remote,
            } => {
                observed
                    .fdb
                    .retain(|e| (e.ifindex, e.mac) != (ifindex, mac));
                observed.fdb.push(fdb(ifindex, mac, remote));
            }
            ObjectChange::SetNeighbour {
                ifindex,
                address,
                mac,
            } => {
                observed
                    .neighbours
                    .retain(|e| (e.ifindex, e.address) != (ifindex, address));
                observed.neighbours.push(neighbour(ifindex, address, mac));
            }
            ObjectChange::AddRoute(route) => observed.routes.insert(0, route),
            ObjectChange::DeleteRoute(route) => remove(&mut observed.routes, &route),
            ObjectChange::DeleteNeighbour { ifindex, address } => observed
                .neighbours
                .retain(|e| (e.ifindex, e.address) != (ifindex, address)),
            ObjectChange::DeleteFdb {
                ifindex,
                mac,
                remote,
            } => observed
                .fdb
                .retain(|e| (e.ifindex, e.mac, e.remote) != (ifindex, mac, remote)),
            ObjectChange::DeleteVtep(leftover) => remove(&mut observed.leftovers, &leftover),
        }
    }
}

fn remove<T: PartialEq>(list: &mut Vec<T>, item: &T) {
    let position = list.iter().position(|other| other == item);
    list.remove(position.expect("a plan deletes only what was observed"));
}

fn fdb(ifindex: u32, mac: MacAddr, remote: Ipv4Addr) -> FdbEntry {
    FdbEntry {
        ifindex,
        mac,
        remote: Some(remote.into()),
        permanent: true,
        overridden: false,
    }
}

fn neighbour(ifindex: u32, address: Ipv4Addr, mac: MacAddr) -> Neighbour {
    Neighbour {
        ifindex,
        address,
        mac: Some(mac),
        permanent: true,
    }
}

fn subnet(n: u8) -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::new(10, 5, n, 0), 24).expect("a subnet")
}

fn mac(n: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, n])
}

fn wanted_with(peers: &BTreeSet<(u8, bool)>) -> Wanted {
    let mut wanted = Wanted {
        vtep: Some(VTEP),
        subnet: Some((subnet(1), OTHER)),
        address: Some((
            Ipv4Network::from(Ipv4Addr::new(10, 5, 1, 0)),
            "10.5.0.0/16".parse().expect("a network"),
        )),
        marks: Marks {
            is_flannels: Route::is_tunnel_shaped,
            ..Marks::NONE
        },
        ..Wanted::default()
    };
    for &(n, direct) in peers {
        let public_ip = Ipv4Addr::new(192, 0, 2, n);
        if direct {
            let route = peer_route(subnet(n), public_ip, OTHER, false);
            wanted.routes.insert(subnet(n), route);
        } else {
            let base = subnet(n).network();
            wanted.neighbours.insert(base, mac(n));
            wanted.fdb.insert(mac(n), public_ip);
            let route = peer_route(subnet(n), base, VTEP, true);
            wanted.routes.insert(subnet(n), route);
        }
    }
    wanted
}

fn arbitrary_wanted() -> impl Strategy<Value = Wanted> {
    proptest::collection::btree_map(2..12_u8, any::<bool>(), 0..10)
        .prop_map(|peers| wanted_with(&peers.into_iter().collect()))
}

fn arbitrary_route() -> impl Strategy<Value = Route> {
    let protocol = prop_oneof![
        Just(ROUTE_PROTOCOL),
        Just(PROTOCOL_BOOT),
        Just(2),
        Just(4),
        Just(12)
    ];
    let kind = prop_oneof![4 => Just(RouteType::Unicast), 1 => Just(RouteType::BlackHole)];
    let shape = (any::<bool>(), any::<bool>(), 0..3_u8);
    (
        1..14_u8,
        protocol,
        kind,
        shape,
        prop_oneof![3 => Just(0), 1 => Just(100)],
    )
        .prop_map(
            |(n, protocol, kind, (onlink, on_vtep, gateway), metric)| Route {
                gateway: match gateway {
                    0 => None,
                    1 => Some(subnet(n).network()),
                    _ => Some(Ipv4Addr::new(192, 0, 2, n)),
                },
                ifindex: Some(if on_vtep { VTEP } else { OTHER }),
                protocol,
                kind,
                metric,
                ..peer_route(subnet(n), Ipv4Addr::UNSPECIFIED, VTEP, onlink)
            },
        )
}

fn arbitrary_observed() -> impl Strategy<Value = ObservedObjects> {
    let device = || prop_oneof![3 => Just(VTEP), 1 => Just(OTHER)];
    let addresses = vec((device(), 0..3_u8, 0..4_u8, 24..=32_u8), 0..6);
    let neighbours = vec((device(), 2..14_u8, 2..14_u8, any::<bool>()), 0..12);
    let fdb_entries = vec(
        (device(), 2..14_u8, 2..14_u8, any::<bool>(), any::<bool>()),
        0..12,
    );
    (
        addresses,
        neighbours,
        fdb_entries,
        vec(arbitrary_route(), 0..16),
    )
        .prop_map(|(addresses, neighbours, fdb_entries, routes)| {
            let mut observed = ObservedObjects::default();
            for (ifindex, a, b, prefix) in addresses {
                let ip = Ipv4Addr::new(10, 4 + a, b, 0);
                let local = Ipv4Network::new(ip, prefix).expect("an address");
                let address = Address {
                    ifindex,
                    local,
                    remote: ip,
                };
                if !observed.addresses.contains(&address) {
                    observed.addresses.push(address);
                }
            }
            let mut seen = BTreeSet::new();
            for (ifindex, n, m, permanent) in neighbours {
                if seen.insert((ifindex, n)) {
                    observed.neighbours.push(Neighbour {
                        permanent,
                        ..neighbour(ifindex, subnet(n).network(), mac(m))
                    });
                }
            }
            let mut seen = BTreeSet::new();
            for (ifindex, n, m, permanent, overridden) in fdb_entries {
                if seen.insert((ifindex, n)) {
                    observed.fdb.push(FdbEntry {
                        permanent,
                        overridden,
                        ..fdb(ifindex, mac(n), Ipv4Addr::new(192, 0, 2, m))
                    });
                }
            }
            for route in routes {
                if !observed.routes.contains(&route) {
                    observed.routes.push(route);
                }
            }
            observed
        })
}

/// Objects no plan may touch.
fn foreign(observed: &ObservedObjects, wanted: &Wanted) -> ObservedObjects {
    let (_, network) = wanted.address.expect("an address");
    let mut foreign = observed.clone();
    foreign
        .addresses
        .retain(|a| a.ifindex != VTEP || !network.contains(a.local.ip()));
    foreign.neighbours.retain(|e| e.ifindex != VTEP);
    foreign.fdb.retain(|e| e.ifindex != VTEP);
    foreign.routes.retain(|r| {
        r.kind != RouteType::Unicast || !matches!(r.protocol, ROUTE_PROTOCOL | PROTOCOL_BOOT)
    });
    foreign
}

proptest! {
    #[test]
    fn one_application_reaches_what_is_wanted(
        wanted in arbitrary_wanted(),
        mut observed in arbitrary_observed(),
    ) {
        let before = foreign(&observed, &wanted);
        let plan = diff(&wanted, &observed);
        apply(&mut observed, &plan.changes);

        let again = diff(&wanted, &observed);
        prop_assert!(again.changes.is_empty(), "{:#?}", again.changes);
        let objects = 1 + wanted.neighbours.len() + wanted.fdb.len() + wanted.routes.len();
        prop_assert_eq!(again.kept, objects);
        prop_assert_eq!(foreign(&observed, &wanted), before);
    }

    #[test]
    fn the_kernel_follows_our_route_unless_a_foreign_one_was_put_in_front_later(
        wanted in arbitrary_wanted(),
        mut observed in arbitrary_observed(),
    ) {
        observed.routes.retain(|r| r.protocol != ROUTE_PROTOCOL);
        let plan = diff(&wanted, &observed);
        apply(&mut observed, &plan.changes);
        for (destination, route) in &wanted.routes {
            let chosen = observed.routes.iter().find(|r| r.destination == *destination);
            prop_assert_eq!(chosen, Some(route));
        }
    }

    #[test]
    fn from_one_set_of_peers_to_another_nothing_stays_behind(
        before in arbitrary_wanted(),
        after in arbitrary_wanted(),
    ) {
        let mut changed = ObservedObjects::default();
        apply(&mut changed, &diff(&before, &ObservedObjects::default()).changes);
        let plan = diff(&after, &changed);
        apply(&mut changed, &plan.changes);
        let mut fresh = ObservedObjects::default();
        apply(&mut fresh, &diff(&after, &ObservedObjects::default()).changes);
        for observed in [&mut changed, &mut fresh] {
            observed.routes.sort_by_key(|r| r.destination);
            observed.fdb.sort_by_key(|e| e.mac);
            observed.neighbours.sort_by_key(|e| e.address);
        }
        prop_assert_eq!(changed, fresh);
    }
}

#[test]
fn a_path_exists_before_its_predecessor_goes() {
    let tunnel = wanted_with(&[(2, false)].into());
    let direct = wanted_with(&[(2, true)].into());
    let mut observed = ObservedObjects::default();
    apply(
        &mut observed,
        &diff(&tunnel, &ObservedObjects::default()).changes,
    );

    let to_direct: Vec<_> = diff(&direct, &observed).changes;
    assert!(
        matches!(
            to_direct[..],
            [
                ObjectChange::AddRoute(_),
                ObjectChange::DeleteRoute(_),
                ObjectChange::DeleteNeighbour { .. },
                ObjectChange::DeleteFdb { .. }
            ]
        ),
        "{to_direct:#?}"
    );
    apply(&mut observed, &to_direct);
    let to_tunnel: Vec<_> = diff(&tunnel, &observed).changes;
    assert!(
        matches!(
            to_tunnel[..],
            [
                ObjectChange::SetFdb { .. },
                ObjectChange::SetNeighbour { .. },
                ObjectChange::AddRoute(_),
                ObjectChange::DeleteRoute(_)
            ]
        ),
        "{to_tunnel:#?}"
    );
}

#[test]
fn a_gatewayed_route_to_the_own_subnet_goes_unless_it_is_foreign() {
    let wanted = wanted_with(&BTreeSet::new());
    let former_owner = Ipv4Addr::new(192, 0, 2, 9);
    let stale = Route {
        protocol: PROTOCOL_BOOT,
        ..peer_route(subnet(1), former_owner, OTHER, false)
    };
    let connected = Route {
        gateway: None,
        protocol: 2,
        scope: RouteScope::Link,
        ..stale
    };
    let policy = Route {
        protocol: 4,
        ..stale
    };
    let observed = ObservedObjects {
        routes: vec![stale, connected, policy],
        ..ObservedObjects::default()
    };
    let changes = diff(&wanted, &observed).changes;
    assert!(
        changes.contains(&ObjectChange::DeleteRoute(stale)),
        "{changes:#?}"
    );
    assert!(
        !changes.contains(&ObjectChange::DeleteRoute(connected)),
        "{changes:#?}"
    );
    assert!(
        !changes.contains(&ObjectChange::DeleteRoute(policy)),
        "{changes:#?}"
    );
}

#[test]
fn a_leftover_device_goes_last() {
    let wanted = wanted_with(&[(2, false)].into());
    let leftover = Leftover {
        ifindex: 99,
        name: "flannel.4".to_owned(),
    };
    let observed = ObservedObjects {
        leftovers: vec![leftover.clone()],
        ..ObservedObjects::default()
    };
    let changes = diff(&wanted, &observed).changes;
    assert_eq!(changes.last(), Some(&ObjectChange::DeleteVtep(leftover)));
}

#[test]
fn addresses_are_added_before_others_go() {
    // The last address of an interface takes all its routes along.
    let wanted = wanted_with(&BTreeSet::new());
    let old = Address {
        ifindex: VTEP,
        local: "10.5.9.0/32".parse().expect("an address"),
        remote: Ipv4Addr::new(10, 5, 9, 0),
    };
    let observed = ObservedObjects {
        addresses: vec![old],
        ..ObservedObjects::default()
    };
    let plan = diff(&wanted, &observed);
    assert!(
        matches!(
            plan.changes[..],
            [
                ObjectChange::AddAddress { .. },
                ObjectChange::DeleteAddress(_)
            ]
        ),
        "{:#?}",
        plan.changes
    );
}
