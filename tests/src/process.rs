//! Child processes of a lab: they write to a log file, and none outlives its lab.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{
    sys,
    wait::{Hopeless, wait_for},
};

/// How long a process may take to end on SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// Whether a process ends with the process that started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Killed with its starter, however that ends.
    Bound,
    /// Stays when its starter ends.
    Detached,
}

/// A running daemon and its log.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    lifetime: Lifetime,
    child: Mutex<Child>,
}

impl Daemon {
    /// Starts `command` as the leader of its own process group. Standard output and error are
    /// appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path, lifetime: Lifetime) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        if lifetime == Lifetime::Bound {
            sys::die_with_parent(&mut command);
        }
        let child = spawn_from_lasting_thread(command).with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            lifetime,
            child: Mutex::new(child),
        })
    }

    pub fn pid(&self) -> u32 {
        self.with_child(|child| child.id())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal::kill(self.as_pid(), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// SIGKILL to the process and what it started.
    pub fn kill(&self) -> Result<()> {
        if self.try_wait()?.is_none() {
            signal::killpg(self.as_pid(), Signal::SIGKILL)?;
            self.with_child(Child::wait)?;
        }
        Ok(())
    }

    /// SIGTERM, and the status the process ends with.
    pub fn stop(&self) -> Result<ExitStatus> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(GRACE)
    }

    /// The status, if the process has ended.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        Ok(self.with_child(Child::try_wait)?)
    }

    pub fn wait_exit(&self, within: Duration) -> Result<ExitStatus> {
        wait_for(&format!("end of {}", self.name), within, || {
            match self.try_wait()? {
                Some(status) => Ok(status),
                None => bail!(
                    "pid {} is running; its log ends\n{}",
                    self.pid(),
                    self.log_tail(10)
                ),
            }
        })
    }

    /// A [`Hopeless`] error that says how it ended, unless the process is running.
    pub fn check_running(&self) -> Result<()> {
        let Some(status) = self.try_wait()? else {
            return Ok(());
        };
        let how = match status.signal() {
            Some(number) => format!("was ended by signal {number}"),
            None => format!("ended with {status}"),
        };
        let message = format!(
            "{} {how}; its log ends
{}",
            self.name,
            self.log_tail(15)
        );
        Err(Hopeless(message).into())
    }

    /// Everything the process has written.
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("{}: {error}", self.log.display()),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log(), lines)
    }

    /// Waits for a text in the log.
    pub fn wait_log(&self, text: &str, within: Duration) -> Result<()> {
        wait_for(
            &format!("`{text}` in the log of {}", self.name),
            within,
            || {
                if self.log().contains(text) {
                    return Ok(());
                }
                bail!("the log ends\n{}", self.log_tail(10))
            },
        )
    }

    fn as_pid(&self) -> Pid {
        Pid::from_raw(self.pid().cast_signed())
    }

    fn with_child<T>(&self, body: impl FnOnce(&mut Child) -> T) -> T {
        body(&mut self.child.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Bound
            && let Err(error) = self.kill()
        {
            eprintln!("cannot kill {}: {error:#}", self.name);
        }
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let mut kept = VecDeque::with_capacity(lines);
    for line in text.lines() {
        if kept.len() == lines {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    kept.make_contiguous().join("\n")
}

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// The kernel ties "kill me with my parent" to the thread that forks, so all forks happen on one
/// thread that lives as long as the process.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    static FORKER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in queue {
                // A requester that is gone has nothing to do with the child: it is dropped.
                drop(reply.send(command.spawn()));
            }
        });
        Mutex::new(jobs)
    });
    let (reply, answer) = mpsc::channel();
    FORKER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, reply))?;
    Ok(answer.recv()??)
}

/// Kills process `pid`, which need not be a child, and waits until it is gone.
pub fn kill_and_wait(pid: i32, within: Duration) -> Result<()> {
    let alive = || Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok();
    if !alive() {
        return Ok(());
    }
    signal::kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {pid}"))?;
    let start = Instant::now();
    while alive() {
        if start.elapsed() > within {
            bail!("process {pid} survives SIGKILL");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
