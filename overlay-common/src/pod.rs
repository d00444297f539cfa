//! `aya::Pod` for the map types.
//!
//! The only unsafe code of the crate. `aya::Pod` asks that every bit pattern is valid and that no
//! byte is padding; that is what `bytemuck::Pod` proves when it is derived, and the macro demands
//! it of each type it is applied to.
#![allow(
    unsafe_code,
    reason = "aya::Pod is an unsafe trait; bytemuck::Pod is the proof"
)]

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
    crate::addr::MacAddr,
    crate::config::Config,
    crate::flow::Flow,
    crate::flow::FlowKey4,
    crate::node::Gateway,
    crate::node::Nexthop,
    crate::node::Node,
    crate::node::Peer,
    crate::node::PodKey,
    crate::node::PodPort,
    crate::outcome::Counter,
    crate::route::Route,
);
