use std::net::Ipv4Addr;

use overlay_common::addr::MacAddr;
use proptest::prelude::*;

use super::*;
use crate::{
    backend::{self, Kind as _, Vxlan},
    model::{Underlay, VxlanEnd},
};

const DEVICE: u32 = 7;
const UNDERLAY: u32 = 2;

fn node(direct_routing: bool) -> Desired {
    let vxlan = Vxlan {
        direct_routing,
        ..Vxlan::DEFAULT
    };
    let network = "10.5.0.0/16".parse().unwrap();
    let subnet = "10.5.1.0/24".parse().unwrap();
    Desired {
        local: LocalNode {
            network,
            subnet,
            underlay: Underlay {
                ifindex: UNDERLAY,
                name: "eth0".to_owned(),
                mtu: 1500,
                hardware: false,
                ethernet: true,
                address: Ipv4Addr::new(192, 0, 2, 1),
                public_ip: Ipv4Addr::new(192, 0, 2, 1),
            },
            forwarding: vxlan.forwarding::<V4>(),
            device: vxlan.own_device(network, subnet),
            vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            lease_data: None,
        },
        peers: BTreeMap::new(),
    }
}

/// Several lengths, so that subnets start at one address, cover each other and this node's own.
fn peer(number: u8, address: u8, mac: u8) -> Peer {
    let prefix = if number.is_multiple_of(3) { 23 } else { 24 };
    let third = number & if prefix == 23 { !1 } else { !0 };
    let subnet = format!("10.5.{third}.0/{prefix}").parse().unwrap();
    let mac = VxlanEnd::new(MacAddr::new([2, 0, 0, 0, 0, mac]));
    Vxlan::peer_at::<V4>(subnet, Ipv4Addr::new(192, 0, 2, address), mac)
}

/// Addresses up to 5 are on-link.
fn on_link(desired: &Desired) -> OnLink<V4> {
    let addresses = desired.peers.values().map(|peer| peer.public_ip);
    let here = |address: &Ipv4Addr| (address.octets()[3] <= 5).then_some(UNDERLAY);
    addresses.map(|address| (address, here(&address))).collect()
}

fn standing(desired: &Desired) -> Standing {
    let on_link = if desired.local.forwarding.direct == crate::model::Direct::OnLink {
        on_link(desired)
    } else {
        OnLink::<V4>::new()
    };
    Standing::of(
        desired,
        on_link,
        Vec::new(),
        Some(DEVICE),
        backend::marks(&Vxlan::DEFAULT.into()),
    )
}

/// Makes the changes of peers in `desired`. Returns what was there before.
fn change(desired: &mut Desired, peers: impl IntoIterator<Item = (Peer, bool)>) -> Before<V4> {
    let mut before = Before::<V4>::new();
    for (peer, stays) in peers {
        let subnet = peer.subnet;
        let was = if stays {
            desired.peers.insert(subnet, peer)
        } else {
            desired.peers.remove(&subnet)
        };
        before.entry(subnet).or_insert(was);
    }
    before
}

/// As [`super::super::Netlink::follow`] does.
fn look_up(standing: &mut Standing, desired: &Desired, before: &Before<V4>) {
    if desired.local.forwarding.direct == crate::model::Direct::OnLink {
        let unknown = standing.unknown(desired, before);
        let mut found = on_link(desired);
        found.retain(|address, _| unknown.contains(address));
        standing.on_link.extend(found);
    }
}

#[test]
fn peers_that_have_nothing_to_do_with_each_other_are_changed_by_themselves() {
    let mut desired = node(false);
    change(&mut desired, [2, 4, 5, 7, 8].map(|n| (peer(n, n, n), true)));
    let mut standing = standing(&desired);
    let changes = [
        (peer(4, 4, 40), true),
        (peer(5, 5, 5), false),
        (peer(20, 20, 20), true),
    ];
    let before = change(&mut desired, changes);
    let plan = standing.change(&desired, &before, Some(DEVICE)).unwrap();
    // Another MAC address takes away one entry and sets two, a peer has three objects.
    assert_eq!(plan.changes.len(), 3 + 3 + 3);
    assert!(standing.path("10.5.5.0/24".parse().unwrap()).is_none());
    assert_eq!(standing.peers(), desired.peers.len());
}

