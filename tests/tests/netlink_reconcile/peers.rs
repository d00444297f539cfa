//! Addresses, neighbours, forwarding entries and routes of peers; and what is left alone.

use std::{net::Ipv4Addr, time::Instant};

use ipnetwork::Ipv4Network;
use overlay_agent::{
    backend::{HostGw, Vxlan, device_id},
    model::V4,
    netlink::{Link, Owned, PeerPath, RefusalReason},
};
use overlay_common::addr::MacAddr;
use overlay_tests::private_netns::{in_private_netns, run};

use crate::node::{Node, index_of, is_unchanged, lines_with, net};

#[test]
fn a_peer_is_programmed_as_flannel_does_and_only_once() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        let vtep = node.ensure().await;
        let first = node.reconcile(&vtep).await;
        assert_eq!(
            (first.changed.added(), first.changed.removed()),
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
        assert!(is_unchanged(&second), "{second:?}");
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
        assert!(is_unchanged(&node.reconcile(&vtep).await));

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
fn in_a_large_network_too_routes_are_taken_from_flannel_and_given_back() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.desired.local.network = net("10.0.0.0/8");
        let vtep = node.ensure().await;
        // Flannel's of a peer that is alive and of one that vanished, and one of ours from before.
        for n in [4, 6] {
            run(&format!(
                "ip route replace 10.5.{n}.0/24 via 10.5.{n}.0 dev flannel.1 onlink"
            ));
        }
        run("ip route add 10.5.5.0/24 via 10.5.5.0 dev flannel.1 proto 241 onlink");
        node.add_peer(4, "203.0.113.4");
        node.add_peer(5, "203.0.113.5");
        node.reconcile(&vtep).await;
        let shown = || {
            let routes = run("ip route show dev flannel.1");
            let lines = routes.lines().map(|line| line.trim().to_owned());
            lines.collect::<Vec<_>>()
        };
        assert_eq!(
            shown(),
            [
                "10.5.4.0/24 via 10.5.4.0 proto 243 onlink",
                "10.5.5.0/24 via 10.5.5.0 proto 244 onlink"
            ]
        );
        assert!(is_unchanged(&node.reconcile(&vtep).await));

        // As flanneld does: it takes over one and lets the other go.
        run("ip route replace 10.5.4.0/24 via 10.5.4.0 dev flannel.1 onlink");
        run("ip route del 10.5.5.0/24 via 10.5.5.0 dev flannel.1 onlink");
        let flannels = ["10.5.4.0/24 via 10.5.4.0 onlink"];
        assert_eq!(shown(), flannels);
        let removed = node.netlink.remove_routes::<V4>().await.expect("a dump");
        assert_eq!(
            (removed.len(), shown()),
            (0, flannels.map(str::to_owned).to_vec())
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
        node.reconcile(&vtep).await;
        let behind = run("ip route show 10.5.2.0/24 proto bird");
        assert!(behind.contains("via 192.168.0.254"), "{behind}");
        let chosen = run("ip route get 10.5.2.9");
        assert!(chosen.contains("dev flannel.1"), "ours wins: {chosen}");

        node.desired.peers.clear();
        node.reconcile(&vtep).await;
        assert_eq!(run("ip route show"), before);
        assert!(run("ip neigh show dev flannel.9").contains("02:00:00:00:09:02"));
        assert!(run("bridge fdb show dev flannel.9").contains("203.0.113.9"));

        let is_ours = |link: &Link| {
            device_id(link).is_some_and(|device| (device.kind, device.number) == ("vxlan", 1))
        };
        let listed = node
            .netlink
            .remove_everything(is_ours, true)
            .await
            .expect("dry run");
        assert!(listed.contains(&Owned::Vtep {
            ifindex: vtep.ifindex,
            name: vtep.name.clone()
        }));
        run("ip link show flannel.1");
        node.netlink
            .remove_everything(is_ours, false)
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
        assert!(node.netlink.owned(is_ours).await.expect("look").is_empty());
    });
}

