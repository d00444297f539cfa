//! Clouds for a lab: an emulator of AWS, doubles of the metadata services and of Compute Engine.

pub mod aws;
pub mod gce;

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{Lab, Node, agent::Launch},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_mins(1);

/// What `cargo xtask test --cloud` makes.
const MADE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/cloud");
/// The region of the lab.
pub const REGION: &str = "eu-west-1";

/// The programs the tests need.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder that overlay-cloud is in.
    pub folder: PathBuf,
    /// The Python that has moto.
    pub python: PathBuf,
}

/// The programs, if they were made.
pub fn programs() -> Option<Programs> {
    let made = Path::new(MADE);
    let programs = Programs {
        folder: made.join("debug"),
        python: made.join("moto/bin/python"),
    };
    let is_there = programs.folder.join("overlay-cloud").exists() && programs.python.exists();
    is_there.then_some(programs)
}

/// How to start an agent that finds overlay-cloud, with these variables.
pub fn launch(lab: &Lab, programs: &Programs, variables: &[(&str, String)]) -> Result<Launch> {
    let path = env::var("PATH").context("no PATH")?;
    let path = format!("PATH={}:{path}", programs.folder.display());
    let variables = variables
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let words = ["env".to_owned(), path].into_iter().chain(variables);
    Ok(Launch {
        wrapper: words.collect(),
        ..Launch::new(lab.store(), &[])
    })
}

/// The agent's log.
pub fn log(node: &Node) -> Result<String> {
    node.with_agent(|agent| Ok(agent.log()))
}

/// Restarts the agent, and waits until it is ready.
pub fn restart(node: &Node, launch: &Launch) -> Result<()> {
    let ready = || Ok::<_, anyhow::Error>(log(node)?.matches(" INFO ready").count());
    let before = ready()?;
    node.stop_agent()?;
    node.launch(launch)?;
    wait_for("the agent to be ready again", PATIENCE, || {
        ensure!(ready()? > before, "{}", log(node)?);
        Ok(())
    })
}
