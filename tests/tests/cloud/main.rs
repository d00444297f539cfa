//! Nodes in clouds, whose routes carry what pods send. They need the program that speaks with clouds, and an
//! emulator of AWS: `cargo xtask test --cloud` makes both.

mod aws;
mod gce;

use anyhow::Result;
use overlay_tests::{
    cloud::{self, Programs},
    lab::{Builder, Lab, scenario},
    requirements::announce_skip,
};

/// Runs `test` on a lab, or says that there are no programs for it.
fn with_programs(
    name: &str,
    builder: Builder,
    test: impl FnOnce(&mut Lab, &Programs) -> Result<()>,
) {
    let Some(programs) = cloud::programs() else {
        return announce_skip(
            name,
            "no overlay-cloud and no moto were made here: `cargo xtask test --cloud` does it",
        );
    };
    scenario(builder, |lab| test(lab, &programs));
}
