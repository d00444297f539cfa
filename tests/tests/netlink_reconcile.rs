//! The kernel tier against a real kernel: device, peers, foreign objects, direct routing.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    process::Command,
    time::{Duration, Instant},
};

use ipnetwork::Ipv4Network;
use overlay_agent::{
    model::{Backend, Desired, LocalNode, Peer, Underlay, VxlanBackend},
    netlink::{Netlink, NetlinkError, Owned, PeerPath, RefusalReason, Summary, Vtep, VtepSpec},
};
use overlay_common::addr::MacAddr;
use overlay_tests::private_netns::{in_private_netns, run};

const MAC: MacAddr = MacAddr::new([0x02, 0, 0, 0, 0, 0x01]);

/// One node: an underlay with an address and a default route, and the desired state.
struct Node {
    netlink: Netlink,
    desired: Desired,
}

impl Node {
    fn new(backend: Backend) -> Self {
        run("ip link add eth0 type veth peer name wire0");
        run("ip addr add 192.168.0.1/24 dev eth0");
        run("ip link set wire0 up");
        run("ip link set eth0 up");
        run("ip route add default via 192.168.0.254");
        let local = LocalNode {
            network: net("10.5.0.0/16"),
            subnet: net("10.5.1.0/24"),
            underlay: underlay(),
            backend,
            vtep_mac: MAC,
        };
        let netlink = Netlink::connect().expect("netlink");
        Self {
            netlink,
            desired: Desired {
                local,
                peers: BTreeMap::new(),
            },
        }
    }

    fn vxlan() -> Self {
        Self::new(Backend::Vxlan(vxlan_backend()))
    }

    fn spec(&self) -> VtepSpec {
        match &self.desired.local.backend {
            Backend::Vxlan(backend) => VtepSpec::new(backend, &self.desired.local.underlay),
            _ => panic!("no vxlan backend"),
        }
    }

    async fn ensure(&self) -> Vtep {
        self.netlink
            .ensure_vtep(&self.spec(), Some(MAC))
            .await
            .expect("device")
    }

    async fn reconcile(&self, vtep: &Vtep) -> Summary {
        let summary = self
            .netlink
            .reconcile(&self.desired, Some(vtep))
            .await
            .expect("reconcile");
        assert!(summary.failed.is_empty(), "{:#?}", summary.failed);
        summary
    }

    /// Adds peer `10.5.<n>.0/24` at an address.
    fn add_peer(&mut self, n: u8, public_ip: &str) {
        let subnet = Ipv4Network::new(Ipv4Addr::new(10, 5, n, 0), 24).expect("subnet");
        self.desired.peers.insert(
            subnet,
            Peer {
                subnet,
                public_ip: public_ip.parse().expect("address"),
                vtep_mac: MacAddr::new([0x02, 0, 0, 0, 1, n]),
            },
        );
    }
}

fn net(text: &str) -> Ipv4Network {
    text.parse().expect("network")
}

fn underlay() -> Underlay {
    Underlay {
        ifindex: index_of("eth0"),
        name: "eth0".to_owned(),
        mtu: 1500,
        address: Ipv4Addr::new(192, 168, 0, 1),
        public_ip: Ipv4Addr::new(192, 168, 0, 1),
    }
}

/// Index of a link.
fn index_of(name: &str) -> u32 {
    let text = run(&format!("ip -o link show {name}"));
    text.split(':')
        .next()
        .and_then(|index| index.trim().parse().ok())
        .expect("an index")
}

fn vxlan_backend() -> VxlanBackend {
    VxlanBackend {
        vni: 1,
        port: None,
        mtu: None,
        gbp: false,
        learning: false,
        direct_routing: false,
    }
}

fn lines_with(text: &str, needle: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.contains(needle))
        .map(|line| line.trim().to_owned())
        .collect()
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort_unstable();
    lines
}

/// `ip -d link` without the index, which differs between devices.
fn described(name: &str) -> String {
    let text = run(&format!("ip -d link show {name}"));
    text.split_once(':')
        .map(|(_, rest)| rest.to_owned())
        .expect("a description")
}

