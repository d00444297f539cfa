//! Finds the BPF object that `src/object.rs` embeds. Building it here would hide a second toolchain
//! inside `cargo build`, so a missing object stops the build and names the command that makes it.

use std::{
    env,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "OVERLAY_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = env::var_os(VARIABLE).map_or_else(default_object, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(path) => println!("cargo::rustc-env=OVERLAY_OBJECT_PATH={}", path.display()),
        Err(error) => println!(
            "cargo::error=the BPF object {} cannot be read ({error}); build it with `cargo xtask \
             build-ebpf --install`, or name another one in {VARIABLE}",
            object.display()
        ),
    }
}

fn default_object() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .unwrap_or(package)
        .join("target/bpf/overlay.o")
}
