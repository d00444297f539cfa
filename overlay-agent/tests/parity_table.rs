//! `docs/flannel-parity.md` claims that tests prove its rows; this one proves that they exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}

fn table() -> String {
    fs::read_to_string(root().join("docs/flannel-parity.md")).expect("the table")
}

/// The text of every Rust file of the workspace that may hold tests.
fn sources() -> String {
    let mut pending: Vec<PathBuf> = [
        "overlay-agent",
        "overlay-cloud/src",
        "overlay-common",
        "tests",
    ]
    .map(|part| root().join(part))
    .to_vec();
    let mut text = String::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            pending.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
    text
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_the_parity_table_names_exists() {
    let (table, sources) = (table(), sources());
    let is_test_name = |name: &&str| name.matches('_').count() >= 3;
    let names: Vec<&str> = quoted(&table).filter(is_test_name).collect();
    assert!(names.len() > 50, "{names:?}");
    let missing: Vec<&str> = names
        .into_iter()
        .filter(|name| {
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .filter(|name| {
            // One over both families has a parameter.
            let is_there = |next| sources.contains(&format!("fn {name}{next}"));
            !is_there('(') && !is_there('<')
        })
        .collect();
    assert!(missing.is_empty(), "these tests do not exist: {missing:#?}");
}

#[test]
fn the_parity_table_names_every_flag() {
    let table = table();
    let help = overlay_agent::config::flags::daemon_help(&[]);
    let (flags, _) = help
        .split_once("\nAccepted for compatibility")
        .expect("two parts");
    let flags: Vec<&str> = flags
        .lines()
        .filter_map(|line| line.strip_prefix("  --")?.split(' ').next())
        .collect();
    assert!(flags.len() > 30, "{flags:?}");
    let missing: Vec<&str> = flags
        .into_iter()
        .filter(|flag| !table.contains(&format!("`--{flag}`")))
        .collect();
    assert!(missing.is_empty(), "the table leaves out {missing:?}");
}
