//! The daemon.

use std::process::ExitCode;

use crate::config::DaemonOptions;

/// Runs the daemon until it is told to stop.
#[expect(clippy::unused_async, reason = "the daemon awaits its tasks here")]
pub async fn run(_options: DaemonOptions) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no daemon; only the subcommands work")
}
