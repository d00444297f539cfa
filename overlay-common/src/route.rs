//! `OVL_ROUTES4` and `OVL_ROUTES6`: which node a pod address lives on.

use bytemuck::{Pod, Zeroable};

/// Value of the longest-prefix-match trie. The key is the trie's own `{prefix_len, data}` with the
/// subnet's address in `data`.
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
