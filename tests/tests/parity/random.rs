//! The same random packets through two labs, with the fast path and without: pods receive the same,
//! bit by bit. See `overlay_tests::differ::replay`.

use overlay_common::family::{V4, V6};
use overlay_tests::{
    differ::{family::SequenceFamily, replay::ensure_same},
    in_both_families,
    lab::Lab,
};

/// A run of a family.
trait Run: SequenceFamily {
    const PACKETS: u64;
    const SEED: u64;
    /// Network configs with a tunnel to the other node, and with direct routes.
    const TUNNEL: &str;
    const DIRECT: &str;
}

impl Run for V4 {
    const PACKETS: u64 = 120_000;
    const SEED: u64 = 0x5eed;
    const TUNNEL: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    const DIRECT: &str =
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
}

impl Run for V6 {
    const PACKETS: u64 = 20_000;
    const SEED: u64 = 0x5eed6;
    const TUNNEL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
    const DIRECT: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
}

fn pods_receive_the_same_packets_through_the_tunnel_with_the_fast_path_as_without<F: Run>() {
    let builder = Lab::builder().nodes(2).config(F::TUNNEL);
    ensure_same::<F>(&builder, F::SEED, F::PACKETS);
}

fn pods_receive_the_same_packets_by_direct_routes_with_the_fast_path_as_without<F: Run>() {
    let builder = Lab::builder().nodes(2).config(F::DIRECT);
    ensure_same::<F>(&builder, F::SEED + 1, F::PACKETS);
}

in_both_families! {
    pods_receive_the_same_packets_through_the_tunnel_with_the_fast_path_as_without,
    pods_receive_the_same_packets_by_direct_routes_with_the_fast_path_as_without,
}
