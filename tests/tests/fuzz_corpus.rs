//! The corpus of the fuzz targets, replayed: what once was interesting to a parser stays harmless.

use std::{collections::BTreeSet, fs, path::Path};

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use targets::TARGETS;

const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz");

fn names(dir: &str) -> BTreeSet<String> {
    let dir = Path::new(FUZZ).join(dir);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let stem = path.file_stem().expect("a name");
            stem.to_str().expect("UTF-8").to_owned()
        })
        .collect()
}

#[test]
fn every_input_of_the_corpus_is_taken_without_trouble() {
    for (name, target) in TARGETS {
        let dir = Path::new(FUZZ).join("corpus").join(name);
        let mut count = 0;
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{name}: {error}")) {
            let path = entry.expect("an entry").path();
            let input = fs::read(&path).expect("a file");
            // Should it panic, the last line printed names the input.
            println!("{}", path.display());
            target(&input);
            count += 1;
        }
        assert!(count >= 2, "{name} has {count} inputs");
    }
}

#[test]
fn every_target_has_a_fuzzer_and_a_corpus() {
    let targets: BTreeSet<_> = TARGETS.map(|(name, _)| name.to_owned()).into();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}
