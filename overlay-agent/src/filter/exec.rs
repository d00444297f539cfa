//! Runs the packet filter's commands: bounded in time, fed through stdin, and remembered, so that
//! [`super::watch`] can tell this agent's changes from everybody else's.

use std::{
    collections::VecDeque,
    env,
    ffi::OsStr,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::error::FilterError;

/// A command that has not ended by then is killed. Longer than any `--wait` given to iptables.
const DEADLINE: Duration = Duration::from_secs(20);

/// Children whose change notifications may still be on their way.
const REMEMBERED_WRITERS: usize = 64;

/// Looked in besides `$PATH`, which service managers often leave without the sbin directories.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Starts commands and remembers their process ids.
#[derive(Clone, Debug)]
pub struct Executor {
    dirs: Arc<[PathBuf]>,
    writers: Arc<Mutex<VecDeque<u32>>>,
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Executor {
    /// Finds commands in `$PATH` and the system directories.
    pub fn from_env() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        Self::in_dirs(env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from)))
    }

    /// Finds commands in these directories only.
    pub fn in_dirs(dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            dirs: dirs.into_iter().collect(),
            writers: Arc::default(),
        }
    }

    /// The full path of a command, if it is installed.
    pub fn find(&self, command: &str) -> Option<PathBuf> {
        let is_executable = |path: &PathBuf| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        self.dirs
            .iter()
            .map(|dir| dir.join(command))
            .find(is_executable)
    }

    /// Runs `command` to its end. A status other than 0 is an answer, not an error.
    pub async fn run<A: AsRef<OsStr>>(
        &self,
        command: &Path,
        args: &[A],
        stdin: &str,
    ) -> Result<Answer, FilterError> {
        let failed = |source: io::Error| FilterError::Exec {
            command: command.to_owned(),
            source,
        };
        let mut child = {
            // Held until the id is on record: a notification of the child's change is classified
            // under the same lock.
            let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
            let child = Command::new(command)
                .args(args)
                .env("LC_ALL", "C")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .map_err(failed)?;
            writers.extend(child.id());
            if writers.len() > REMEMBERED_WRITERS {
                writers.pop_front();
            }
            child
        };
        let input = child.stdin.take();
        let run = async {
            if let Some(mut input) = input {
                // A command that does not read its input has ended; its status tells why.
                match input.write_all(stdin.as_bytes()).await {
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => drop(input),
                }
            }
            child.wait_with_output().await
        };
        let output = timeout(DEADLINE, run)
            .await
            .map_err(|_| FilterError::Deadline {
                command: command.to_owned(),
                after: DEADLINE,
            })?
            .map_err(failed)?;
        Ok(Answer {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: one_line(&String::from_utf8_lossy(&output.stderr)),
        })
    }

    /// As [`run`](Self::run), where a status other than 0 is an error that carries stderr.
    pub async fn run_checked<A: AsRef<OsStr>>(
        &self,
        command: &Path,
        args: &[A],
        stdin: &str,
    ) -> Result<String, FilterError> {
        let answer = self.run(command, args, stdin).await?;
        if answer.success {
            Ok(answer.stdout)
        } else {
            Err(FilterError::refused(command, answer.stderr))
        }
    }

    /// Whether this process id is one of the commands started here. Ids are reused by the kernel
    /// only after thousands of processes, and a wrong answer costs one missed hint about a change
    /// that the periodic check finds anyway.
    pub(super) fn started(&self, pid: u32) -> bool {
        self.writers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&pid)
    }
}

/// Messages go into logs and `/readyz`, where a line is an entry.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}