#[test]
fn routes_of_a_network_of_many_subnets_are_spread_over_protocols() {
    let protocols = |network: &str| {
        let mut desired = node(false);
        desired.local.network = network.parse().unwrap();
        let peers = |stay| [4, 5, 7, 8].map(|n| (peer(n, n, n), stay));
        change(&mut desired, peers(true));
        let mut standing = standing(&desired);
        // Alone, a peer has the route that it has among all.
        let gone = change(&mut desired, peers(false));
        let before = standing.wanted.clone();
        standing.change(&desired, &gone, Some(DEVICE)).unwrap();
        assert!(standing.wanted.routes.is_empty());
        let back = change(&mut desired, peers(true));
        standing.change(&desired, &back, Some(DEVICE)).unwrap();
        assert_eq!(standing.wanted.routes, before.routes);
        let routes = before.routes.values();
        routes.map(|route| route.protocol).collect::<Vec<_>>()
    };
    // Of 256 subnets, and of 65 536.
    assert_eq!(protocols("10.5.0.0/16"), [241; 4]);
    assert_eq!(protocols("10.0.0.0/8"), [243, 244, 246, 247]);
}

#[test]
fn peers_that_share_a_mac_address_are_looked_at_together() {
    let mut desired = node(false);
    change(&mut desired, [(peer(4, 4, 4), true), (peer(5, 5, 5), true)]);
    let mut standing = standing(&desired);
    let before = change(&mut desired, [(peer(7, 7, 4), true)]);
    assert!(standing.change(&desired, &before, Some(DEVICE)).is_none());
    standing = self::standing(&desired);
    assert_eq!(standing.refused().count(), 1);
    // The one in the way goes.
    let before = change(&mut desired, [(peer(4, 4, 4), false)]);
    assert!(standing.change(&desired, &before, Some(DEVICE)).is_none());
}

#[test]
fn a_refused_peer_is_looked_at_when_another_claims_what_it_would_have() {
    let mut desired = node(false);
    change(
        &mut desired,
        [(peer(2, 3, 6), true), (peer(20, 2, 6), true)],
    );
    let mut standing = standing(&desired);
    assert_eq!(standing.refused().count(), 1);
    // Its subnet starts where the refused one's does.
    let before = change(&mut desired, [(peer(21, 4, 2), true)]);
    assert!(standing.change(&desired, &before, Some(DEVICE)).is_none());
}

#[test]
fn another_device_or_node_takes_a_look_at_everything() {
    let mut desired = node(false);
    let mut standing = standing(&desired);
    let before = change(&mut desired, [(peer(4, 4, 4), true)]);
    assert!(
        standing
            .change(&desired, &before, Some(DEVICE + 1))
            .is_none()
    );
    let mut moved = desired.clone();
    moved.local.underlay.address = Ipv4Addr::new(192, 0, 2, 77);
    assert!(standing.change(&moved, &before, Some(DEVICE)).is_none());
    assert!(standing.change(&desired, &before, Some(DEVICE)).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn changes_of_some_peers_are_what_a_look_at_all_finds(
        direct_routing: bool,
        // Few addresses and MAC addresses, so that many peers get in each other's way.
        start in prop::collection::vec((0u8..24, 0u8..16, 0u8..24), 0..12),
        steps in prop::collection::vec(
            prop::collection::vec((0u8..24, 0u8..16, 0u8..24, any::<bool>()), 1..4),
            1..10,
        ),
    ) {
        let mut desired = node(direct_routing);
        change(&mut desired, start.into_iter().map(|(n, ip, mac)| (peer(n, ip, mac), true)));
        let mut standing = standing(&desired);
        for step in steps {
            let peers = step.into_iter().map(|(n, ip, mac, stays)| (peer(n, ip, mac), stays));
            let before = change(&mut desired, peers);
            let was = ObservedObjects::just(&standing.wanted);
            look_up(&mut standing, &desired, &before);
            let changed = standing.change(&desired, &before, Some(DEVICE));
            let whole = self::standing(&desired);
            let Some(plan) = changed else {
                standing = whole;
                continue;
            };
            prop_assert_eq!(&plan, &diff(&whole.wanted, &was));
            prop_assert_eq!(&standing.wanted.neighbours, &whole.wanted.neighbours);
            prop_assert_eq!(&standing.wanted.fdb, &whole.wanted.fdb);
            prop_assert_eq!(&standing.wanted.routes, &whole.wanted.routes);
            prop_assert_eq!(&standing.paths, &whole.paths);
            prop_assert_eq!(&standing.refused, &whole.refused);
            prop_assert_eq!(&standing.entangled, &whole.entangled);
        }
    }
}
