//! Checks a built object: what bpftool, libbpf and a person with `bpftool map dump` need of it.

use anyhow::{Context, Result, bail};
use aya_obj::{Map, Object, generated::bpf_map_type};

use crate::build_ebpf::Flavour;

/// The map of `aya-log-ebpf`, declared in the legacy way.
const LOG_MAP: &str = "AYA_LOGS";

/// What the object contains, by name, sorted.
#[derive(Debug)]
pub struct Contents {
    pub programs: Vec<String>,
    pub maps: Vec<String>,
}

/// Reads an object and refuses it if it has a legacy map, a map without BTF types, or no BTF. Only the
/// flavour that logs has the map of the log, and must have it.
pub fn check(bytes: &[u8], flavour: Flavour) -> Result<Contents> {
    let object = Object::parse(bytes).context("it is not a BPF object")?;
    inspect(&object, flavour)
}

fn inspect(object: &Object, flavour: Flavour) -> Result<Contents> {
    if object.btf.is_none() {
        bail!("it has no .BTF section; compile with debug info and link with --btf");
    }
    let logs = flavour == Flavour::Logging;
    if logs != object.maps.contains_key(LOG_MAP) {
        bail!("the map {LOG_MAP} belongs to the flavour that logs, and to no other");
    }
    for (name, map) in object.maps.iter().filter(|(name, _)| *name != LOG_MAP) {
        if let Some(problem) = map_problem(map) {
            bail!("map {name}: {problem}");
        }
    }
    let mut programs: Vec<String> = object.programs.keys().cloned().collect();
    programs.sort();
    let mut maps: Vec<String> = object.maps.keys().cloned().collect();
    maps.sort();
    if programs.is_empty() {
        bail!("it contains no program");
    }
    Ok(Contents { programs, maps })
}

fn map_problem(map: &Map) -> Option<&'static str> {
    match map {
        // .rodata, .data and .bss: the loader derives their types itself.
        Map::Legacy(map) if map.symbol_index.is_none() => None,
        Map::Legacy(_) => {
            Some("declared in the legacy `maps` section, which libbpf refuses; use #[btf_map]")
        }
        Map::Btf(map_definition) => {
            // A ring buffer has records, not keys and values.
            let typed = map.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32
                || map_definition.def.btf_value_type_id != 0;
            (!typed).then_some("no BTF type for its value; bpftool could not print its fields")
        }
    }
}
