//! Starting the daemon on a lab's node the way a service manager does.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use overlay_tests::{
    http,
    lab::{Builder, Lab, Node, agent::Launch},
    process::{Daemon, Lifetime},
};

/// For whatever a working daemon does at once, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Has the daemon serve its health pages.
pub const HEALTH: [&str; 2] = ["--healthz-ip=127.0.0.1", "--healthz-port=2401"];

/// Status code and body of `GET path` of the node's health pages.
pub fn get(node: &Node, path: &str) -> Result<(u16, String)> {
    http::get(&node.namespace, ([127, 0, 0, 1], 2401).into(), path)
}

pub fn one_node() -> Builder {
    Lab::builder().nodes(1)
}

/// What ships with the project, below `deploy/`.
pub fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

/// The agent's command line on `node`, to be run by `wrapper`, such as `setpriv` with its options.
pub fn agent_command(lab: &Lab, node: &Node, wrapper: &[&str], extra: &[&str]) -> Result<Command> {
    let launch = Launch {
        wrapper: wrapper.iter().map(|&word| word.to_owned()).collect(),
        ..Launch::new(lab.store(), extra)
    };
    launch.command(node)
}

pub fn start(lab: &Lab, name: &str, command: Command) -> Result<Daemon> {
    Daemon::start(
        name,
        command,
        &lab.dir().join(format!("{name}.log")),
        Lifetime::Bound,
    )
}

/// The value of a setting of a unit file.
pub fn unit_setting(unit: &Path, key: &str) -> Result<String> {
    let text = fs::read_to_string(unit).with_context(|| format!("read {}", unit.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .map(str::to_owned)
        .with_context(|| format!("{} in {}", key, unit.display()))
}