#[test]
fn the_device_is_described_exactly_as_flannels() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run(&format!(
            "ip link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 dev eth0 \
             local 192.168.0.1 dstport 0 nolearning"
        ));
        run("ip link set flannel.1 up");
        let flannels = described("flannel.1");
        run("ip link delete flannel.1");

        let vtep = node.ensure().await;
        assert_eq!(described("flannel.1"), flannels);
        assert!(
            flannels.contains(
                "vxlan id 1 local 192.168.0.1 dev eth0 srcport 0 0 dstport 8472 nolearning \
                 ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx"
            ),
            "{flannels}"
        );
        assert_eq!((vtep.mac, vtep.mtu, vtep.port), (MAC, 1450, 8472));
        let accept_ra = run("sysctl -n net.ipv6.conf.flannel/1.accept_ra");
        assert_eq!(accept_ra.trim(), "0");
    });
}

#[test]
fn a_device_flannel_made_is_adopted_with_its_mac() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run(
            "ip link add flannel.1 address 02:aa:aa:aa:aa:aa mtu 1450 type vxlan id 1 dev eth0 \
             local 192.168.0.1 dstport 0 nolearning",
        );
        let index = index_of("flannel.1");
        let vtep = node.ensure().await;
        assert_eq!(vtep.ifindex, index);
        assert_eq!(vtep.mac.to_string(), "02:aa:aa:aa:aa:aa");
        assert!(
            run("ip link show flannel.1").contains(",UP"),
            "the device is up"
        );
    });
}

#[test]
fn what_a_live_device_can_change_is_corrected_without_a_new_device() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run(
            "ip link add flannel.1 address 02:aa:aa:aa:aa:aa mtu 1400 type vxlan id 1 dev wire0 \
             local 192.168.0.77 dstport 0 ttl 9",
        );
        let index = index_of("flannel.1");
        let vtep = node
            .netlink
            .restore_vtep(&node.spec(), MAC)
            .await
            .expect("device");
        assert_eq!(vtep.ifindex, index, "the same device");
        assert_eq!((vtep.mac, vtep.mtu), (MAC, 1450));
        let text = described("flannel.1");
        assert!(text.contains("id 1 local 192.168.0.1 dev eth0"), "{text}");
        assert!(
            text.contains("nolearning") && text.contains("ttl auto"),
            "{text}"
        );
        assert!(text.contains(",UP"), "{text}");
    });
}

#[test]
fn an_incompatible_device_is_replaced_and_keeps_its_mac() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        for other in [
            "vxlan id 1 dev eth0 local 192.168.0.1 dstport 4789",
            "vxlan id 2 dev eth0 local 192.168.0.1 dstport 8472",
            "vxlan id 1 dev eth0 local 192.168.0.1 dstport 8472 gbp",
            "vxlan id 1 dev eth0 group 239.1.1.1 dstport 8472",
            "vxlan external dstport 8472",
        ] {
            run(&format!(
                "ip link add flannel.1 address 02:aa:aa:aa:aa:aa type {other}"
            ));
            let vtep = node
                .netlink
                .ensure_vtep(&node.spec(), None)
                .await
                .expect("device");
            assert_eq!(vtep.mac.to_string(), "02:aa:aa:aa:aa:aa", "{other}");
            let text = described("flannel.1");
            assert!(
                text.contains("id 1 local 192.168.0.1 dev eth0"),
                "{other}: {text}"
            );
            assert!(
                text.contains("dstport 8472") && !text.contains("gbp"),
                "{other}: {text}"
            );
            run("ip link delete flannel.1");
        }
    });
}

