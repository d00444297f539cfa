//! The IPv6 side of the tier: what IPv6 does differently from IPv4, and that many peers are no matter.

use std::{collections::BTreeMap, net::Ipv6Addr};

use ipnetwork::Ipv6Network;
use overlay_agent::{
    backend::{Kind as _, Vxlan},
    model::{Desired, LocalNode, Peer, Underlay, V6},
    netlink::{Netlink, NetlinkError, Summary, Vtep, VtepSpec},
};
use overlay_common::addr::MacAddr;
use overlay_tests::private_netns::{in_private_netns, run};

use crate::node::{MAC, described, index_of, is_unchanged, lines_with};

/// One node: an underlay with an address and a default route, and the desired state.
struct Node {
    netlink: Netlink,
    desired: Desired<V6>,
}

fn subnet(n: u16) -> Ipv6Network {
    Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x10, 5, n, 0, 0, 0, 0), 64).expect("subnet")
}

impl Node {
    fn new() -> Self {
        run("ip link add eth0 type veth peer name wire0");
        run("ip addr add fd00:192::1/64 dev eth0 nodad");
        run("ip link set wire0 up");
        run("ip link set eth0 up");
        run("ip -6 route add default via fd00:192::fe");
        let address: Ipv6Addr = "fd00:192::1".parse().expect("address");
        let local = LocalNode {
            network: "fd00:10:5::/48".parse().expect("network"),
            subnet: subnet(1),
            underlay: Underlay {
                ifindex: index_of("eth0"),
                name: "eth0".to_owned(),
                mtu: 1500,
                hardware: false,
                ethernet: true,
                address,
                public_ip: address,
            },
            forwarding: Vxlan::DEFAULT.forwarding::<V6>(),
            vtep_mac: MAC,
            zero_checksum: false,
        };
        Self {
            netlink: Netlink::connect().expect("netlink"),
            desired: Desired {
                local,
                peers: BTreeMap::new(),
            },
        }
    }

    fn spec(&self) -> VtepSpec {
        Vxlan::DEFAULT.device(&self.desired.local.underlay)
    }

    async fn ensure(&self) -> Vtep {
        let vtep = self.netlink.ensure_vtep(&self.spec(), Some(MAC)).await;
        vtep.expect("device")
    }

    async fn reconcile(&self, vtep: &Vtep) -> Summary<V6> {
        let summary = self.netlink.reconcile(&self.desired, Some(vtep)).await;
        summary.expect("reconcile")
    }

    /// Adds peer `fd00:10:5:<n>::/64`.
    fn add_peer(&mut self, n: u16) {
        let [high, low] = n.to_be_bytes();
        let peer = Peer {
            subnet: subnet(n),
            public_ip: Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, n),
            vtep_mac: MacAddr::new([0x02, 0, 0, 6, high, low]),
            zero_checksum: false,
        };
        self.desired.peers.insert(peer.subnet, peer);
    }
}

#[test]
fn a_thousand_ipv6_peers_are_programmed_and_swept() {
    in_private_netns(|| async {
        let mut node = Node::new();
        (2..1002).for_each(|n| node.add_peer(n));
        let vtep = node.ensure().await;
        let summary = node.reconcile(&vtep).await;
        assert!(summary.failed.is_empty(), "{:#?}", summary.failed);
        assert_eq!(summary.added, 3001);
        assert!(is_unchanged(&node.reconcile(&vtep).await));
        node.desired.peers.clear();
        assert_eq!(node.reconcile(&vtep).await.removed, 3000);
        assert_eq!(run("ip -6 route show proto 241"), "");
        let left = run("ip -6 neigh show dev flannel-v6.1");
        assert_eq!(lines_with(&left, "PERMANENT"), Vec::<String>::new());
    });
}

#[test]
fn both_families_have_their_device_with_one_vni_and_port() {
    in_private_netns(|| async {
        let node = Node::new();
        run("ip addr add 192.168.0.1/24 dev eth0");
        let vtep = node.ensure().await;
        let ipv4 = Vxlan::DEFAULT.device(&crate::node::underlay());
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
        let node = Node::new();
        assert!(node.ensure().await.zero_checksum);
        let text = described("flannel-v6.1");
        let checksums = "udpcsum noudp6zerocsumtx udp6zerocsumrx";
        assert!(text.contains(checksums), "{text}");
    });
}

