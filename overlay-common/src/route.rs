//! `OVL_ROUTES4` and `OVL_ROUTES6`: which node a pod address lives on.

use bytemuck::{Pod, Zeroable};

/// Value of the longest-prefix-match trie, whose key is a [`RouteKey`].
///
/// Alignment 4: the kernel places trie values right behind the 4 bytes of key data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RouteEntry {
    /// Index into the nodes and next hops of the family.
    pub node: u32,
    /// Reserved, zero.
    pub flags: u32,
}

/// Key of the trie, as the kernel has it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, packed)]
pub struct RouteKey<B> {
    /// Bits of `address` that count.
    pub prefix_len: u32,
    pub address: B,
}