#[test]
fn a_device_with_port_and_gbp_has_them() {
    in_private_netns(|| async {
        let backend = VxlanBackend {
            port: Some(4789),
            gbp: true,
            learning: true,
            ..vxlan_backend()
        };
        let node = Node::new(Backend::Vxlan(backend));
        let vtep = node.ensure().await;
        assert_eq!(vtep.port, 4789);
        let text = described("flannel.1");
        assert!(
            text.contains("dstport 4789") && text.contains("gbp"),
            "{text}"
        );
        assert!(!text.contains("nolearning"), "{text}");
        assert_eq!(node.ensure().await, vtep);
    });
}

#[test]
fn the_mtu_follows_the_underlay() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        let narrow = node.ensure().await;
        run("ip link set eth0 mtu 9000");
        node.desired.local.underlay.mtu = 9000;
        let wide = node.ensure().await;
        assert_eq!((narrow.mtu, wide.mtu), (1450, 8950));
        assert_eq!(narrow.ifindex, wide.ifindex);
        // More than the underlay carries is not possible, whatever the configuration says.
        run("ip link set eth0 mtu 1400");
        assert_eq!(node.ensure().await.mtu, 1350);
    });
}

#[test]
fn a_renamed_device_gets_its_name_back_and_keeps_its_peers() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        run("ip link set flannel.1 name stolen");
        let error = node
            .netlink
            .reconcile(&node.desired, Some(&vtep))
            .await
            .expect_err("renamed");
        assert!(matches!(error, NetlinkError::VtepGone { .. }), "{error}");
        let again = node
            .netlink
            .restore_vtep(&node.spec(), vtep.mac)
            .await
            .expect("device");
        assert_eq!(again, vtep);
        assert!(node.reconcile(&again).await.is_unchanged());
    });
}

#[test]
fn a_foreign_device_with_our_vni_is_named_and_left_alone() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run("ip link add other type vxlan id 1 dev eth0 local 192.168.0.1 dstport 8472");
        let error = node
            .netlink
            .ensure_vtep(&node.spec(), None)
            .await
            .expect_err("taken");
        assert!(matches!(&error, NetlinkError::VniTaken { other, .. } if other == "other"));
        run("ip link show other");
    });
}

#[test]
fn a_device_name_the_kernel_cannot_hold_is_refused() {
    in_private_netns(|| async {
        let backend = VxlanBackend {
            vni: 10_000_000,
            ..vxlan_backend()
        };
        let node = Node::new(Backend::Vxlan(backend));
        let error = node
            .netlink
            .ensure_vtep(&node.spec(), None)
            .await
            .expect_err("too long");
        assert!(matches!(error, NetlinkError::BadName { .. }), "{error}");
    });
}

#[test]
fn an_absent_underlay_is_reported_as_such() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.desired.local.underlay.ifindex = 9999;
        let error = node
            .netlink
            .ensure_vtep(&node.spec(), None)
            .await
            .expect_err("absent");
        assert!(
            matches!(error, NetlinkError::UnderlayGone { ifindex: 9999 }),
            "{error}"
        );
    });
}

#[test]
fn a_peer_is_programmed_as_flannel_does_and_only_once() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        let vtep = node.ensure().await;
        let first = node.reconcile(&vtep).await;
        assert_eq!(
            (first.added, first.removed),
            (4, 0),
            "address, FDB, neighbour, route"
        );

        assert_eq!(
            run("ip route show dev flannel.1").trim(),
            "10.5.2.0/24 via 10.5.2.0 proto 241 onlink"
        );
        assert_eq!(
            run("ip neigh show dev flannel.1").trim(),
            "10.5.2.0 lladdr 02:00:00:00:01:02 PERMANENT"
        );
        assert_eq!(
            run("bridge fdb show dev flannel.1").trim(),
            "02:00:00:00:01:02 dst 203.0.113.2 self permanent"
        );
        let address = run("ip -4 -o addr show dev flannel.1");
        assert!(
            address.contains("inet 10.5.1.0/32 scope global flannel.1"),
            "{address}"
        );

        let second = node.reconcile(&vtep).await;
        assert!(second.is_unchanged(), "{second:?}");
        assert_eq!(second.kept, 4);
    });
}

