//! What is pinned already, before the object is loaded on it.

use overlay_common::maps;

use crate::datapath::{
    error::DatapathError,
    maps::fit::{Fit, compare},
    pins::{PinDir, remove_pin},
};

/// Capacities of the two flow tables, which are allocated whole.
#[derive(Clone, Copy, Debug)]
pub struct FlowTables {
    pub ipv4: u32,
    pub ipv6: u32,
}

impl FlowTables {
    /// Of the flow table with this name.
    fn capacity(self, map: &str) -> Option<u32> {
        match map {
            maps::FLOWS4 => Some(self.ipv4),
            maps::FLOWS6 => Some(self.ipv6),
            _ => None,
        }
    }
}

/// aya adopts whatever is pinned, so the layout is compared first. A flow table of another capacity
/// is replaced: it is a cache.
pub fn check_pinned_maps(pins: &PinDir, flows: FlowTables) -> Result<(), DatapathError> {
    for mut spec in maps::TABLE {
        let capacity = flows.capacity(spec.name);
        if let Some(entries) = capacity {
            spec.max_entries = per_cpu_capacity(entries)?;
        }
        let path = pins.map(spec.name);
        match compare(&spec, &path) {
            None | Some(Fit::Same) => {}
            Some(Fit::Resized { .. }) if capacity.is_some() => remove_pin(&path)?,
            Some(Fit::Resized { found }) => {
                return Err(DatapathError::Layout {
                    path,
                    found: format!("{found} entries"),
                    wanted: format!("{} entries", spec.max_entries),
                });
            }
            Some(Fit::Different { found, wanted }) => {
                return Err(DatapathError::Layout {
                    path,
                    found,
                    wanted,
                });
            }
        }
    }
    Ok(())
}

/// What the kernel makes of `entries` in a table with one LRU list per CPU: a multiple of the
/// number of possible CPUs (`htab_map_alloc`).
fn per_cpu_capacity(entries: u32) -> Result<usize, DatapathError> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, source)| DatapathError::HostFact {
            path: path.into(),
            source,
        })?
        .max(1);
    Ok((entries as usize).next_multiple_of(cpus))
}
