//! Decides whether the object must be rebuilt: a hash of everything it is made from.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A hash of the inputs as text, for the stamp file. It only detects changes, so the standard
/// library's hasher is enough; another xtask toolchain at worst causes one rebuild.
pub fn of(roots: &[PathBuf], settings: &[String]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for root in roots {
        for file in files(root)? {
            let content =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            file.hash(&mut hasher);
            content.hash(&mut hasher);
        }
    }
    settings.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

/// Every file below `root`, in a stable order, without cargo's output; or `root`, if it is a file.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    if root.is_file() {
        return Ok(vec![root.to_path_buf()]);
    }
    let mut found = Vec::new();
    let entries = fs::read_dir(root).with_context(|| format!("cannot list {}", root.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", root.display()))?
            .path();
        if path.file_name().is_some_and(|name| name == "target") {
            continue;
        }
        found.extend(files(&path)?);
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(dir: &Path) {
        fs::create_dir_all(dir.join("src")).expect("a writable directory");
        fs::write(dir.join("src/main.rs"), "fn main() {}").expect("a writable file");
        fs::write(dir.join("Cargo.toml"), "[package]").expect("a writable file");
    }

    fn settings(flag: &str) -> Vec<String> {
        vec!["rustc 1.96.0".to_owned(), flag.to_owned()]
    }

    #[test]
    fn the_same_inputs_have_the_same_fingerprint() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        tree(dir.path());
        let roots = [dir.path().to_path_buf()];
        assert_eq!(
            of(&roots, &settings("-O")).expect("readable"),
            of(&roots, &settings("-O")).expect("readable")
        );
    }

    #[test]
    fn content_names_and_settings_all_count() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        tree(dir.path());
        let roots = [dir.path().to_path_buf()];
        let mut seen = vec![of(&roots, &settings("-O")).expect("readable")];
        seen.push(of(&roots, &settings("-g")).expect("readable"));
        fs::write(dir.path().join("src/main.rs"), "fn main() { }").expect("a writable file");
        seen.push(of(&roots, &settings("-O")).expect("readable"));
        fs::rename(
            dir.path().join("src/main.rs"),
            dir.path().join("src/lib.rs"),
        )
        .expect("a writable directory");
        seen.push(of(&roots, &settings("-O")).expect("readable"));
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count, "{seen:?}");
    }

    #[test]
    fn build_output_does_not_count() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        tree(dir.path());
        let roots = [dir.path().to_path_buf()];
        let before = of(&roots, &[]).expect("readable");
        fs::create_dir(dir.path().join("target")).expect("a writable directory");
        fs::write(dir.path().join("target/overlay"), "object").expect("a writable file");
        assert_eq!(of(&roots, &[]).expect("readable"), before);
    }

    #[test]
    fn an_absent_input_is_named() {
        let error = of(&[PathBuf::from("/overlay/absent")], &[]).expect_err("it does not exist");
        assert!(
            format!("{error:#}").contains("/overlay/absent"),
            "{error:#}"
        );
    }
}
