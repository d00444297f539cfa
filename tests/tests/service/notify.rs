//! What the service manager is told, over a socket in its place.

use std::{
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use overlay_tests::lab::scenario;

use crate::support::{PATIENCE, agent_command, one_node, start};

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The next message, as its assignments.
    fn next(&self, within: Duration) -> Result<Vec<String>> {
        self.socket.set_read_timeout(Some(within))?;
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).context("no message")?;
        let text = String::from_utf8_lossy(&message[..length]);
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The next message that makes `assignment`. What is passed over is told on failure.
    fn wait(&self, assignment: &str) -> Result<Vec<String>> {
        let mut passed = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let Ok(message) = self.next(left.max(Duration::from_millis(1))) else {
                break;
            };
            if message.iter().any(|line| line == assignment) {
                return Ok(message);
            }
            passed.push(message);
        }
        bail!("`{assignment}` did not come; what came: {passed:?}")
    }

    fn is_quiet(&self, within: Duration) -> Result<()> {
        self.socket.set_read_timeout(Some(within))?;
        let mut message = [0; 4096];
        match self.socket.recv(&mut message) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(())
            }
            Ok(length) => bail!(
                "unexpected: {}",
                String::from_utf8_lossy(&message[..length])
            ),
            Err(error) => Err(error.into()),
        }
    }
}

#[test]
fn readiness_reload_watchdog_and_stop_are_notified() {
    scenario(one_node(), |lab| {
        let path = lab.dir().join("notify.sock");
        let manager = Manager {
            socket: UnixDatagram::bind(&path)?,
        };
        let mut command = agent_command(lab, lab.node(0), &[], &[])?;
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "4000000");
        let daemon = start(lab, "agent", command)?;

        let ready = manager.wait("READY=1")?;
        ensure!(ready.contains(&"STATUS=ready".to_owned()), "{ready:?}");
        ensure!(
            lab.node(0).subnet_file.exists(),
            "READY before the subnet file"
        );

        for _ in 0..3 {
            let before = Instant::now();
            manager.wait("WATCHDOG=1")?;
            let waited = before.elapsed();
            ensure!(
                waited < Duration::from_secs(4),
                "watchdog fed after {waited:?}"
            );
        }

        daemon.signal(Signal::SIGHUP)?;
        let reloading = manager.wait("RELOADING=1")?;
        let clock = |line: &String| line.starts_with("MONOTONIC_USEC=");
        ensure!(reloading.iter().any(clock), "{reloading:?}");
        manager.wait("READY=1")?;

        daemon.signal(Signal::SIGTERM)?;
        manager.wait("STOPPING=1")?;
        let status = daemon.wait_exit(PATIENCE)?;
        ensure!(status.success(), "{status}");
        Ok(())
    });
}

#[test]
fn while_it_is_not_ready_the_status_says_why_and_the_watchdog_is_fed() {
    scenario(one_node().without_config(), |lab| {
        let path = lab.dir().join("notify.sock");
        let manager = Manager {
            socket: UnixDatagram::bind(&path)?,
        };
        let mut command = agent_command(lab, lab.node(0), &[], &[])?;
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "4000000");
        let daemon = start(lab, "agent", command)?;
        let mut messages = Vec::new();
        let told = |messages: &[String]| {
            let why = "STATUS=not ready: lease: waiting for the network config: ";
            messages.iter().any(|line| line.starts_with(why))
                && messages.iter().any(|line| line == "WATCHDOG=1")
        };
        while !told(&messages) {
            let message = manager.next(PATIENCE);
            messages.extend(message.with_context(|| format!("after {messages:?}"))?);
        }
        manager.wait("WATCHDOG=1")?;

        // A daemon that makes no progress lets the watchdog starve.
        daemon.signal(Signal::SIGSTOP)?;
        while manager.next(Duration::from_millis(1)).is_ok() {}
        let quiet = manager.is_quiet(Duration::from_secs(4));
        daemon.signal(Signal::SIGCONT)?;
        quiet
    });
}
