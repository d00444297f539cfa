//! What holds in both families.

use std::time::Instant;

use overlay_agent::backend::remove_unfinished;
use overlay_tests::{
    in_both_families,
    private_netns::{in_private_netns, run},
};

use crate::node::{NodeOf, Side, is_unchanged, lines_with};

in_both_families! {
    a_thousand_peers_are_programmed_and_swept,
    only_addresses_of_the_pod_network_are_taken_off_the_device,
    the_blackhole_route_is_kept_and_goes,
    what_a_start_that_was_cut_short_left_is_removed,
}

fn a_thousand_peers_are_programmed_and_swept<F: Side>() {
    in_private_netns(|| async {
        let mut node = NodeOf::<F>::vxlan();
        (2..1002).for_each(|n| node.add_far_peer(n));
        let vtep = node.ensure().await;
        let timed = |what: &'static str, start: Instant| {
            println!("1000 {} peers: {what} in {:?}", F::NAME, start.elapsed());
        };
        let start = Instant::now();
        let summary = node.reconcile(&vtep).await;
        timed("programmed", start);
        assert_eq!(summary.changed.added(), 3001);
        let start = Instant::now();
        assert!(is_unchanged(&node.reconcile(&vtep).await));
        timed("found unchanged", start);
        node.desired.peers.clear();
        let start = Instant::now();
        assert_eq!(node.reconcile(&vtep).await.changed.removed(), 3000);
        timed("removed", start);
        let (ip, device) = (F::IP, &vtep.name);
        assert_eq!(run(&format!("ip {ip} route show proto 241")), "");
        let left = run(&format!("ip {ip} neigh show dev {device}"));
        assert_eq!(lines_with(&left, "PERMANENT"), Vec::<String>::new());
    });
}

fn only_addresses_of_the_pod_network_are_taken_off_the_device<F: Side>() {
    in_private_netns(|| async {
        let node = NodeOf::<F>::vxlan();
        let vtep = node.ensure().await;
        let (ip, device) = (F::IP, &vtep.name);
        let [own, other, foreign] = [F::first(F::subnet(1)), F::first(F::subnet(9)), F::far(1)];
        for address in [other, foreign] {
            run(&format!("ip addr add {} dev {device}", F::host(address)));
        }
        node.reconcile(&vtep).await;
        let addresses = run(&format!("ip {ip} addr show dev {device}"));
        for (address, expected) in [(own, true), (other, false), (foreign, true)] {
            let is_there = addresses.contains(&F::host(address).to_string());
            assert_eq!(is_there, expected, "{address}: {addresses}");
        }
        assert_eq!(
            addresses.contains("fe80::"),
            F::NAME == "IPv6",
            "{addresses}"
        );
        assert!(is_unchanged(&node.reconcile(&vtep).await));
    });
}

fn the_blackhole_route_is_kept_and_goes<F: Side>() {
    in_private_netns(|| async {
        let node = NodeOf::<F>::vxlan();
        let [one, other] = [1, 7].map(|n| Some(F::subnet(n)));
        for wanted in [one, one, other, None, None] {
            let kept = node.netlink.set_blackhole::<F>(wanted).await;
            kept.expect("blackhole");
            let routes = run(&format!("ip {} route show type blackhole", F::IP));
            let count = usize::from(wanted.is_some());
            assert_eq!(routes.lines().count(), count, "{routes}");
            if let Some(subnet) = wanted {
                assert!(routes.contains(&subnet.to_string()), "{routes}");
            }
        }
    });
}

fn what_a_start_that_was_cut_short_left_is_removed<F: Side>() {
    in_private_netns(|| async {
        let mut node = NodeOf::<F>::vxlan();
        node.add_far_peer(2);
        let vtep = node.ensure().await;
        let underlay = &node.desired.local.underlay;
        // In use: it is reconciliation that knows it by its address.
        node.reconcile(&vtep).await;
        let removed = remove_unfinished(&node.netlink, underlay, &[]).await;
        assert_eq!(removed.expect("look"), Vec::<String>::new());
        // Not in use yet: it has nothing but a link-local address.
        let (ip, device) = (F::IP, &vtep.name);
        run(&format!("ip {ip} addr flush dev {device} scope global"));
        let removed = remove_unfinished(&node.netlink, underlay, &[]).await;
        assert_eq!(removed.expect("remove"), [device.as_str()]);
    });
}
