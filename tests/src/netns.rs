//! Network namespaces, and running code and commands inside them.
//!
//! They are bound below `/run/netns`, where `ip netns` and `nsenter --net=/run/netns/<name>` find
//! them.

use std::{
    fs::{self, File},
    io::Write as _,
    panic,
    process::{Command, Output, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use overlay_common::addr::MacAddr;
use serde_json::Value;

use crate::sys;

/// Where `ip netns` binds namespaces.
pub const RUN_NETNS: &str = "/run/netns";

/// A named network namespace. Clones are the same namespace; dropping one does not delete it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    file: Arc<File>,
}

impl Namespace {
    /// Creates the namespace, with its loopback interface up.
    pub fn create(name: &str) -> Result<Self> {
        checked(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self::open(name)?;
        namespace.run("ip", ["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Names the namespace that process `pid` is in, which must not be the caller's own: whatever
    /// runs in a named namespace may be killed with it.
    pub fn attach(name: &str, pid: u32) -> Result<Self> {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
        if of(&pid.to_string())? == of("self")? {
            bail!("process {pid} has no network namespace of its own");
        }
        checked(Command::new("ip").args(["netns", "attach", name, &pid.to_string()]))?;
        Self::open(name)
    }

    pub fn open(name: &str) -> Result<Self> {
        let path = format!("{RUN_NETNS}/{name}");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        Ok(Self {
            name: name.into(),
            file: Arc::new(file),
        })
    }

    /// Deletes the name. The namespace itself goes with the last process in it.
    pub fn delete(name: &str) -> Result<()> {
        checked(Command::new("ip").args(["netns", "delete", name])).map(drop)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `body` on a thread of its own inside the namespace. A panic in it goes on here.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.join_current_thread();
                    body()
                })
                .join()
        });
        result.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Starts a thread inside the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = self.clone();
        thread::spawn(move || {
            namespace.join_current_thread();
            body()
        })
    }

    fn join_current_thread(&self) {
        if let Err(errno) = setns(&*self.file, CloneFlags::CLONE_NEWNET) {
            panic!("setns into {}: {errno}", self.name);
        }
    }

    /// A command that will run inside the namespace, for whoever does not wait for its end. What starts it is
    /// forked, which takes long where a test keeps much in memory.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        sys::enter_on_exec(&mut command, Arc::clone(&self.file));
        command
    }

    /// Runs a command inside the namespace to its end, from a thread there, and returns what it printed; an error, with
    /// all it printed, unless it succeeds.
    pub fn run<'a>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args);
        self.enter(|| checked(&mut command))
            .with_context(|| format!("in {}", self.name))
    }

    /// Runs lines of `ip` commands in one process; the first that fails ends it.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]);
        self.enter(|| with_input(&mut command, lines))
            .with_context(|| format!("in {}, ip -batch of:\n{lines}", self.name))
            .map(drop)
    }

    /// Makes a request of rtnetlink, for what iproute2 does not know everywhere.
    pub fn rtnetlink<F>(&self, request: impl FnOnce(rtnetlink::Handle) -> F + Send) -> Result<()>
    where
        F: Future<Output = Result<(), rtnetlink::Error>>,
    {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                Ok(request(handle).await?)
            })
        })
    }

    /// MAC address of an interface.
    pub fn mac(&self, interface: &str) -> Result<MacAddr> {
        let link = self.link(interface)?;
        let mac = link["address"].as_str().and_then(|mac| mac.parse().ok());
        mac.with_context(|| format!("no MAC address in {link}"))
    }

    /// Index of an interface.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        let link = self.link(interface)?;
        let index = link["ifindex"]
            .as_u64()
            .and_then(|index| u32::try_from(index).ok());
        index.with_context(|| format!("no interface index in {link}"))
    }

    fn link(&self, interface: &str) -> Result<Value> {
        let text = self.run("ip", ["-json", "link", "show", "dev", interface])?;
        let mut links: Vec<Value> = serde_json::from_str(&text)?;
        links
            .pop()
            .with_context(|| format!("ip shows no link {interface}"))
    }

    /// Writes a value below `/proc/sys`, e.g. `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        // The calling thread's namespace decides what /proc/sys/net shows.
        self.enter(|| fs::write(format!("/proc/sys/{key}"), value))
            .with_context(|| format!("in {}, write {value} to /proc/sys/{key}", self.name))
    }
}

/// Runs `command` to its end; its standard output, or an error with everything it said.
pub fn checked(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    judge(
        command,
        &output.with_context(|| format!("start {command:?}"))?,
    )
}

/// Runs a command to its end with `input` on its standard input, as [`checked`] does without.
pub fn with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    judge(command, &child.wait_with_output()?)
}

fn judge(command: &Command, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?}: {}: {}{stdout}",
            output.status,
            stderr.trim_end()
        );
    }
    Ok(stdout.into_owned())
}
