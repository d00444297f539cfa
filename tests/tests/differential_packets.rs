//! The same random packets through two labs, with the fast path and without: pods receive the same,
//! bit by bit. See `overlay_tests::differ::replay`.

use overlay_tests::{
    differ::{ipv4::V4, replay::ensure_same},
    lab::Lab,
};

/// Packets of each of the runs.
const PACKETS: u64 = 120_000;
const SEED: u64 = 0x5eed;

const DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

#[test]
fn pods_receive_the_same_packets_through_the_tunnel_with_the_fast_path_as_without() {
    ensure_same::<V4>(&Lab::builder().nodes(2), SEED, PACKETS);
}

#[test]
fn pods_receive_the_same_packets_by_direct_routes_with_the_fast_path_as_without() {
    ensure_same::<V4>(&Lab::builder().nodes(2).config(DIRECT), SEED + 1, PACKETS);
}
