//! What an agent holds, so that a test can tell that nothing is left over.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use aya::{
    maps::MapInfo,
    programs::{loaded_links, loaded_programs},
};
use overlay_common::maps;

use super::Node;

/// What an agent holds, and the kernel for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    pub descriptors: usize,
    pub pins: usize,
    pub rss_kib: u64,
    /// Those that use the node's maps, attached or not, pinned or not.
    pub programs: usize,
    /// Those that run one of these programs.
    pub links: usize,
}

impl Holdings {
    pub fn of(node: &Node) -> Result<Self> {
        let pid = node.with_agent(|agent| Ok(agent.pid()))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        // Without what is mapped of the program itself, which grows with each part that runs first.
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let rss = rss.and_then(|rss| rss.split_whitespace().next());
        let map = MapInfo::from_pin(node.map_pin(maps::STATS))?.id();
        let mut programs = BTreeSet::new();
        // Programs and links of other tests come and go meanwhile.
        for program in loaded_programs().flatten() {
            if program.map_ids()?.is_some_and(|ids| ids.contains(&map)) {
                programs.insert(program.id());
            }
        }
        let links = loaded_links().flatten();
        let links = links.filter(|link| programs.contains(&link.program_id()));
        Ok(Self {
            programs: programs.len(),
            links: links.count(),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            pins: count_files(&node.pin_dir)?,
            rss_kib: rss.context("no RssAnon")?.parse()?,
        })
    }
}

fn count_files(dir: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        count += if path.is_dir() {
            count_files(&path)?
        } else {
            1
        };
    }
    Ok(count)
}
