//! Pins as an agent of another build leaves them.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;

use super::{Node, underlay::NODE_INTERFACE};

impl Node {
    /// Leaves the pins as an agent does whose maps have the layouts of another version: in a directory of
    /// that name, and in version 1 with nothing that grants permits on the underlay. Its programs go on with
    /// their maps. Returns the directory.
    pub fn leave_pins_of_version(&self, version: u32) -> Result<PathBuf> {
        let maps = self.map_pin("OVL_CONFIG");
        let maps = maps.parent().context("the directory of the maps")?;
        let left = self.pin_dir.join(format!("v{version}"));
        fs::rename(maps, &left)?;
        if version == 1 {
            let underlay = self.namespace.ifindex(NODE_INTERFACE)?;
            fs::remove_file(self.pin_dir.join(format!("links/{underlay}-confirm")))?;
        }
        Ok(left)
    }

    /// The ids of the pinned maps, with their names.
    pub fn pinned_map_ids(&self) -> Result<Vec<(String, u32)>> {
        let any = self.map_pin("OVL_CONFIG");
        let maps = any.parent().context("the directory of the maps")?;
        let mut ids = Vec::new();
        for entry in fs::read_dir(maps)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            ids.push((
                name.to_string_lossy().into_owned(),
                MapInfo::from_pin(&path)?.id(),
            ));
        }
        ids.sort();
        Ok(ids)
    }
}