#[test]
fn a_device_of_flannel_that_drops_udp_checksum_0_is_kept_and_found_again() {
    in_private_netns(|| async {
        let node = Node::new();
        run(
            "ip link add flannel-v6.1 address 02:aa:aa:aa:aa:aa mtu 1430 type vxlan id 1 dev eth0 \
             local fd00:192::1 dstport 0 nolearning",
        );
        let index = index_of("flannel-v6.1");
        let vtep = node.ensure().await;
        assert_eq!((vtep.ifindex, vtep.zero_checksum), (index, false));
        // One that takes it could not be brought up beside it.
        run("ip link set flannel-v6.1 name stolen");
        let again = node.netlink.restore_vtep(&node.spec(), vtep.mac).await;
        assert_eq!(again.expect("device"), vtep);
    });
}

#[test]
fn a_device_can_be_made_beside_another_of_its_port_that_drops_udp_checksum_0() {
    in_private_netns(|| async {
        let node = Node::new();
        run("ip link add other type vxlan id 9 dev eth0 local fd00:192::1 dstport 8472");
        run("ip link set other up");
        assert!(!node.ensure().await.zero_checksum);
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
        let mut node = Node::new();
        (2..5).for_each(|n| node.add_peer(n));
        let vtep = node.ensure().await;
        run("ip -6 route add fd00:10:5:3::/64 via fd00:192::99 dev eth0 proto static metric 50");
        let summary = node.reconcile(&vtep).await;
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
        let mut node = Node::new();
        node.add_peer(2);
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
fn only_addresses_of_the_pod_network_are_taken_off_the_ipv6_device() {
    in_private_netns(|| async {
        let node = Node::new();
        let vtep = node.ensure().await;
        run("ip addr add fd00:10:5:9::/128 dev flannel-v6.1 nodad");
        run("ip addr add fd00:99::1/128 dev flannel-v6.1 nodad");
        node.reconcile(&vtep).await;
        let addresses = run("ip -6 addr show dev flannel-v6.1");
        for (address, expected) in [
            ("fd00:10:5:1::/128", true),
            ("fd00:10:5:9::/128", false),
            ("fd00:99::1/128", true),
            ("fe80::", true),
        ] {
            assert_eq!(addresses.contains(address), expected, "{addresses}");
        }
        assert!(is_unchanged(&node.reconcile(&vtep).await));
    });
}

#[test]
fn the_blackhole_route_of_ipv6_is_kept_and_goes() {
    in_private_netns(|| async {
        let node = Node::new();
        for wanted in [
            Some(subnet(1)),
            Some(subnet(1)),
            Some(subnet(7)),
            None,
            None,
        ] {
            node.netlink
                .set_blackhole::<V6>(wanted)
                .await
                .expect("blackhole");
            let routes = run("ip -6 route show type blackhole");
            assert_eq!(
                routes.lines().count(),
                usize::from(wanted.is_some()),
                "{routes}"
            );
            if let Some(subnet) = wanted {
                assert!(routes.contains(&subnet.to_string()), "{routes}");
            }
        }
    });
}

#[test]
fn an_underlay_too_small_for_ipv6_in_a_tunnel_is_reported() {
    in_private_netns(|| async {
        let node = Node::new();
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

#[test]
fn what_a_start_that_was_cut_short_left_of_ipv6_is_removed() {
    in_private_netns(|| async {
        let mut node = Node::new();
        node.add_peer(2);
        let vtep = node.ensure().await;
        let underlay = &node.desired.local.underlay;
        // In use: it is reconciliation that knows it by its address.
        node.reconcile(&vtep).await;
        let removed = node.netlink.remove_unfinished_vteps(underlay, None).await;
        assert_eq!(removed.expect("look"), Vec::<String>::new());
        // Not in use yet: it has nothing but its link-local address.
        run("ip -6 addr flush dev flannel-v6.1 scope global");
        let removed = node.netlink.remove_unfinished_vteps(underlay, None).await;
        assert_eq!(removed.expect("remove"), ["flannel-v6.1"]);
    });
}
