//! The documents, as far as tests compare them with the code.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// The folder of the whole project.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}

/// The text of a file below `docs`.
pub fn document(name: &str) -> Result<String> {
    let path = root().join("docs").join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// The text below the heading, up to the next one of its level.
pub fn section<'a>(document: &'a str, heading: &str) -> Result<&'a str> {
    let start = format!("\n## {heading}\n");
    let (_, rest) = document
        .split_once(&start)
        .with_context(|| format!("no section {heading}"))?;
    Ok(rest.split("\n## ").next().unwrap_or(rest))
}

/// The cells of each table row whose first cell is a name in backticks.
pub fn rows(section: &str) -> Vec<Vec<&str>> {
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}
