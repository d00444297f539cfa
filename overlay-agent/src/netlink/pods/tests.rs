use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::route::{RouteScope, RouteType};

use super::*;
use crate::{
    backend::{HostGw, Kind as _},
    model::{Forwarding, Underlay},
    netlink::{
        object::{Address, Route},
        watch::IpEvent,
    },
};

const UNDERLAY: u32 = 2;
const BRIDGE: u32 = 10;
const POD: u32 = 20;
const NONE: [u32; 0] = [];

fn local() -> LocalNode {
    LocalNode {
        network: "10.5.0.0/16".parse().expect("a network"),
        subnet: "10.5.1.0/24".parse().expect("a subnet"),
        underlay: Underlay {
            ifindex: UNDERLAY,
            name: "eth0".to_owned(),
            mtu: 1500,
            hardware: false,
            ethernet: true,
            address: Ipv4Addr::new(192, 0, 2, 1),
            public_ip: Ipv4Addr::new(192, 0, 2, 1),
        },
        forwarding: HostGw.forwarding::<V4>(),
        device: None,
        vtep_mac: MacAddr::ZERO,
        lease_data: None,
    }
}

fn local6() -> LocalNode<V6> {
    let public_ip: Ipv6Addr = "2001:db8::1".parse().expect("an address");
    LocalNode {
        network: "fd00:5::/48".parse().expect("a network"),
        subnet: "fd00:5:0:1::/64".parse().expect("a subnet"),
        underlay: Underlay {
            ifindex: UNDERLAY,
            name: "eth0".to_owned(),
            mtu: 1500,
            hardware: false,
            ethernet: true,
            address: public_ip,
            public_ip,
        },
        forwarding: HostGw.forwarding::<V6>(),
        device: None,
        vtep_mac: MacAddr::ZERO,
        lease_data: None,
    }
}

fn link(ifindex: u32, kind: LinkKind, master: Option<u32>) -> Link {
    Link {
        ifindex,
        name: format!("link{ifindex}"),
        kind,
        mac: Some(mac(ifindex)),
        mtu: 1500,
        up: true,
        master,
    }
}

fn mac(ifindex: u32) -> MacAddr {
    let [a, b, c, d] = ifindex.to_be_bytes();
    MacAddr::new([2, 0, a, b, c, d])
}

fn address(ifindex: u32, text: &str) -> KernelEvent {
    KernelEvent::Ipv4(IpEvent::Address(address_of(ifindex, text)))
}

fn address6(ifindex: u32, text: &str) -> KernelEvent {
    KernelEvent::Ipv6(IpEvent::Address(address_of(ifindex, text)))
}

fn address_of<F: Family>(ifindex: u32, text: &str) -> Address<F> {
    let network: IpNetwork = text.parse().expect("an address");
    let ip = F::address(network.ip()).expect("of the family");
    Address {
        ifindex,
        local: F::with_prefix(ip, network.prefix()).expect("a prefix of the family"),
        remote: ip,
    }
}

fn route(ifindex: u32, text: &str) -> KernelEvent {
    KernelEvent::Ipv4(IpEvent::Route(route_of(ifindex, text)))
}

fn route6(ifindex: u32, text: &str) -> KernelEvent {
    KernelEvent::Ipv6(IpEvent::Route(route_of(ifindex, text)))
}

fn route_of<F: Family>(ifindex: u32, text: &str) -> Route<F> {
    Route {
        destination: address_of::<F>(ifindex, text).local,
        gateway: None,
        ifindex: Some(ifindex),
        onlink: false,
        kind: RouteType::Unicast,
        protocol: 3,
        scope: RouteScope::Link,
        metric: 0,
        tos: 0,
        table: 254,
    }
}

fn removed(ifindex: u32) -> KernelEvent {
    KernelEvent::LinkRemoved {
        ifindex,
        name: format!("link{ifindex}"),
    }
}

fn table_of(events: &[KernelEvent]) -> LinkTable {
    let mut table = LinkTable::default();
    for event in events {
        table.apply(event);
    }
    table
}

/// A bridge in the subnet with one veth port.
fn bridged() -> LinkTable {
    table_of(&[
        KernelEvent::Link(link(BRIDGE, LinkKind::Bridge, None)),
        address(BRIDGE, "10.5.1.1/24"),
        KernelEvent::Link(link(POD, LinkKind::Veth, Some(BRIDGE))),
    ])
}

fn ipv4_pods(table: &LinkTable) -> BTreeMap<u32, PodLink> {
    pod_links(
        table,
        PerFamily {
            ipv4: Some(&local()),
            ipv6: None,
        },
    )
}

fn found(table: &LinkTable) -> Vec<u32> {
    ipv4_pods(table).into_keys().collect()
}

#[test]
fn a_veth_port_of_a_bridge_in_the_subnet_is_a_pods() {
    let pods = ipv4_pods(&bridged());
    let pod = &pods[&POD];
    assert_eq!(
        (pod.gateway_ifindex, pod.gateway_mac),
        (BRIDGE, mac(BRIDGE))
    );
}

