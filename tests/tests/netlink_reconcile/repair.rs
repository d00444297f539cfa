//! Damage done behind the agent's back is repaired.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use overlay_agent::netlink::{Netlink, NetlinkError};
use overlay_tests::private_netns::{in_private_netns, run};

use crate::node::{MAC, Node, is_unchanged, sorted};

#[test]
fn a_renamed_device_gets_its_name_back_and_keeps_its_peers() {
    in_private_netns(|| async {
        let mut node = Node::vxlan();
        node.add_peer(2, "203.0.113.2");
        let vtep = node.ensure().await;
        node.reconcile(&vtep).await;
        run("ip link set flannel.1 name stolen");
        let error = node.try_reconcile(Some(&vtep)).await.expect_err("renamed");
        assert!(matches!(error, NetlinkError::VtepGone { .. }), "{error}");
        let again = node
            .netlink
            .restore_vtep(&node.spec(), vtep.mac)
            .await
            .expect("device");
        assert_eq!(again, vtep);
        assert!(is_unchanged(&node.reconcile(&again).await));
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
            assert!(is_unchanged(&node.reconcile(&vtep).await), "after {damage}");
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
            let device = Command::new("ip")
                .args(["-o", "link", "show", "flannel.1"])
                .output();
            let device = String::from_utf8_lossy(&device.expect("ip").stdout).into_owned();
            let device = device.split_once(':').map(|(_, rest)| rest.to_owned());
            (
                device,
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
            // Every event causes a repair, until all is as it was.
            while healthy() != before {
                let event = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
                let event = event.unwrap_or_else(|_| panic!("no event tells of `{damage}`"));
                event.expect("the watch");
                let restored = node.netlink.restore_vtep(&node.spec(), MAC).await;
                vtep = restored.expect("device");
                node.reconcile(&vtep).await;
            }
            delays.push(start.elapsed());
            // The echo of the repair dies out instead of causing repairs for ever.
            let quiet = Duration::from_millis(100);
            while let Ok(event) = tokio::time::timeout(quiet, watch.next()).await {
                event.expect("the watch");
                let again = node.netlink.restore_vtep(&node.spec(), MAC).await;
                assert_eq!(again.expect("device"), vtep, "after {damage}");
                assert!(is_unchanged(&node.reconcile(&vtep).await), "after {damage}");
            }
        }
        delays.sort();
        assert!(
            delays[delays.len() / 2] < Duration::from_secs(1),
            "{delays:?}"
        );
    });
}
