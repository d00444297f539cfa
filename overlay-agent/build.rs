//! Finds the BPF objects that `src/object.rs` embeds. Building them here would hide a second toolchain
//! inside `cargo build`, so a missing object stops the build and names the command that makes it. The
//! flavour that logs is embedded if there is one.

use std::{
    env,
    path::{Path, PathBuf},
};

const OBJECT: &str = "OVERLAY_EBPF_OBJECT";
const LOGGING_OBJECT: &str = "OVERLAY_EBPF_LOGGING_OBJECT";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_logging_object)");
    let directory = default_directory();
    let object = named(OBJECT);
    // One flavour of another build would not fit the maps of the other.
    let logging = named(LOGGING_OBJECT).or_else(|| {
        let logging = directory.join("overlay-log.o");
        (object.is_none() && logging.exists()).then_some(logging)
    });
    let object = object.unwrap_or_else(|| directory.join("overlay.o"));
    embed(&object, OBJECT, "OVERLAY_OBJECT_PATH");
    if let Some(logging) = logging {
        println!("cargo::rustc-cfg=has_logging_object");
        embed(&logging, LOGGING_OBJECT, "OVERLAY_LOGGING_OBJECT_PATH");
    }
    // A file that is not there yet cannot be watched.
    println!("cargo::rerun-if-changed={}", directory.display());
}

fn embed(object: &Path, variable: &str, path_variable: &str) {
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(path) => println!("cargo::rustc-env={path_variable}={}", path.display()),
        Err(error) => println!(
            "cargo::error=the BPF object {} cannot be read ({error}); build it with `cargo xtask \
             build-ebpf --install`, or name another one in {variable}",
            object.display()
        ),
    }
}

fn named(variable: &str) -> Option<PathBuf> {
    println!("cargo::rerun-if-env-changed={variable}");
    env::var_os(variable).map(PathBuf::from)
}

/// Where `cargo xtask build-ebpf` puts what it builds.
fn default_directory() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).join("target/bpf")
}
