//! The IPv6 side of the tier: what IPv6 does differently from IPv4.

use overlay_agent::{
    backend::Vxlan,
    model::{V4, V6},
    netlink::NetlinkError,
};
use overlay_common::addr::MacAddr;
use overlay_tests::private_netns::{in_private_netns, run};

use crate::node::{MAC, NodeOf, described, index_of, is_unchanged, underlay, vxlan};

type Node = NodeOf<V6>;

#[test]
fn both_families_have_their_device_with_one_vni_and_port() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run("ip addr add 192.168.0.1/24 dev eth0");
        let vtep = node.ensure().await;
        let ipv4 = Vxlan::DEFAULT.device(&underlay::<V4>());
        let other = MacAddr::new([0x02, 0, 0, 0, 0, 0x44]);
        let vtep4 = node.netlink.ensure_vtep(&ipv4, Some(other)).await;
        let vtep4 = vtep4.expect("the other family's device is in nobody's way");
        assert_eq!((vtep.name.as_str(), vtep.mtu), ("flannel-v6.1", 1430));
        assert_eq!((vtep4.name.as_str(), vtep4.mtu), ("flannel.1", 1450));
        // A renamed device is found again and not taken for the other family's.
        run("ip link set flannel-v6.1 name stolen");
        let again = node.netlink.restore_vtep(&node.spec(), MAC).await;
        assert_eq!(again.expect("device"), vtep);
    });
}

#[test]
fn a_device_that_is_made_takes_udp_checksum_0_and_sends_checksums() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        assert!(vxlan(&node.ensure().await).zero_checksum);
        let text = described("flannel-v6.1");
        let checksums = "udpcsum noudp6zerocsumtx udp6zerocsumrx";
        assert!(text.contains(checksums), "{text}");
    });
}

#[test]
fn a_device_of_flannel_that_drops_udp_checksum_0_is_kept_and_found_again() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run(
            "ip link add flannel-v6.1 address 02:aa:aa:aa:aa:aa mtu 1430 type vxlan id 1 dev eth0 \
             local fd00:192::1 dstport 0 nolearning",
        );
        let index = index_of("flannel-v6.1");
        let vtep = node.ensure().await;
        assert_eq!((vtep.ifindex, vxlan(&vtep).zero_checksum), (index, false));
        // One that takes it could not be brought up beside it.
        run("ip link set flannel-v6.1 name stolen");
        let again = node.netlink.restore_vtep(&node.spec(), vtep.mac).await;
        assert_eq!(again.expect("device"), vtep);
    });
}

#[test]
fn a_device_can_be_made_beside_another_of_its_port_that_drops_udp_checksum_0() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run("ip link add other type vxlan id 9 dev eth0 local fd00:192::1 dstport 8472");
        run("ip link set other up");
        assert!(!vxlan(&node.ensure().await).zero_checksum);
        let text = described("flannel-v6.1");
        assert!(
            text.contains(",UP") && text.contains("noudp6zerocsumrx"),
            "{text}"
        );
    });
}

#[test]
fn a_foreign_route_that_the_kernel_lets_nobody_pass_fails_that_peer_alone() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        (2..5).for_each(|n| node.add_far_peer(n));
        let vtep = node.ensure().await;
        run("ip -6 route add fd00:10:5:3::/64 via fd00:192::99 dev eth0 proto static metric 50");
        let summary = node.try_reconcile(Some(&vtep)).await.expect("reconcile");
        let failed: Vec<_> = summary.failed.iter().map(ToString::to_string).collect();
        assert!(
            matches!(&failed[..], [only] if only.contains("fd00:10:5:3::/64")),
            "{failed:#?}"
        );
        let routes = run("ip -6 route show proto 241");
        assert_eq!(routes.lines().count(), 2, "{routes}");
        run("ip -6 route del fd00:10:5:3::/64 via fd00:192::99");
        let summary = node.reconcile(&vtep).await;
        assert!(summary.failed.is_empty(), "{:#?}", summary.failed);
        assert!(is_unchanged(&node.reconcile(&vtep).await));
    });
}

#[test]
fn a_route_that_would_share_the_traffic_gives_way() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_far_peer(2);
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        run("ip -6 neigh add fd00:10:5:2::9 dev flannel-v6.1 lladdr 02:00:00:00:00:99");
        run("ip -6 route append fd00:10:5:2::/64 via fd00:10:5:2::9 dev flannel-v6.1 onlink");
        let shared = run("ip -6 route show fd00:10:5:2::/64");
        assert!(shared.contains("nexthop"), "{shared}");
        node.reconcile(&vtep).await;
        let alone = run("ip -6 route show fd00:10:5:2::/64");
        assert!(
            alone.contains("via fd00:10:5:2:: dev flannel-v6.1 proto 241")
                && !alone.contains("nexthop"),
            "{alone}"
        );
        assert!(is_unchanged(&node.reconcile(&vtep).await));
    });
}

#[test]
fn an_underlay_too_small_for_ipv6_in_a_tunnel_is_reported() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run("ip link set eth0 mtu 1340");
        let error = node.netlink.ensure_vtep(&node.spec(), Some(MAC)).await;
        let error = error.expect_err("IPv6 needs 1280 bytes inside");
        assert!(matches!(error, NetlinkError::MtuTooSmall { .. }), "{error}");
        assert!(
            error.to_string().contains("70 bytes and IPv6 needs 1280"),
            "{error}"
        );
    });
}
