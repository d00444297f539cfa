//! That a backend of another shape is a module and a line: [`Onlink`] goes through admission, planning and
//! clean-up by what it says of itself.

mod onlink;

use std::collections::BTreeMap;

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;

use self::onlink::Onlink;
use super::*;
use crate::{
    model::{Desired, LocalNode},
    netlink::{
        LinkKind, ObjectChange, ObjectPlan, ObservedObjects, PeerPath, ROUTE_PROTOCOL, VxlanLink,
        Wanted, admit, diff, want,
    },
};

backends! {
    Vxlan,
    HostGw,
    Alloc,
    Onlink,
}

const DEVICE: u32 = 7;
const UNDERLAY: u32 = 2;

fn underlay() -> Underlay {
    Underlay {
        ifindex: UNDERLAY,
        name: "eth0".to_owned(),
        mtu: 1500,
        hardware: false,
        ethernet: true,
        address: [192, 0, 2, 1].into(),
        public_ip: [192, 0, 2, 1].into(),
    }
}

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

/// Two peers, of which one is on-link.
fn desired() -> Desired {
    let (backend, _) = Backend::of_type("onlink", "{}", false).unwrap().unwrap();
    let (network, subnet) = (net("10.5.0.0/16"), net("10.5.1.0/24"));
    let peer = |subnet, last| backend.peer::<V4>(net(subnet), [192, 0, 2, last].into(), None);
    let peers = [peer("10.5.2.0/24", 2), peer("10.5.3.0/24", 3)];
    let peers = peers.into_iter().flatten();
    Desired {
        local: LocalNode {
            network,
            subnet,
            underlay: underlay(),
            forwarding: backend.forwarding::<V4>(),
            device: backend.own_device(network, subnet),
            vtep_mac: MacAddr::ZERO,
            lease_data: backend.lease_data::<V4>(None),
        },
        peers: peers.map(|peer| (peer.subnet, peer)).collect(),
    }
}

fn wanted() -> Wanted {
    let desired = desired();
    let on_link = BTreeMap::from([([192, 0, 2, 3].into(), Some(UNDERLAY))]);
    let admission = admit(&desired, &on_link);
    let paths: Vec<_> = admission.accepted.values().map(|(_, path)| *path).collect();
    let direct = PeerPath::Direct { ifindex: UNDERLAY };
    assert_eq!(paths, [PeerPath::Tunnel, direct]);
    want(&desired.local, &admission, Some(DEVICE), marks())
}

fn marks() -> Marks<V4> {
    Marks {
        is_device: |link| recognise::<V4>(link).is_some(),
        is_flannels: Backend::Onlink(Onlink).flannels_routes(),
    }
}

fn texts(plan: &ObjectPlan) -> Vec<String> {
    plan.changes.iter().map(ToString::to_string).collect()
}

fn link(name: &str, kind: LinkKind) -> Link {
    Link {
        ifindex: DEVICE,
        name: name.to_owned(),
        kind,
        mac: None,
        mtu: 1480,
        up: true,
        master: None,
    }
}

#[test]
fn what_it_says_is_planned_and_nothing_of_another_shape() {
    let wanted = wanted();
    let plan = diff(&wanted, &ObservedObjects::default());
    assert_eq!(
        texts(&plan),
        [
            "add address 10.5.1.0/16",
            "add route 10.5.0.0/16 on interface 7",
            "add route 10.5.2.0/24 via 192.0.2.2 on interface 7",
            "add route 10.5.3.0/24 via 192.0.2.3 on interface 2",
        ]
    );
    let again = diff(&wanted, &ObservedObjects::just(&wanted));
    assert_eq!((texts(&again), again.kept), (Vec::new(), 4));
}

#[test]
fn what_flannel_left_in_its_shape_is_told_from_what_is_foreign() {
    let wanted = wanted();
    let boot = |destination, onlink| Route {
        destination: net(destination),
        onlink,
        protocol: 3,
        ..wanted.routes[&net("10.5.2.0/24")]
    };
    let (flannels, foreign) = (boot("10.5.9.0/24", true), boot("10.6.0.0/16", false));
    let mut observed = ObservedObjects::just(&wanted);
    observed.routes.extend([flannels, foreign]);
    let plan = diff(&wanted, &observed);
    assert_eq!(plan.changes, [ObjectChange::DeleteRoute(flannels)]);
    assert!(wanted.routes.values().all(|r| r.protocol == ROUTE_PROTOCOL));
}

#[test]
fn its_device_is_known_among_those_of_the_others_and_from_foreign_ones() {
    let own = link("flannel.onlink", LinkKind::Virtual("ipip".to_owned()));
    let vxlan = LinkKind::Vxlan(VxlanLink {
        vni: 4,
        ..VxlanLink::default()
    });
    let kinds = [own.clone(), link("flannel.4", vxlan)].map(|link| {
        assert!((marks().is_device)(&link));
        recognise::<V4>(&link).unwrap().0
    });
    let id = |kind, number| DeviceId { kind, number };
    assert_eq!(kinds, [id("onlink", 0), id("vxlan", 4)]);
    let usual: Vec<_> = usual_devices().collect();
    assert_eq!(usual, [id("vxlan", 1), id("onlink", 0)]);
    let foreign = Link {
        name: "tunl0".to_owned(),
        ..own
    };
    assert!(!(marks().is_device)(&foreign));
}
