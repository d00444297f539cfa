//! Signals stop the daemon at once and leave forwarding in place; a second one kills it.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use overlay_agent::lifecycle::{SignalRequest, Signals};
use overlay_tests::{lab::scenario, wait::wait_for};

use crate::support::{PATIENCE, one_node};

#[test]
fn every_stop_signal_ends_the_daemon_within_a_second_and_leaves_the_device() {
    scenario(one_node(), |lab| {
        let node = lab.node(0);
        let rules = || -> Result<String> {
            let mut rules = String::new();
            for table in ["nat", "filter"] {
                rules += &node.namespace.run("iptables-nft", ["-t", table, "-S"])?;
            }
            Ok(rules)
        };
        let mut delays = Vec::new();
        for (starts, signal) in (1..).zip([Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]) {
            node.start_agent(lab.store(), &["--ip-masq"])?;
            wait_for("the agent to be ready", PATIENCE, || {
                let log = node.with_agent(|agent| Ok(agent.log()))?;
                ensure!(log.matches("node started").count() == starts, "{log}");
                Ok(())
            })?;
            let installed = rules()?;
            ensure!(installed.contains("FLANNEL-FWD"), "{installed}");
            let sent = Instant::now();
            node.signal_agent(signal)?;
            let status = node.with_agent(|agent| agent.wait_exit(PATIENCE))?;
            delays.push(sent.elapsed());
            ensure!(status.code() == Some(0), "{signal}: {status}");
            ensure!(
                node.has_interface("flannel.1"),
                "{signal}: flannel.1 is gone"
            );
            ensure!(
                rules()? == installed,
                "{signal}: was\n{installed}is\n{}",
                rules()?
            );
        }
        // On a machine that is busy with other tests, one of them at least.
        ensure!(
            delays.iter().min() < Some(&Duration::from_secs(1)),
            "{delays:?}"
        );
        Ok(())
    });
}

#[test]
fn a_signal_stops_a_daemon_that_waits_for_its_config() {
    scenario(one_node().without_config(), |lab| {
        let node = lab.node(0);
        node.start_agent(lab.store(), &[])?;
        node.with_agent(|agent| agent.wait_log("config", PATIENCE))?;
        node.signal_agent(Signal::SIGQUIT)?;
        let status = node.with_agent(|agent| agent.wait_exit(PATIENCE))?;
        ensure!(status.code() == Some(0), "{status}");
        Ok(())
    });
}

/// Set in the copy of this test that plays the daemon.
const ROLE: &str = "OVERLAY_TEST_SIGNALS";

/// A daemon whose only thread hangs after the first signal.
fn hang_after_the_first_signal() -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut signals = Signals::install().unwrap();
        println!("waiting");
        assert_eq!(signals.next().await, SignalRequest::Reload);
        println!("reloaded");
        assert_eq!(signals.next().await, SignalRequest::Stop("SIGTERM"));
        println!("stopping");
        loop {
            thread::sleep(Duration::from_hours(1));
        }
    })
}

#[test]
fn the_second_signal_kills_a_daemon_that_hangs() {
    if std::env::var_os(ROLE).is_some() {
        hang_after_the_first_signal();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "signals::the_second_signal_kills_a_daemon_that_hangs",
            "--nocapture",
        ])
        .env(ROLE, "daemon")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut wait_line = |wanted: &str| {
        let found = lines.any(|line| line.unwrap().ends_with(wanted));
        assert!(found, "the daemon ended before it said `{wanted}`");
    };
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let mut send = |signal, answer: &str| {
        kill(pid, signal).unwrap();
        wait_line(answer);
    };
    send(None, "waiting");
    send(Some(Signal::SIGHUP), "reloaded");
    send(Some(Signal::SIGTERM), "stopping");
    kill(pid, Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{status}");
}