#[test]
fn what_flannel_left_is_adopted_and_vanished_peers_are_swept() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        let vtep = node.ensure().await;
        // flannel: peer 2 is alive, peer 3 vanished while no daemon ran; an old address remains.
        for n in [2, 3] {
            run(&format!(
                "ip neigh replace 10.5.{n}.0 dev flannel.1 lladdr 02:00:00:00:01:0{n} \
                 nud permanent"
            ));
            run(&format!(
                "bridge fdb replace 02:00:00:00:01:0{n} dev flannel.1 self dst 203.0.113.{n} \
                 permanent"
            ));
            run(&format!(
                "ip route replace 10.5.{n}.0/24 via 10.5.{n}.0 dev flannel.1 onlink"
            ));
        }
        run("ip addr add 10.5.77.0/32 dev flannel.1");
        run("ip addr add 172.31.0.1/32 dev flannel.1");
        run("ip route add 10.5.4.0/24 via 192.168.0.4");

        node.add_peer(2, "203.0.113.2");
        node.add_peer(4, "203.0.113.4");
        node.reconcile(&vtep).await;

        let routes = run("ip route show");
        assert_eq!(lines_with(&routes, "10.5.2.0/24").len(), 1, "{routes}");
        assert_eq!(lines_with(&routes, "10.5.4.0/24").len(), 1, "{routes}");
        assert!(!routes.contains("10.5.3.0"), "{routes}");
        assert!(!run("ip neigh show dev flannel.1").contains("10.5.3.0"));
        let fdb = run("bridge fdb show dev flannel.1");
        assert!(!fdb.contains("203.0.113.3"), "{fdb}");
        let addresses = run("ip -4 addr show dev flannel.1");
        assert!(!addresses.contains("10.5.77.0"), "{addresses}");
        assert!(
            addresses.contains("172.31.0.1"),
            "outside the network: {addresses}"
        );
        assert!(node.reconcile(&vtep).await.is_unchanged());

        // And back: flannel's `route replace` takes the route over without a duplicate.
        run("ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink");
        let routes = run("ip route show");
        assert_eq!(
            lines_with(&routes, "10.5.2.0/24"),
            ["10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink"]
        );
    });
}

#[test]
fn foreign_devices_and_routes_survive() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        run("ip link add flannel.9 type vxlan id 9 dev eth0 local 192.168.0.1 dstport 8472");
        run("ip link set flannel.9 up");
        run("ip neigh add 10.9.2.0 dev flannel.9 lladdr 02:00:00:00:09:02 nud permanent");
        run("bridge fdb add 02:00:00:00:09:02 dev flannel.9 self dst 203.0.113.9 permanent");
        run("ip route add 10.9.2.0/24 via 10.9.2.0 dev flannel.9 onlink");
        run("ip link add cni0 type bridge");
        run("ip addr add 10.5.1.1/24 dev cni0");
        run("ip link set cni0 up");
        run("ip route add 10.77.0.0/16 via 192.168.0.254 proto static");
        run("ip route add 10.5.2.0/24 via 192.168.0.254 proto bird");
        let vtep = node.ensure().await;
        run("ip route add 10.88.0.0/16 dev flannel.1 proto static");
        let before = run("ip route show");

        node.add_peer(2, "203.0.113.2");
        let summary = node.reconcile(&vtep).await;
        assert_eq!(summary.shadowed.len(), 1, "{summary:?}");
        let chosen = run("ip route get 10.5.2.9");
        assert!(chosen.contains("dev flannel.1"), "ours wins: {chosen}");

        node.desired.peers.clear();
        node.reconcile(&vtep).await;
        assert_eq!(run("ip route show"), before);
        assert!(run("ip neigh show dev flannel.9").contains("02:00:00:00:09:02"));
        assert!(run("bridge fdb show dev flannel.9").contains("203.0.113.9"));

        let listed = node
            .netlink
            .remove_everything(&[1], true)
            .await
            .expect("dry run");
        assert!(listed.contains(&Owned::Vtep {
            ifindex: vtep.ifindex,
            name: vtep.name.clone()
        }));
        run("ip link show flannel.1");
        node.netlink
            .remove_everything(&[1], false)
            .await
            .expect("cleanup");
        assert!(
            node.netlink
                .link_named("flannel.1")
                .await
                .expect("look")
                .is_none()
        );
        for survivor in ["flannel.9", "cni0", "eth0"] {
            run(&format!("ip link show {survivor}"));
        }
        assert!(node.netlink.owned(&[1]).await.expect("look").is_empty());
    });
}

