//! What the agent gives back of its memory. A program of its own: other tests would map pages meanwhile.

use std::fs;

use overlay_agent::lifecycle::memory;

/// Resident pages of files, as `/proc/self/statm` counts them.
fn pages_of_files() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("procfs is mounted");
    let shared = statm.split(' ').nth(2).expect("statm has seven fields");
    shared.parse().expect("fields are numbers")
}

#[test]
fn what_of_the_program_is_not_in_use_is_unmapped_and_found_again() {
    let first = pages_of_files();
    memory::give_back();
    let then = pages_of_files();
    assert!(then < first, "{first} pages of files, then {then}");
    memory::give_back();
    let again = format!("{:?}", (pages_of_files() > 0, "constants", 1.5));
    assert_eq!(again, r#"(true, "constants", 1.5)"#);
}
