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

/// Every file of the repository whose name ends so.
fn files(extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![root().to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                pending.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// What shows each row of "When things go wrong", by the beginning of the row.
const WHEN_THINGS_GO_WRONG: &[(&str, &[&str])] = &[
    (
        "agent killed",
        &["killing_and_restarting_the_agent_under_traffic_loses_no_packet"],
    ),
    (
        "new version, same map layouts",
        &["no_packet_meets_an_interface_without_a_program_while_agents_change"],
    ),
    (
        "new version, other layouts",
        &["an_upgrade_to_other_map_layouts_under_traffic_loses_no_packet"],
    ),
    (
        "etcd away, at start",
        &[
            "an_absent_etcd_is_waited_for",
            "an_agent_that_starts_while_etcd_is_away_costs_nobody_a_packet",
        ],
    ),
    (
        "etcd away, later",
        &[
            "nothing_changes_while_etcd_is_away_and_news_arrive_when_it_is_back",
            "an_etcd_that_lost_its_data_gets_the_leases_back",
        ],
    ),
    (
        "the node's lease is deleted or lost",
        &[
            "a_deleted_lease_is_written_again_under_the_same_key_while_pods_talk",
            "a_lease_deleted_and_written_again_costs_nobody_a_packet",
        ],
    ),
    (
        "all leases ran out",
        &[
            "a_cluster_whose_leases_all_ran_out_forwards_and_gets_them_back",
            "after_a_mass_expiry_everyone_has_time_to_register_again",
        ],
    ),
    (
        "another node claims the subnet",
        &["a_claimed_subnet_makes_the_node_not_ready_until_the_claim_is_gone"],
    ),
    (
        "`flannel.<VNI>` deleted",
        &[
            "a_deleted_device_is_back_with_all_peers_and_its_mac_address",
            "while_the_device_is_made_anew_fast_flows_lose_nothing",
        ],
    ),
    (
        "underlay address or MTU changes",
        &[
            "a_new_underlay_address_is_published_under_the_same_key",
            "a_smaller_underlay_mtu_reaches_the_device_and_the_subnet_file",
        ],
    ),
    (
        "a virtual address comes beside",
        &["a_virtual_address_on_two_nodes_at_once_is_taken_by_neither"],
    ),
    (
        "a peer moves to another address",
        &["a_peer_that_moves_keeps_its_node_and_disturbs_no_flow_and_one_that_goes_flushes"],
    ),
    (
        "a peer's lease ends",
        &["a_peer_deleted_for_good_is_gone_after_the_grace_and_one_that_is_replaced_at_once"],
    ),
    // No machine can be put to sleep for a test.
    (
        "the machine slept",
        &[
            "each_sleep_is_noticed_once_with_its_length",
            "a_machine_that_slept_past_its_lease_writes_it_again_at_once_and_suspects_nobody",
        ],
    ),
    (
        "a flush fails",
        &[
            "a_failed_flush_is_tried_until_it_succeeds_and_the_node_is_not_ready_meanwhile",
            "a_rule_ends_fast_flows_although_the_configuration_stays_locked",
        ],
    ),
    (
        "maps full",
        &["a_peer_that_finds_no_room_has_the_kernel_tier_until_there_is_some"],
    ),
    (
        "a flow loses its entry (LRU)",
        &["a_full_flow_table_stops_nobody"],
    ),
    (
        "kernel without tcx, BPF refused",
        &[
            "without_permission_for_bpf_the_kernel_tier_serves_and_says_so_once",
            "without_permission_for_bpf_an_agent_that_needs_it_ends",
        ],
    ),
];

#[test]
fn what_is_said_of_things_that_go_wrong_is_tested_row_by_row() -> Result<()> {
    let architecture = document("architecture.md")?;
    let table = section(&architecture, "When things go wrong")?;
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut tests = WHEN_THINGS_GO_WRONG.iter();
    let mut sources = String::new();
    for file in files("rs")? {
        sources += &fs::read_to_string(file)?;
    }
    for row in rows {
        let (event, names) = tests.next().with_context(|| format!("no test of {row}"))?;
        assert!(row.starts_with(&format!("| {event}")), "{event}: {row}");
        for name in *names {
            assert!(
                sources.contains(&format!("fn {name}(")),
                "{event}: no {name}"
            );
        }
    }
    assert!(tests.next().is_none(), "tests without a row");
    Ok(())
}

#[test]
fn every_link_between_documents_leads_somewhere() -> Result<()> {
    let files = files("md")?;
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
