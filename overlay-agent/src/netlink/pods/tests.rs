use super::*;
use crate::model::{Backend, Underlay};

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
            address: Ipv4Addr::new(192, 0, 2, 1),
            public_ip: Ipv4Addr::new(192, 0, 2, 1),
        },
        backend: Backend::HostGw,
        vtep_mac: MacAddr::ZERO,
        zero_checksum: false,
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

fn address(ifindex: u32, text: &str) -> Address {
    let local: Ipv4Network = text.parse().expect("an address");
    Address {
        ifindex,
        local,
        remote: local.ip(),
    }
}

fn host_route_to(ifindex: u32, text: &str) -> Route {
    Route {
        destination: text.parse().expect("a destination"),
        gateway: None,
        ifindex: Some(ifindex),
        onlink: false,
        kind: RouteType::Unicast,
        protocol: 3,
        scope: rtnetlink::packet_route::route::RouteScope::Link,
        metric: 0,
        tos: 0,
        table: 254,
    }
}

/// A bridge in the subnet with one veth port.
fn bridged() -> LinkTable {
    let mut table = LinkTable::default();
    table.apply(&KernelEvent::Link(link(BRIDGE, LinkKind::Bridge, None)));
    table.apply(&KernelEvent::Ipv4(IpEvent::Address(address(
        BRIDGE,
        "10.5.1.1/24",
    ))));
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, Some(BRIDGE))));
    table
}

fn found(table: &LinkTable) -> Vec<u32> {
    pod_links(table, &local()).into_keys().collect()
}

#[test]
fn a_veth_port_of_a_bridge_in_the_subnet_is_a_pods() {
    let pods = pod_links(&bridged(), &local());
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
    table.apply(&KernelEvent::Ipv4(IpEvent::Address(address(
        30,
        "10.5.2.1/24",
    ))));
    table.apply(&KernelEvent::Link(link(31, LinkKind::Veth, Some(30))));
    table.apply(&KernelEvent::Link(link(32, LinkKind::Veth, None)));
    assert_eq!(found(&table), [POD]);
}

#[test]
fn the_bridge_may_get_its_address_and_mac_later_and_lose_them() {
    let mut table = bridged();
    assert!(
        table.apply(&KernelEvent::Ipv4(IpEvent::AddressRemoved(address(
            BRIDGE,
            "10.5.1.1/24"
        ))))
    );
    assert_eq!(found(&table), NONE);
    assert!(table.apply(&KernelEvent::Ipv4(IpEvent::Address(address(
        BRIDGE,
        "10.5.1.254/24"
    )))));
    let renumbered = Link {
        mac: Some(mac(99)),
        ..link(BRIDGE, LinkKind::Bridge, None)
    };
    assert!(table.apply(&KernelEvent::Link(renumbered.clone())));
    assert_eq!(pod_links(&table, &local())[&POD].gateway_mac, mac(99));
    assert!(!table.apply(&KernelEvent::Link(renumbered)), "nothing new");
}

#[test]
fn a_released_or_removed_port_is_no_pod() {
    let mut table = bridged();
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, None)));
    assert_eq!(found(&table), NONE);
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, Some(BRIDGE))));
    assert_eq!(found(&table), [POD]);
    let name = "link20".to_owned();
    table.apply(&KernelEvent::LinkRemoved { ifindex: POD, name });
    assert_eq!(found(&table), NONE);
}

#[test]
fn a_point_to_point_veth_is_its_own_gateway() {
    let mut table = LinkTable::default();
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, None)));
    for elsewhere in ["10.5.2.9/32", "10.5.1.0/24"] {
        table.apply(&KernelEvent::Ipv4(IpEvent::Route(host_route_to(
            POD, elsewhere,
        ))));
    }
    assert_eq!(found(&table), NONE, "no host route into the subnet");
    table.apply(&KernelEvent::Ipv4(IpEvent::Route(host_route_to(
        POD,
        "10.5.1.9/32",
    ))));
    let pods = pod_links(&table, &local());
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
    let first = pod_links(&table, &local())[&POD].incarnation;
    let name = "link20".to_owned();
    table.apply(&KernelEvent::LinkRemoved { ifindex: POD, name });
    table.apply(&KernelEvent::Link(link(POD, LinkKind::Veth, Some(BRIDGE))));
    assert_ne!(pod_links(&table, &local())[&POD].incarnation, first);
}

#[test]
fn a_fresh_look_keeps_what_is_still_the_same_device() {
    let mut table = bridged();
    let before = pod_links(&table, &local());
    let bridge = link(BRIDGE, LinkKind::Bridge, None);
    let addresses = [address(BRIDGE, "10.5.1.1/24")];

    let same = link(POD, LinkKind::Veth, Some(BRIDGE));
    table.replace(&[bridge.clone(), same.clone()], &addresses, &[]);
    assert_eq!(pod_links(&table, &local()), before);

    let successor = Link {
        mac: Some(mac(77)),
        ..same
    };
    table.replace(&[bridge, successor], &addresses, &[]);
    assert_ne!(
        pod_links(&table, &local())[&POD].incarnation,
        before[&POD].incarnation
    );
    table.replace(&[], &[], &[]);
    assert_eq!(found(&table), NONE);
}
