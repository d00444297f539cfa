//! The same random IPv6 packets through two labs, with the fast path and without: pods receive the
//! same, bit by bit. See `overlay_tests::differ::replay`.

use overlay_tests::{
    differ::{ipv6::V6, replay::ensure_same},
    lab::Lab,
};

/// Packets of each of the runs.
const PACKETS: u64 = 20_000;
const SEED: u64 = 0x5eed6;

#[test]
fn ipv6_pods_receive_the_same_packets_through_the_tunnel_with_the_fast_path_as_without() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
    ensure_same::<V6>(&Lab::builder().nodes(2).config(config), SEED, PACKETS);
}

#[test]
fn ipv6_pods_receive_the_same_packets_by_direct_routes_with_the_fast_path_as_without() {
    let config = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    ensure_same::<V6>(&Lab::builder().nodes(2).config(config), SEED + 1, PACKETS);
}
