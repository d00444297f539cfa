//! `flannel.<VNI>`: created as flannel creates it, adopted, corrected, replaced.

use overlay_agent::{backend::Vxlan, netlink::NetlinkError};
use overlay_tests::private_netns::{in_private_netns, run};

use crate::node::{MAC, Node, described, index_of, vxlan};

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
        assert_eq!((vtep.mac, vtep.mtu, vxlan(&vtep).port), (MAC, 1450, 8472));
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
        let backend = Vxlan {
            port: Some(4789),
            gbp: true,
            learning: true,
            ..Vxlan::DEFAULT
        };
        let node = Node::new(backend);
        let vtep = node.ensure().await;
        assert_eq!(vxlan(&vtep).port, 4789);
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
fn a_foreign_device_with_our_vni_is_named_and_left_alone() {
    in_private_netns(|| async {
        let node = Node::vxlan();
        run("ip link add other type vxlan id 1 dev eth0 local 192.168.0.1 dstport 8472");
        let error = node
            .netlink
            .ensure_vtep(&node.spec(), None)
            .await
            .expect_err("taken");
        assert!(matches!(&error, NetlinkError::Taken { other, .. } if other == "other"));
        run("ip link show other");
    });
}

#[test]
fn a_device_name_the_kernel_cannot_hold_is_refused() {
    in_private_netns(|| async {
        let backend = Vxlan {
            vni: 10_000_000,
            ..Vxlan::DEFAULT
        };
        let node = Node::new(backend);
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
