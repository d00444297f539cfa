//! Plain old data: `bytemuck::Pod` for the map types that are generic over the address family, and
//! `aya::Pod` for all.
//!
//! The only unsafe code of the crate. Both traits ask that every bit pattern is valid and that no
//! byte is padding. For types without parameters the derive of `bytemuck::Pod` proves it; for the
//! others, `no_padding!` does: their fields are plain old data, and as long together as the whole.
#![allow(
    unsafe_code,
    reason = "the Pod traits are unsafe; the proofs are the derives and the assertions here"
)]
#![expect(
    clippy::used_underscore_binding,
    reason = "fields that only fill a gap count as the others do"
)]

use bytemuck::{Pod, Zeroable};

use crate::{
    config::Config,
    family::{V4, V6, WireFamily},
    flow::{Entered, FlowKey, FlowWords},
    node::Node,
    slow::Match,
};

/// Implements `bytemuck::Pod` for a struct over a family. All its fields are named.
macro_rules! no_padding {
    ($ty:ident { $($field:ident),+ $(,)? }) => {
        const _: () = {
            const fn sum<F: WireFamily>() -> usize {
                $(size_of_field(|value: &$ty<F>| &value.$field) +)+ 0
            }
            assert!(sum::<V4>() == size_of::<$ty<V4>>(), "padding in IPv4's");
            assert!(sum::<V6>() == size_of::<$ty<V6>>(), "padding in IPv6's");
        };
        // A struct pattern without `..` names every field; each is plain old data.
        const _: () = {
            const fn is_pod<T: Pod>(_: &T) {}
            #[expect(dead_code, reason = "it is there to be type-checked")]
            const fn every_field_is_pod<F: WireFamily>(value: &$ty<F>) {
                let $ty { $($field),+ } = value;
                $(is_pod($field);)+
            }
        };
        // SAFETY: every field is plain old data, for which all zeros is a value.
        unsafe impl<F: WireFamily> Zeroable for $ty<F> {}
        // SAFETY: the struct is `repr(C)`, its fields are plain old data, and for the two families
        // there are (the trait is sealed) they leave no byte of it over.
        unsafe impl<F: WireFamily> Pod for $ty<F> {}
    };
}

const fn size_of_field<T, M>(_: fn(&T) -> &M) -> usize {
    size_of::<M>()
}

no_padding!(Config {
    stamp_key,
    tcp_permit_ns,
    udp_permit_ns,
    icmp_permit_ns,
    sctp_permit_ns,
    generation,
    fastpath,
    vtep,
    network,
    network_mask,
    subnet,
    subnet_mask,
    vtep_mac,
    vxlan_port,
    vni,
    tunnel,
    source_port_min,
    source_port_span,
    vtep_ifindex,
    pod_mtu,
    slow_mark,
    slow_mask,
    _pad2,
    closed,
    _pad3,
});
no_padding!(Node {
    flags,
    vtep,
    ipv4_sum,
    subnet,
    vtep_mac,
    prefix_len,
    _pad,
    encap,
    route_mtu,
    _pad2,
});
no_padding!(FlowKey {
    local,
    remote,
    local_port,
    remote_port,
    protocol,
    _pad
});
no_padding!(Match {
    src,
    src_mask,
    dst,
    dst_mask,
    src_ports,
    dst_ports,
    protocols,
    directions,
    _pad,
});
no_padding!(FlowWords { addresses, ports });
no_padding!(Entered { words, stamp, _pad });

/// Marks map keys and values as plain old data for aya. Without the feature `user` it only checks
/// that they are.
macro_rules! map_types {
    ($($ty:ty),+ $(,)?) => {$(
        const _: fn() = || {
            fn is_pod<T: bytemuck::Pod>() {}
            is_pod::<$ty>();
        };
        // SAFETY: the line above compiles only if `bytemuck::Pod` holds: any bit pattern is a
        // value and there is no padding, which is the whole contract of `aya::Pod`.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $ty {}
    )+};
}

map_types!(
    crate::addr::Ipv4Be,
    crate::addr::Ipv6Be,
    crate::addr::MacAddr,
    crate::flow::Flow,
    crate::node::Gateway,
    crate::node::Leaving,
    crate::node::Nexthop,
    crate::node::Peer,
    crate::node::PodKey,
    crate::node::PodPort,
    crate::outcome::Counter,
    crate::route::RouteEntry,
    crate::short::Short,
    crate::slow::Slow,
);

/// As `map_types`, for types over a family.
macro_rules! family_map_types {
    ($($ty:ident),+ $(,)?) => {$(
        const _: fn() = || {
            fn is_pod<T: bytemuck::Pod>() {}
            fn of_any_family<F: WireFamily>() {
                is_pod::<$ty<F>>();
            }
            of_any_family::<V4>();
        };
        // SAFETY: as in `map_types`.
        #[cfg(feature = "user")]
        unsafe impl<F: WireFamily> aya::Pod for $ty<F> {}
    )+};
}

family_map_types!(Config, Entered, FlowKey, Node);