#[test]
fn a_moved_or_rekeyed_peer_leaves_nothing_behind() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;

        node.add_peer(2, "203.0.113.20");
        node.reconcile(&vtep).await;
        assert_eq!(
            run("bridge fdb show dev flannel.1").trim(),
            "02:00:00:00:01:02 dst 203.0.113.20 self permanent"
        );

        let (subnet, address) = (net("10.5.2.0/24"), Ipv4Addr::new(203, 0, 113, 20));
        node.add(subnet, address, MacAddr::new([0x02, 0, 0, 0, 2, 2]));
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
fn direct_and_gatewayed_peers_follow_the_kernels_routes() {
    in_private_netns(|| async {
        let backend = Vxlan {
            direct_routing: true,
            ..Vxlan::DEFAULT
        };
        let mut node = Node::new(backend);
        node.add_peer(2, "192.168.0.2");
        node.add_peer(3, "203.0.113.3");
        let vtep = node.ensure().await;
        let summary = node.reconcile(&vtep).await;
        let eth0 = index_of("eth0");
        let standing = summary.standing.unwrap();
        assert_eq!(
            standing.path(net("10.5.2.0/24")),
            Some(PeerPath::Direct { ifindex: eth0 })
        );
        assert_eq!(standing.path(net("10.5.3.0/24")), Some(PeerPath::Tunnel));
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

        node.set_backend(HostGw);
        node.try_reconcile(None).await.expect("host-gw");
        let routes = run("ip route show");
        assert_eq!(
            lines_with(&routes, "10.5.2.0/24"),
            ["10.5.2.0/24 via 192.168.0.2 dev eth0 proto 241"]
        );

        node.set_backend(Vxlan::DEFAULT);
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        let routes = run("ip route show");
        assert_eq!(
            lines_with(&routes, "10.5.2.0/24"),
            ["10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 241 onlink"]
        );
    });
}

#[test]
fn the_device_of_an_earlier_configuration_is_removed_and_a_foreign_one_is_not() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "192.168.0.2");
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        run("ip link add flannel.9 type vxlan id 9 dev eth0 local 192.168.0.1 dstport 8472");
        run("ip addr add 10.9.1.0/32 dev flannel.9");

        let backend = Vxlan {
            vni: 2,
            ..Vxlan::DEFAULT
        };
        node.set_backend(backend);
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        assert_eq!(
            node.netlink.link_named("flannel.1").await.expect("look"),
            None
        );
        let routes = run("ip route show");
        assert_eq!(
            lines_with(&routes, "10.5.2.0/24"),
            ["10.5.2.0/24 via 10.5.2.0 dev flannel.2 proto 241 onlink"]
        );

        node.set_backend(HostGw);
        let summary = node.try_reconcile(None).await;
        assert!(summary.expect("host-gw").failed.is_empty());
        assert_eq!(
            node.netlink.link_named("flannel.2").await.expect("look"),
            None
        );
        run("ip link show flannel.9");
    });
}

#[test]
fn a_route_from_when_another_node_had_our_subnet_is_removed() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run("ip route add 10.5.1.0/24 via 192.168.0.7");
        run("ip link add cni0 type bridge");
        run("ip addr add 10.5.1.1/24 dev cni0");
        run("ip link set cni0 up");
        assert!(
            run("ip route get 10.5.1.9").contains("192.168.0.7"),
            "pods are cut off"
        );
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        assert!(run("ip route get 10.5.1.9").contains("dev cni0"));
    });
}

#[test]
fn a_host_gw_peer_behind_a_router_is_reported_and_the_others_work() {
    in_private_netns(|| async {
        let mut node = Node::new(HostGw);
        node.add_peer(2, "192.168.0.2");
        node.add_peer(3, "203.0.113.3");
        let summary = node.try_reconcile(None).await.expect("reconcile");
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
            node.add(subnet, public_ip, MacAddr::new([0x02, 0, 0, 0, 9, 9]));
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
            .set_blackhole::<V4>(Some(net("10.5.1.0/24")))
            .await
            .expect("blackhole");
        run("ip link add cni0 type bridge");
        run("ip addr add 10.5.1.1/24 dev cni0");
        run("ip link set cni0 up");
        assert!(run("ip route get 10.5.1.9").contains("dev cni0"));

        node.netlink
            .set_blackhole::<V4>(Some(net("10.5.6.0/24")))
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

        node.netlink
            .set_blackhole::<V4>(None)
            .await
            .expect("blackhole");
        assert_eq!(run("ip route show type blackhole"), "");
    });
}

#[test]
fn a_thousand_direct_peers_are_looked_up_and_programmed() {
    in_private_netns(|| async {
        let backend = Vxlan {
            direct_routing: true,
            ..Vxlan::DEFAULT
        };
        let mut node = Node::new(backend);
        run("ip addr add 172.16.0.1/16 dev eth0");
        for n in 0..1000_u32 {
            let [_, _, high, low] = n.to_be_bytes();
            let subnet = Ipv4Network::new(Ipv4Addr::new(10, 64 + high, low, 0), 24).expect("net");
            let public_ip = Ipv4Addr::new(172, 16, 1 + high, low);
            node.add(subnet, public_ip, MacAddr::new([0x02, 0, 0, 1, high, low]));
        }
        let vtep = node.ensure().await;
        let start = Instant::now();
        let summary = node.reconcile(&vtep).await;
        println!("1000 direct peers: programmed in {:?}", start.elapsed());
        assert_eq!(
            summary.changed.added(),
            1001,
            "the address and a route each"
        );
        let start = Instant::now();
        assert!(is_unchanged(&node.reconcile(&vtep).await));
        println!(
            "1000 direct peers: found unchanged in {:?}",
            start.elapsed()
        );
    });
}