#[test]
fn other_ports_and_other_bridges_are_not_pods() {
    let mut table = bridged();
    let vxlan = LinkKind::Vxlan(crate::netlink::VxlanLink::default());
    table.apply(&KernelEvent::Link(link(21, vxlan, Some(BRIDGE))));
    table.apply(&KernelEvent::Link(link(22, LinkKind::Other, Some(BRIDGE))));
    table.apply(&KernelEvent::Link(link(
        UNDERLAY,
        LinkKind::Veth,
        Some(BRIDGE),
    )));
    table.apply(&KernelEvent::Link(link(30, LinkKind::Bridge, None)));
    table.apply(&address(30, "10.5.2.1/24"));
    table.apply(&KernelEvent::Link(link(31, LinkKind::Veth, Some(30))));
    table.apply(&KernelEvent::Link(link(32, LinkKind::Veth, None)));
    assert_eq!(found(&table), [POD]);
}

#[test]
fn a_netkit_is_a_pods_as_a_veth_is() {
    let mut table = bridged();
    table.apply(&KernelEvent::Link(link(23, LinkKind::Netkit, None)));
    table.apply(&route(23, "10.5.1.7/32"));
    assert_eq!(ipv4_pods(&table)[&23].gateway_ifindex, 23);
}

#[test]
fn pods_on_other_interfaces_than_veths_are_named() {
    let mut table = bridged();
    let kind = |kind: &str| LinkKind::Virtual(kind.to_owned());
    table.apply(&KernelEvent::Link(link(21, kind("tun"), Some(BRIDGE))));
    table.apply(&KernelEvent::Link(link(22, LinkKind::Other, Some(BRIDGE))));
    table.apply(&KernelEvent::Link(link(23, kind("ipvlan"), None)));
    table.apply(&route(23, "10.5.1.7/32"));
    table.apply(&KernelEvent::Link(link(24, kind("dummy"), None)));
    let subnets = Subnets {
        ipv4: Some("10.5.1.0/24".parse().unwrap()),
        ipv6: None,
    };
    let found: Vec<_> = unserved(&table, subnets)
        .into_iter()
        .map(|pod| (pod.ifindex, pod.kind))
        .collect();
    assert_eq!(found, [(21, "tun".to_owned()), (23, "ipvlan".to_owned())]);
    assert_eq!(unserved(&table, Subnets::default()), []);
}

#[test]
fn the_bridge_may_get_its_address_and_mac_later_and_lose_them() {
    let mut table = bridged();
    let gone = IpEvent::AddressRemoved(address_of(BRIDGE, "10.5.1.1/24"));
    assert!(table.apply(&KernelEvent::Ipv4(gone)));
    assert_eq!(found(&table), NONE);
    assert!(table.apply(&address(BRIDGE, "10.5.1.254/24")));
    let renumbered = Link {
        mac: Some(mac(99)),
        ..link(BRIDGE, LinkKind::Bridge, None)
    };
    assert!(table.apply(&KernelEvent::Link(renumbered.clone())));
    assert_eq!(ipv4_pods(&table)[&POD].gateway_mac, mac(99));
    assert!(!table.apply(&KernelEvent::Link(renumbered)), "nothing new");
}

#[test]
fn a_released_or_removed_port_is_no_pod() {
    let mut table = bridged();
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, None)));
    assert_eq!(found(&table), NONE);
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, Some(BRIDGE))));
    assert_eq!(found(&table), [POD]);
    table.apply(&removed(POD));
    assert_eq!(found(&table), NONE);
}

#[test]
fn a_point_to_point_veth_is_its_own_gateway() {
    let mut table = LinkTable::default();
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, None)));
    for elsewhere in ["10.5.2.9/32", "10.5.1.0/24"] {
        table.apply(&route(POD, elsewhere));
    }
    assert_eq!(found(&table), NONE, "no host route into the subnet");
    table.apply(&route(POD, "10.5.1.9/32"));
    let pods = ipv4_pods(&table);
    assert_eq!(
        (pods[&POD].gateway_ifindex, pods[&POD].gateway_mac),
        (POD, mac(POD))
    );

    // The kernel flushes the routes of an interface that goes down without a word.
    let down = Link {
        up: false,
        ..link(POD, LinkKind::Veth, None)
    };
    table.apply(&KernelEvent::Link(down));
    assert_eq!(found(&table), NONE);
}

#[test]
fn a_reused_index_is_another_device() {
    let mut table = bridged();
    let first = ipv4_pods(&table)[&POD].incarnation;
    table.apply(&removed(POD));
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, Some(BRIDGE))));
    assert_ne!(ipv4_pods(&table)[&POD].incarnation, first);
}

