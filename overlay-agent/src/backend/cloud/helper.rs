//! Starting the program that speaks with the cloud.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use thiserror::Error;
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

use super::exchange::{Answer, Request};

/// It belongs beside the agent, or on the `PATH`.
pub const PROGRAM: &str = "overlay-cloud";

/// Why the program did not answer.
#[derive(Debug, Error)]
pub enum HelperError {
    #[error("{PROGRAM} cannot be run: {0}")]
    Run(#[from] io::Error),
    #[error("{PROGRAM} took longer than {} s and was killed", .0.as_secs())]
    TimedOut(Duration),
    #[error("{PROGRAM} ended with {status}: {said}", status = .0.status, said = said(.0))]
    Failed(Output),
    #[error("{PROGRAM} is of another version than the agent: {0}")]
    Answer(#[from] serde_json::Error),
}

/// The program, if it is installed.
pub fn find() -> Option<PathBuf> {
    let agent = env::current_exe().ok();
    let beside = agent.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(env::split_paths(&path));
    let mut programs = folders.map(|folder| folder.join(PROGRAM));
    programs.find(|program| program.is_file())
}

/// Has the program do what a request says.
pub async fn ask(
    program: &Path,
    request: &Request,
    limit: Duration,
) -> Result<Answer, HelperError> {
    let output = timeout(limit, run(program, request)).await;
    let output = output.map_err(|_| HelperError::TimedOut(limit))??;
    if !output.status.success() {
        return Err(HelperError::Failed(output));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn run(program: &Path, request: &Request) -> Result<Output, HelperError> {
    let text = serde_json::to_vec(request)?;
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends at once says why.
        let _ = stdin.write_all(&text).await;
    }
    Ok(child.wait_with_output().await?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}
