//! Large maps without the room that filling them leaves.

use std::{collections::BTreeMap, mem};

/// Makes a map anew, which takes half the room where it was filled in order of its keys: each full node was divided
/// then, and its first half never got more.
pub fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = mem::take(map).into_iter().collect();
}