#[test]
fn a_fresh_look_keeps_what_is_still_the_same_device() {
    let mut table = bridged();
    let before = ipv4_pods(&table);
    let bridge = link(BRIDGE, LinkKind::Bridge, None);
    let ipv4 = || Addressing::new(&[address_of(BRIDGE, "10.5.1.1/24")], &[]);
    let dump = |links: &[Link], ipv4| LinkDump {
        links: links.to_vec(),
        addressing: PerFamily {
            ipv4,
            ipv6: Addressing::default(),
        },
    };

    let same = link(POD, LinkKind::Veth, Some(BRIDGE));
    table.replace(dump(&[bridge.clone(), same.clone()], ipv4()));
    assert_eq!(ipv4_pods(&table), before);

    let successor = Link {
        mac: Some(mac(77)),
        ..same
    };
    table.replace(dump(&[bridge, successor], ipv4()));
    assert_ne!(
        ipv4_pods(&table)[&POD].incarnation,
        before[&POD].incarnation
    );
    table.replace(dump(&[], Addressing::default()));
    assert_eq!(found(&table), NONE);
}

#[test]
fn either_familys_address_makes_a_bridge_the_pods_and_both_find_a_pod_once() {
    let mut table = table_of(&[
        KernelEvent::Link(link(BRIDGE, LinkKind::Bridge, None)),
        KernelEvent::Link(link(POD, LinkKind::Veth, Some(BRIDGE))),
        address6(BRIDGE, "fd00:5:0:1::1/64"),
    ]);
    let (ipv4, ipv6) = (local(), local6());
    let served = [
        (Some(&ipv4), Some(&ipv6), true),
        (None, Some(&ipv6), true),
        (Some(&ipv4), None, false),
    ];
    for (ipv4, ipv6, expected) in served {
        let pods = pod_links(&table, PerFamily { ipv4, ipv6 });
        assert_eq!(pods.contains_key(&POD), expected, "{ipv4:?} {ipv6:?}");
    }
    table.apply(&address(BRIDGE, "10.5.1.1/24"));
    let pods = pod_links(
        &table,
        PerFamily {
            ipv4: Some(&ipv4),
            ipv6: Some(&ipv6),
        },
    );
    assert_eq!(pods.into_keys().collect::<Vec<_>>(), [POD]);
}

#[test]
fn an_ipv6_host_route_makes_a_veth_a_pods_until_the_interface_goes_down() {
    let veth = link(POD, LinkKind::Veth, None);
    let mut table = table_of(&[KernelEvent::Link(veth.clone())]);
    let ipv6_pods = |table: &LinkTable| {
        pod_links(
            table,
            PerFamily {
                ipv4: Some(&local()),
                ipv6: Some(&local6()),
            },
        )
    };
    for elsewhere in ["fd00:5:0:2::9/128", "fd00:5:0:1::/64", "fe80::9/128"] {
        table.apply(&route6(POD, elsewhere));
    }
    assert!(
        ipv6_pods(&table).is_empty(),
        "no host route into the subnet"
    );
    table.apply(&route6(POD, "fd00:5:0:1::9/128"));
    assert_eq!(ipv6_pods(&table)[&POD].gateway_ifindex, POD);
    table.apply(&KernelEvent::Link(Link { up: false, ..veth }));
    assert!(ipv6_pods(&table).is_empty());
}

#[test]
fn a_route_to_its_own_address_makes_no_veth_a_pods() {
    let mut table = table_of(&[
        KernelEvent::Link(link(POD, LinkKind::Veth, None)),
        address6(POD, "fd00:5:0:1::1/128"),
        route6(POD, "fd00:5:0:1::1/128"),
    ]);
    assert!(
        pod_links(
            &table,
            PerFamily {
                ipv4: None,
                ipv6: Some(&local6())
            }
        )
        .is_empty()
    );
    table.apply(&route6(POD, "fd00:5:0:1::9/128"));
    assert!(
        !pod_links(
            &table,
            PerFamily {
                ipv4: None,
                ipv6: Some(&local6())
            }
        )
        .is_empty()
    );
}

#[test]
fn neither_familys_underlay_is_a_pod() {
    let mut table = bridged();
    let mut ipv6 = local6();
    ipv6.underlay.ifindex = POD;
    table.apply(&address6(BRIDGE, "fd00:5:0:1::1/64"));
    assert!(
        pod_links(
            &table,
            PerFamily {
                ipv4: Some(&local()),
                ipv6: Some(&ipv6)
            }
        )
        .is_empty()
    );
}

#[test]
fn a_family_that_programs_nothing_has_no_pods() {
    let mut table = bridged();
    table.apply(&address6(BRIDGE, "fd00:5:0:1::1/64"));
    let ipv4 = LocalNode {
        forwarding: Forwarding::NONE,
        ..local()
    };
    let ipv6 = LocalNode {
        forwarding: Forwarding::NONE,
        ..local6()
    };
    assert!(
        pod_links(
            &table,
            PerFamily {
                ipv4: Some(&ipv4),
                ipv6: Some(&ipv6)
            }
        )
        .is_empty()
    );
}

#[test]
fn a_link_local_address_changes_nothing() {
    let mut table = bridged();
    assert!(!table.apply(&address6(BRIDGE, "fe80::1/64")));
}