#[test]
fn a_moved_or_rekeyed_peer_leaves_nothing_behind() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;

        for peer in node.desired.peers.values_mut() {
            peer.public_ip = Ipv4Addr::new(203, 0, 113, 20);
        }
        node.reconcile(&vtep).await;
        assert_eq!(
            run("bridge fdb show dev flannel.1").trim(),
            "02:00:00:00:01:02 dst 203.0.113.20 self permanent"
        );

        for peer in node.desired.peers.values_mut() {
            peer.vtep_mac = MacAddr::new([0x02, 0, 0, 0, 2, 2]);
        }
        node.reconcile(&vtep).await;
        assert_eq!(
            run("bridge fdb show dev flannel.1").trim(),
            "02:00:00:00:02:02 dst 203.0.113.20 self permanent"
        );
        assert_eq!(
            run("ip neigh show dev flannel.1").trim(),
            "10.5.2.0 lladdr 02:00:00:00:02:02 PERMANENT"
        );
    });
}

#[test]
fn whatever_is_deleted_by_hand_comes_back() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        node.add_peer(3, "203.0.113.3");
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        let neighbours = || sorted(&run("ip neigh show dev flannel.1"));
        let (routes_before, neighbours_before) = (run("ip route show"), neighbours());

        for damage in [
            "ip route del 10.5.2.0/24",
            "ip neigh del 10.5.3.0 dev flannel.1",
            "bridge fdb del 02:00:00:00:01:02 dev flannel.1 self dst 203.0.113.2",
            "ip addr flush dev flannel.1",
            "ip link set flannel.1 down",
            "ip link set flannel.1 address 02:de:ad:de:ad:01",
            "ip link set flannel.1 mtu 1300",
            "ip link delete flannel.1",
        ] {
            run(damage);
            let vtep = node
                .netlink
                .restore_vtep(&node.spec(), MAC)
                .await
                .expect("device");
            node.reconcile(&vtep).await;
            assert_eq!(run("ip route show"), routes_before, "after {damage}");
            assert_eq!(neighbours(), neighbours_before, "after {damage}");
            assert_eq!((vtep.mac, vtep.mtu), (MAC, 1450), "after {damage}");
            assert!(node.reconcile(&vtep).await.is_unchanged(), "after {damage}");
        }
    });
}

#[test]
fn events_tell_when_to_repair_and_repairs_come_to_rest() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        let mut watch = Netlink::watch().expect("watch");
        let mut vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        let healthy = || {
            (
                run("ip route show"),
                run("ip neigh show"),
                run("bridge fdb show"),
            )
        };
        let before = healthy();

        let mut delays = Vec::new();
        for damage in [
            "ip link delete flannel.1",
            "ip link set flannel.1 down",
            "ip link set flannel.1 address 02:de:ad:de:ad:01",
            "ip link set flannel.1 mtu 1300",
            "ip link set flannel.1 name stolen",
            "ip route del 10.5.2.0/24",
            "ip neigh del 10.5.2.0 dev flannel.1",
            "bridge fdb del 02:00:00:00:01:02 dev flannel.1 self dst 203.0.113.2",
            "ip addr del 10.5.1.0/32 dev flannel.1",
            "ip route flush dev flannel.1",
        ] {
            run(damage);
            let start = Instant::now();
            // Every event that matters causes a repair, until all is as it was.
            while healthy() != before {
                let event = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
                let event = event.unwrap_or_else(|_| panic!("no event tells of `{damage}`"));
                if event
                    .expect("the watch")
                    .concerns(underlay().ifindex, Some(&vtep))
                {
                    let restored = node.netlink.restore_vtep(&node.spec(), MAC).await;
                    vtep = restored.expect("device");
                    node.reconcile(&vtep).await;
                }
            }
            delays.push(start.elapsed());
            // The echo of the repair dies out instead of causing repairs for ever.
            let quiet = Duration::from_millis(100);
            while let Ok(event) = tokio::time::timeout(quiet, watch.next()).await {
                if event
                    .expect("the watch")
                    .concerns(underlay().ifindex, Some(&vtep))
                {
                    let again = node.netlink.restore_vtep(&node.spec(), MAC).await;
                    assert_eq!(again.expect("device"), vtep, "after {damage}");
                    assert!(node.reconcile(&vtep).await.is_unchanged(), "after {damage}");
                }
            }
        }
        delays.sort();
        assert!(
            delays[delays.len() / 2] < Duration::from_secs(1),
            "{delays:?}"
        );
    });
}

