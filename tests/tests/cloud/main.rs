//! Nodes in clouds, whose routes carry what pods send. They need the program that speaks with clouds, and an
//! emulator of AWS: `cargo xtask test --cloud` makes both.

mod aws;
mod gce;

use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_tests::{
    cloud::{self, Programs},
    lab::{Builder, Lab, Node, scenario},
    requirements::announce_skip,
    wait::wait_for,
};

/// What an agent may take to notice a change and to have the cloud follow.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until an agent's log has all these texts.
fn wait_said(node: &Node, texts: &[&str]) -> Result<()> {
    wait_for("the problem to be told", PATIENCE, || {
        let log = cloud::log(node)?;
        for text in texts {
            ensure!(log.contains(text), "no `{text}` in\n{log}");
        }
        Ok(())
    })
}

/// Waits until an agent has no complaint.
fn wait_in_sync(node: &Node) -> Result<()> {
    wait_for("the node to be in sync", PATIENCE, || {
        let (code, text) = node.status()?;
        ensure!(code == Some(0), "{code:?} {text}");
        Ok(())
    })
}

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
