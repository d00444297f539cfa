//! The documents say what the code does: tables of outcomes and map fields, and links between files.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use overlay_agent::{object::OBJECT, output::grouped};
use overlay_common::{
    ABI_VERSION,
    maps::{self, Kind, MapSpec},
    outcome::{Hook, Outcome},
};
use overlay_tests::{
    btf::Btf,
    document::{document, root, rows, section},
};

#[test]
fn the_table_of_outcomes_is_that_of_the_code() -> Result<()> {
    let datapath = document("datapath.md")?;
    let found: Vec<Vec<String>> = rows(section(&datapath, "Outcomes")?)
        .iter()
        .map(|cells| {
            let (hooks, meaning) = (&cells[3..cells.len() - 1], cells[cells.len() - 1]);
            assert_eq!(hooks.len(), Hook::ALL.len(), "{cells:?}");
            for hook in hooks {
                assert!(["", "x", "never"].contains(hook), "{cells:?}");
            }
            [cells[0], cells[1], cells[2], meaning]
                .map(str::to_owned)
                .to_vec()
        })
        .collect();
    let wanted: Vec<Vec<String>> = Outcome::ALL
        .iter()
        .map(|&outcome| {
            vec![
                format!("`{}`", outcome.name()),
                (outcome as u32).to_string(),
                outcome.kind().name().to_owned(),
                outcome.describe().to_owned(),
            ]
        })
        .collect();
    assert_eq!(found, wanted, "docs/datapath.md, section Outcomes");
    Ok(())
}

#[test]
fn every_field_of_every_map_is_documented_with_its_place() -> Result<()> {
    let layout = document("map-layout.md")?;
    assert!(layout.contains(&format!("<pin-dir>/v{ABI_VERSION}/")));
    let btf = Btf::of_object(OBJECT)?;
    let found_maps = btf.maps()?;
    for name in maps::ALL {
        let map = found_maps
            .get(name)
            .with_context(|| format!("{name} is not in the object"))?;
        let mut wanted = BTreeSet::new();
        for id in [map.key, map.value] {
            if btf.struct_name(id)?.is_none() {
                continue;
            }
            for member in btf.members(id)? {
                if !member.name.starts_with('_') {
                    wanted.insert((format!("`{}`", member.name), member.offset, member.size));
                }
            }
        }
        let mut found = BTreeSet::new();
        for cells in rows(section(&layout, name)?) {
            found.insert((cells[0].to_owned(), cells[1].parse()?, cells[2].parse()?));
        }
        assert_eq!(found, wanted, "{name}: field, offset, size");
    }
    Ok(())
}

#[test]
fn every_map_is_documented_with_its_kind_and_capacity() -> Result<()> {
    let layout = document("map-layout.md")?;
    let headings = layout
        .lines()
        .filter_map(|line| line.strip_prefix("## OVL_"))
        .map(|name| format!("OVL_{name}"));
    assert_eq!(headings.collect::<Vec<_>>(), maps::ALL);
    for spec in maps::TABLE {
        let text = section(&layout, spec.name)?.trim_start();
        let twin = text
            .strip_prefix("As `")
            .and_then(|rest| rest.split('`').next());
        if let Some(twin) = twin {
            let twin = maps::TABLE.iter().find(|other| other.name == twin);
            let twin = twin.with_context(|| format!("the twin of {}", spec.name))?;
            assert_eq!(
                (spec.kind, spec.max_entries),
                (twin.kind, twin.max_entries),
                "{} and {}",
                spec.name,
                twin.name
            );
            continue;
        }
        let (kind, capacity) = description(&spec);
        let (head, _) = text.split_once('.').context("a sentence")?;
        assert!(
            head.starts_with(kind) && head.contains(&capacity),
            "{}: {kind}, {capacity}",
            spec.name
        );
    }
    Ok(())
}

/// How the document puts what a map is.
fn description(spec: &MapSpec) -> (&'static str, String) {
    let kind = match spec.kind {
        Kind::Hash => "Hash,",
        Kind::Array => "Array,",
        Kind::PerCpuArray => "Per-CPU array,",
        Kind::LruHash => "LRU hash",
        Kind::LpmTrie => "Longest-prefix-match trie,",
    };
    let unit = if spec.max_entries == 1 {
        "entry"
    } else {
        "entries"
    };
    let number = grouped(spec.max_entries as u64);
    (kind, format!(" {number} {unit}"))
}

/// Every Markdown file of the repository.
fn markdown() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![root().to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    Ok(files)
}

#[test]
fn every_link_between_documents_leads_somewhere() -> Result<()> {
    let files = markdown()?;
    assert!(files.len() > 10, "{files:?}");
    let mut broken = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let target = link.split('#').next().unwrap_or_default();
            let is_template = target.contains("MMMM");
            if target.is_empty() || target.contains("://") || is_template {
                continue;
            }
            let parent = file.parent().unwrap_or(root());
            if !parent.join(target).exists() {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    Ok(())
}