#[test]
fn direct_and_gatewayed_peers_follow_the_kernels_routes() {
    in_private_netns(|| async {
        let backend = VxlanBackend {
            direct_routing: true,
            ..vxlan_backend()
        };
        let mut node = Node::new(Backend::Vxlan(backend));
        node.add_peer(2, "192.168.0.2");
        node.add_peer(3, "203.0.113.3");
        let vtep = node.ensure().await;
        let summary = node.reconcile(&vtep).await;
        let eth0 = index_of("eth0");
        assert_eq!(
            summary.paths[&net("10.5.2.0/24")],
            PeerPath::Direct { ifindex: eth0 }
        );
        assert_eq!(summary.paths[&net("10.5.3.0/24")], PeerPath::Tunnel);
        let routes = run("ip route show");
        assert!(
            routes.contains("10.5.2.0/24 via 192.168.0.2 dev eth0 proto 241"),
            "{routes}"
        );
        assert!(
            routes.contains("10.5.3.0/24 via 10.5.3.0 dev flannel.1"),
            "{routes}"
        );
        assert!(!run("ip neigh show dev flannel.1").contains("10.5.2.0"));

        // The peer moves behind the router, and back.
        run("ip route add 192.168.0.2/32 via 192.168.0.254");
        node.reconcile(&vtep).await;
        let routes = run("ip route show");
        assert_eq!(
            lines_with(&routes, "10.5.2.0/24"),
            ["10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 241 onlink"]
        );
        run("ip route del 192.168.0.2/32 via 192.168.0.254");
        node.reconcile(&vtep).await;
        let routes = run("ip route show");
        assert_eq!(
            lines_with(&routes, "10.5.2.0/24"),
            ["10.5.2.0/24 via 192.168.0.2 dev eth0 proto 241"]
        );
        assert!(!run("bridge fdb show dev flannel.1").contains("192.168.0.2"));
    });
}

#[test]
fn host_gw_and_vxlan_replace_each_others_routes() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "192.168.0.2");
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;

        node.desired.local.backend = Backend::HostGw;
        node.netlink
            .reconcile(&node.desired, None)
            .await
            .expect("host-gw");
        let routes = run("ip route show");
        assert_eq!(
            lines_with(&routes, "10.5.2.0/24"),
            ["10.5.2.0/24 via 192.168.0.2 dev eth0 proto 241"]
        );

        node.desired.local.backend = Backend::Vxlan(vxlan_backend());
        node.reconcile(&vtep).await;
        let routes = run("ip route show");
        assert_eq!(
            lines_with(&routes, "10.5.2.0/24"),
            ["10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 241 onlink"]
        );
    });
}

