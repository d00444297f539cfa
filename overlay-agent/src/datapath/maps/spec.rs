//! What each map must be, and the check of a pinned one against it.

use std::path::Path;

use aya::maps::{MapInfo, MapType, lpm_trie::Key};
use overlay_common::{
    addr::{Ipv4Be, Ipv6Be},
    config::Config,
    family::{V4, V6},
    flow::{Flow, FlowKey4, FlowKey6},
    maps,
    node::{Gateway, Leaving, MOVE_SLOTS, Nexthop, Node, Peer, PodKey, PodPort},
    outcome::{COUNTERS, Counter},
    route::Route,
    slow::Slow,
};

/// Kind, sizes and capacity of a map.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    pub name: &'static str,
    pub map_type: MapType,
    pub key_size: usize,
    pub value_size: usize,
    pub max_entries: usize,
}

/// Every map of the object, [`maps::ALL`] with its layout.
pub const MAPS: [MapSpec; 19] = [
    spec::<Key<Ipv4Be>, Route>(maps::ROUTES4, MapType::LpmTrie, maps::MAX_ROUTES),
    spec::<u32, Node<V4>>(maps::NODES, MapType::Array, maps::MAX_NODES),
    spec::<u32, Nexthop>(maps::NEXTHOPS, MapType::Array, maps::MAX_NODES),
    spec::<Ipv4Be, Peer>(maps::PEERS4, MapType::Hash, maps::MAX_NODES),
    spec::<FlowKey4, Flow>(maps::FLOWS4, MapType::LruHash, maps::MAX_FLOWS),
    spec::<u32, Config<V4>>(maps::CONFIG, MapType::Array, 1),
    spec::<Key<Ipv6Be>, Route>(maps::ROUTES6, MapType::LpmTrie, maps::MAX_ROUTES),
    spec::<u32, Node<V6>>(maps::NODES6, MapType::Array, maps::MAX_NODES),
    spec::<u32, Nexthop>(maps::NEXTHOPS6, MapType::Array, maps::MAX_NODES),
    spec::<Ipv6Be, Peer>(maps::PEERS6, MapType::Hash, maps::MAX_NODES),
    spec::<FlowKey6, Flow>(maps::FLOWS6, MapType::LruHash, maps::MAX_FLOWS),
    spec::<u32, Config<V6>>(maps::CONFIG6, MapType::Array, 1),
    spec::<u32, Gateway>(maps::GATEWAYS, MapType::Hash, maps::MAX_GATEWAYS),
    spec::<PodKey, PodPort>(maps::PODS, MapType::LruHash, maps::MAX_PODS),
    spec::<u32, u64>(maps::LEARNED, MapType::LruHash, maps::MAX_PODS),
    spec::<u32, u32>(maps::MOVES, MapType::Array, MOVE_SLOTS),
    spec::<u32, Leaving>(maps::LEAVING, MapType::PerCpuArray, 1),
    spec::<u32, Slow>(maps::SLOW, MapType::Array, 1),
    spec::<u32, Counter>(maps::STATS, MapType::PerCpuArray, COUNTERS),
];

const fn spec<K, V>(name: &'static str, map_type: MapType, max_entries: usize) -> MapSpec {
    MapSpec {
        name,
        map_type,
        key_size: size_of::<K>(),
        value_size: size_of::<V>(),
        max_entries,
    }
}

/// How a pinned map compares with its spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Usable as it is.
    Same,
    /// The same layout with another capacity.
    Resized { found: u32 },
    /// Not usable.
    Different { found: String, wanted: String },
}

impl MapSpec {
    /// Compares the map pinned at `path`; `None` if nothing is pinned there.
    pub fn compare(&self, path: &Path) -> Option<Fit> {
        if !path.exists() {
            return None;
        }
        Some(match MapInfo::from_pin(path) {
            Ok(info) => self.fit(&Found {
                map_type: info.map_type().ok(),
                key_size: info.key_size(),
                value_size: info.value_size(),
                max_entries: info.max_entries(),
            }),
            Err(error) => Fit::Different {
                found: error.to_string(),
                wanted: self.describe(self.map_type),
            },
        })
    }

    fn fit(&self, found: &Found) -> Fit {
        if found.map_type == Some(self.map_type)
            && found.key_size as usize == self.key_size
            && found.value_size as usize == self.value_size
        {
            return if found.max_entries as usize == self.max_entries {
                Fit::Same
            } else {
                Fit::Resized {
                    found: found.max_entries,
                }
            };
        }
        Fit::Different {
            found: format!(
                "{}, key {} bytes, value {} bytes",
                found
                    .map_type
                    .map_or_else(|| "unknown type".into(), |ty| format!("{ty:?}")),
                found.key_size,
                found.value_size,
            ),
            wanted: self.describe(self.map_type),
        }
    }

    fn describe(&self, map_type: MapType) -> String {
        format!(
            "{map_type:?}, key {} bytes, value {} bytes",
            self.key_size, self.value_size
        )
    }
}

/// What the kernel says about a pinned map.
struct Found {
    map_type: Option<MapType>,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_spec() {
        assert_eq!(MAPS.map(|spec| spec.name), maps::ALL);
    }

    #[test]
    fn a_map_of_another_layout_does_not_fit_and_one_of_another_size_is_told_apart() {
        let [routes, ..] = MAPS;
        let found = |value_size, max_entries| Found {
            map_type: Some(MapType::LpmTrie),
            key_size: 8,
            value_size,
            max_entries,
        };
        assert_eq!(routes.fit(&found(8, 32_768)), Fit::Same);
        assert_eq!(routes.fit(&found(8, 64)), Fit::Resized { found: 64 });
        assert_eq!(
            routes.fit(&found(4, 64)),
            Fit::Different {
                found: "LpmTrie, key 8 bytes, value 4 bytes".into(),
                wanted: "LpmTrie, key 8 bytes, value 8 bytes".into(),
            }
        );
    }
}
