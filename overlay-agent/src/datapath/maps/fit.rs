//! The check of a pinned map against what it must be.

use std::path::Path;

use aya::maps::{MapInfo, MapType};
use overlay_common::maps::{Kind, MapSpec};

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

/// Compares the map pinned at `path`; `None` if nothing is pinned there.
pub fn compare(spec: &MapSpec, path: &Path) -> Option<Fit> {
    if !path.exists() {
        return None;
    }
    Some(match MapInfo::from_pin(path) {
        Ok(info) => fit(
            spec,
            &Found {
                map_type: info.map_type().ok(),
                key_size: info.key_size(),
                value_size: info.value_size(),
                max_entries: info.max_entries(),
            },
        ),
        Err(error) => Fit::Different {
            found: error.to_string(),
            wanted: describe(spec),
        },
    })
}

fn fit(spec: &MapSpec, found: &Found) -> Fit {
    if found.map_type == Some(map_type(spec.kind))
        && found.key_size as usize == spec.key_size()
        && found.value_size as usize == spec.value.size
    {
        return if found.max_entries as usize == spec.max_entries {
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
        wanted: describe(spec),
    }
}

fn describe(spec: &MapSpec) -> String {
    format!(
        "{:?}, key {} bytes, value {} bytes",
        map_type(spec.kind),
        spec.key_size(),
        spec.value.size
    )
}

const fn map_type(kind: Kind) -> MapType {
    match kind {
        Kind::Hash => MapType::Hash,
        Kind::Array => MapType::Array,
        Kind::PerCpuArray => MapType::PerCpuArray,
        Kind::LruHash => MapType::LruHash,
        Kind::LpmTrie => MapType::LpmTrie,
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
    use overlay_common::maps;

    use super::*;

    #[test]
    fn a_map_of_another_layout_does_not_fit_and_one_of_another_size_is_told_apart() {
        let [routes, ..] = &maps::TABLE;
        let found = |value_size, max_entries| Found {
            map_type: Some(MapType::LpmTrie),
            key_size: 8,
            value_size,
            max_entries,
        };
        assert_eq!(fit(routes, &found(8, 32_768)), Fit::Same);
        assert_eq!(fit(routes, &found(8, 64)), Fit::Resized { found: 64 });
        assert_eq!(
            fit(routes, &found(4, 64)),
            Fit::Different {
                found: "LpmTrie, key 8 bytes, value 4 bytes".into(),
                wanted: "LpmTrie, key 8 bytes, value 8 bytes".into(),
            }
        );
    }
}