#[test]
fn a_host_gw_peer_behind_a_router_is_reported_and_the_others_work() {
    in_private_netns(|| async {
        let mut node = Node::new(Backend::HostGw);
        node.add_peer(2, "192.168.0.2");
        node.add_peer(3, "203.0.113.3");
        let summary = node
            .netlink
            .reconcile(&node.desired, None)
            .await
            .expect("reconcile");
        assert_eq!(summary.failed.len(), 1, "{summary:?}");
        let text = summary.failed[0].to_string();
        assert!(text.contains("10.5.3.0/24 via 203.0.113.3"), "{text}");
        assert!(run("ip route show").contains("10.5.2.0/24 via 192.168.0.2"));
    });
}

#[test]
fn peers_that_would_steal_traffic_are_refused_by_name() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        for (subnet, public_ip) in [
            ("10.5.1.0/24", "203.0.113.10"),
            ("10.5.1.128/25", "203.0.113.11"),
            ("10.5.9.0/24", "192.168.0.1"),
            ("192.168.0.0/24", "203.0.113.12"),
        ] {
            let (subnet, public_ip) = (net(subnet), public_ip.parse().expect("address"));
            let vtep_mac = MacAddr::new([0x02, 0, 0, 0, 9, 9]);
            node.desired.peers.insert(
                subnet,
                Peer {
                    subnet,
                    public_ip,
                    vtep_mac,
                },
            );
        }
        let vtep = node.ensure().await;
        let summary = node.reconcile(&vtep).await;
        let reasons: Vec<_> = summary
            .refused
            .iter()
            .map(|refusal| refusal.reason)
            .collect();
        assert_eq!(
            reasons,
            [
                RefusalReason::OwnSubnet,
                RefusalReason::OverlapsOwnSubnet,
                RefusalReason::OwnPublicIp,
                RefusalReason::CoversUnderlay,
            ]
        );
        assert_eq!(run("ip route show dev flannel.1").lines().count(), 1);
    });
}

#[test]
fn the_blackhole_route_follows_the_subnet_and_loses_to_the_bridge() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        node.netlink
            .set_blackhole(Some(net("10.5.1.0/24")))
            .await
            .expect("blackhole");
        run("ip link add cni0 type bridge");
        run("ip addr add 10.5.1.1/24 dev cni0");
        run("ip link set cni0 up");
        assert!(run("ip route get 10.5.1.9").contains("dev cni0"));

        node.netlink
            .set_blackhole(Some(net("10.5.6.0/24")))
            .await
            .expect("blackhole");
        let routes = run("ip route show type blackhole");
        assert_eq!(
            routes.trim(),
            "blackhole 10.5.6.0/24 proto 241 metric 4294967294"
        );
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        assert_eq!(
            run("ip route show type blackhole"),
            routes,
            "peers' routes leave it alone"
        );

        node.netlink.set_blackhole(None).await.expect("blackhole");
        assert_eq!(run("ip route show type blackhole"), "");
    });
}

#[test]
fn a_thousand_peers_are_programmed_and_swept() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.desired.local.network = net("10.0.0.0/8");
        for n in 0..1000_u32 {
            let [_, _, high, low] = n.to_be_bytes();
            let subnet = Ipv4Network::new(Ipv4Addr::new(10, 64 + high, low, 0), 24).expect("net");
            let public_ip = Ipv4Addr::new(203, 0, high, low);
            let vtep_mac = MacAddr::new([0x02, 0, 0, 1, high, low]);
            node.desired.peers.insert(
                subnet,
                Peer {
                    subnet,
                    public_ip,
                    vtep_mac,
                },
            );
        }
        let vtep = node.ensure().await;
        let timed = |what: &'static str, start: Instant| {
            let spent: Duration = start.elapsed();
            println!("1000 peers: {what} in {spent:?}");
        };
        let start = Instant::now();
        let summary = node.reconcile(&vtep).await;
        timed("programmed", start);
        assert_eq!(summary.added, 3001);
        let start = Instant::now();
        assert!(node.reconcile(&vtep).await.is_unchanged());
        timed("found unchanged", start);
        node.desired.peers.clear();
        let start = Instant::now();
        assert_eq!(node.reconcile(&vtep).await.removed, 3000);
        timed("removed", start);
        assert_eq!(run("ip route show dev flannel.1"), "");
    });
}
