//! The map layouts as numbers. A failed assertion here means the ABI changed: take a new
//! `ABI_VERSION` together with the new numbers and the new `GOLDEN` of the test below.

use core::mem::{align_of, offset_of, size_of};

use crate::{
    config::Config,
    encap::EncapHeader,
    encap6::EncapHeader6,
    family::{V4, V6},
    flow::{Entered, Flow, FlowKey4, FlowKey6},
    node::{Gateway, Leaving, Nexthop, Node, Peer, PodKey, PodPort},
    outcome::Counter,
    route::RouteEntry,
    short::Short,
    slow::{Match, Slow},
};

/// A map type, as far as its layout goes.
#[cfg(test)]
#[derive(Debug)]
#[expect(dead_code, reason = "read by `Debug`")]
struct Layout {
    name: &'static str,
    size: usize,
    align: usize,
    fields: &'static [(&'static str, usize)],
}

/// Asserts size, alignment and field offsets of the map types.
macro_rules! layouts {
    ($($ty:ty, size $size:literal, align $align:literal, $($field:ident at $offset:literal),+;)+) => {
        $(const _: () = {
            assert!(size_of::<$ty>() == $size, concat!("size of ", stringify!($ty)));
            assert!(align_of::<$ty>() == $align, concat!("alignment of ", stringify!($ty)));
            $(assert!(
                offset_of!($ty, $field) == $offset,
                concat!("offset of ", stringify!($ty), "::", stringify!($field)),
            );)+
        };)+

        #[cfg(test)]
        const LAYOUTS: &[Layout] = &[$(Layout {
            name: stringify!($ty),
            size: $size,
            align: $align,
            fields: &[$((stringify!($field), $offset)),+],
        }),+];
    };
}

layouts! {
    RouteEntry, size 8, align 4, node at 0, flags at 4;

    Node<V4>, size 80, align 8,
    flags at 0, vtep at 4, ipv4_sum at 8, subnet at 12, vtep_mac at 16, prefix_len at 22,
    encap at 24, route_mtu at 74;

    Nexthop, size 32, align 8,
    vtep at 0, ifindex at 4, dst_mac at 8, mtu at 14, src_mac at 16, mode at 22, path_changes at 24;

    Short, size 80, align 8,
    egress_until at 0, generation at 8, underlay_ifindex at 12, next_hop_mac at 16, mtu at 22,
    underlay_mac at 24, vtep at 32, path_changes at 36, inner_mark at 40, inner_priority at 44,
    mark at 48, priority at 52, check at 56, ingress_until at 64, ingress_owner at 72;

    Leaving, size 48, align 8,
    flow at 0, gateway_mac at 8, generation at 16, stamp at 20, hash at 24, node at 28, mark at 32,
    priority at 36, hash_generation at 40;
    Peer, size 4, align 4, node at 0;
    Gateway, size 8, align 8, mac at 0;
    PodKey, size 8, align 8, mac at 0;
    PodPort, size 4, align 4, ifindex at 0;

    Config<V4>, size 120, align 8,
    stamp_key at 0, tcp_permit_ns at 16, udp_permit_ns at 24, icmp_permit_ns at 32, generation at 40,
    fastpath at 44, vtep at 48, network at 52, network_mask at 56, subnet at 60, subnet_mask at 64,
    vtep_mac at 68, vxlan_port at 74, vni at 76, tunnel at 79, source_port_min at 80, source_port_span at 82,
    vtep_ifindex at 84, pod_mtu at 88, slow_mark at 92, slow_mask at 96,
    sctp_permit_ns at 104, closed at 112;

    FlowKey4, size 16, align 8,
    local at 0, remote at 4, local_port at 8, remote_port at 10, protocol at 12;

    Flow, size 128, align 8,
    id at 0, egress_until at 8, ingress_until at 16, generation at 24, node at 28, rewrite at 30,
    gateway_mac at 32, source_port at 38, pod_mac at 40, pod_mtu at 46, deliver_mac at 48,
    ingress_mode at 54, ingress_ttl at 55, pod_ifindex at 56, moves at 60, underlay_ifindex at 64,
    path_changes at 68, next_hop_mac at 72, path_mtu at 78, underlay_mac at 80, egress_mode at 86,
    egress_ttl at 87, vtep at 88, mark at 92, priority at 96, rewrite_address at 104,
    rewrite_port at 120;

    Entered<V4>, size 24, align 8, words at 0, stamp at 16;

    Counter, size 16, align 8, packets at 0, bytes at 8;

    Match<V4>, size 32, align 2,
    src at 0, src_mask at 4, dst at 8, dst_mask at 12, src_ports at 16, dst_ports at 20,
    protocols at 24, directions at 25;

    Slow, size 10_000, align 4,
    ipv4_count at 0, ipv6_count at 4, report_len at 8, outer at 12, ipv4 at 16, ipv6 at 528, report at 1_808;

    EncapHeader, size 50, align 1, ipv4 at 0, udp at 20, vxlan at 28, inner_eth at 36;

    Node<V6>, size 136, align 8,
    flags at 0, vtep at 4, ipv4_sum at 20, subnet at 24, vtep_mac at 40, prefix_len at 46,
    encap at 48, route_mtu at 118;

    Config<V6>, size 192, align 8,
    stamp_key at 0, tcp_permit_ns at 16, udp_permit_ns at 24, icmp_permit_ns at 32, generation at 40,
    fastpath at 44, vtep at 48, network at 64, network_mask at 80, subnet at 96, subnet_mask at 112,
    vtep_mac at 128, vxlan_port at 134, vni at 136, tunnel at 139, source_port_min at 140,
    source_port_span at 142, vtep_ifindex at 144, pod_mtu at 148,
    slow_mark at 152, slow_mask at 156, sctp_permit_ns at 176, closed at 184;

    FlowKey6, size 40, align 8,
    local at 0, remote at 16, local_port at 32, remote_port at 34, protocol at 36;

    Entered<V6>, size 48, align 8, words at 0, stamp at 40;

    EncapHeader6, size 70, align 1, ipv6 at 0, udp at 40, vxlan at 48, inner_eth at 56;

    Match<V6>, size 80, align 2,
    src at 0, src_mask at 16, dst at 32, dst_mask at 48, src_ports at 64, dst_ports at 68,
    protocols at 72, directions at 73;
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::fmt::{self, Write as _};

    use std::format;

    use super::LAYOUTS;
    use crate::{ABI_VERSION, maps};

    /// The version, and the hash of the layouts that it stands for.
    const GOLDEN: (u32, &str) = (3, "21079ca9ab5ab747");

    /// FNV-1a of a text without its spaces, which another compiler may set otherwise.
    struct Fnv(u64);

    impl fmt::Write for Fnv {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes().filter(|&byte| byte != b' ') {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            Ok(())
        }
    }

    #[test]
    fn a_layout_changes_only_with_the_abi_version() {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        write!(hash, "{LAYOUTS:?}{:?}", maps::TABLE).unwrap();
        let hash = format!("{:016x}", hash.0);
        assert!(
            (ABI_VERSION, hash.as_str()) == GOLDEN,
            "a layout or the table of maps has changed: if a release has version {}, take the next \
             ABI_VERSION, or agents will use each other's maps; then write it to GOLDEN with \
             \"{hash}\"",
            GOLDEN.0
        );
    }
}
