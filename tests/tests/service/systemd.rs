//! The unit file under a real systemd: its sandbox, notifications, reload, watchdog, and the options
//! Docker gets.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, agent, scenario},
    wait::wait_for,
};

use crate::{
    booted::{Systemd, UNIT, environment},
    support::{PATIENCE, deploy, one_node, unit_setting},
};

/// With the agent that was built, and nothing of what is installed.
fn boot(lab: &Lab) -> Result<Systemd> {
    let variables = lab.dir().join("environment");
    fs::write(&variables, environment(lab))?;
    let args = [
        agent::binary()?.into(),
        deploy("").canonicalize()?.into(),
        variables.into(),
    ];
    Systemd::boot(lab, "boot.sh", args)
}

#[test]
fn the_unit_starts_reloads_and_stops_in_its_sandbox() {
    scenario(one_node(), |lab| {
        let systemd = boot(lab)?;
        systemd.systemctl(&["start", UNIT])?;
        ensure!(systemd.property("ActiveState")? == "active");
        ensure!(
            systemd.property("StatusText")? == "ready",
            "{}",
            systemd.property("StatusText")?
        );
        let log = systemd.run(&["cat", "/run/agent.log"])?;
        ensure!(!log.contains(" WARN") && !log.contains("ERROR"), "{log}");

        let pid = systemd.property("MainPID")?;
        let status = systemd.run(&["cat", &format!("/proc/{pid}/status")])?;
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:\t"));
        let bounding = u64::from_str_radix(bounding.context("no CapBnd")?, 16)?;
        let granted = unit_setting(
            &deploy("systemd/overlay-agent.service"),
            "CapabilityBoundingSet",
        )?;
        ensure!(
            bounding.count_ones() as usize == granted.split(' ').count(),
            "{granted} against {bounding:x}"
        );
        ensure!(
            status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"),
            "{status}"
        );

        systemd.systemctl(&["reload", UNIT])?;
        // Sending the signal is all that the command waits for.
        wait_for("the reload to end", PATIENCE, || {
            let state = systemd.property("ActiveState")?;
            let log = systemd.run(&["cat", "/run/agent.log"])?;
            ensure!(
                state == "active" && log.contains(" reloaded"),
                "{state}: {log}"
            );
            Ok(())
        })?;
        ensure!(
            systemd.property("MainPID")? == pid,
            "reloading restarted it"
        );

        let asked = Instant::now();
        systemd.systemctl(&["stop", UNIT])?;
        ensure!(
            asked.elapsed() < Duration::from_secs(2),
            "stopping took {:?}",
            asked.elapsed()
        );
        ensure!(systemd.property("Result")? == "success");
        let node = &lab.node(0).namespace;
        ensure!(lab.node(0).has_interface("flannel.1"));
        ensure!(
            node.run("iptables-nft", ["-t", "nat", "-S"])?
                .contains("FLANNEL-POSTRTG")
        );
        systemd
            .run(&["test", "-s", "/run/flannel/subnet.env"])
            .map(drop)
    });
}

#[test]
fn docker_starts_after_the_agent_with_the_options_of_the_subnet() {
    scenario(one_node(), |lab| {
        let systemd = boot(lab)?;
        systemd.systemctl(&["start", "docker.service"])?;
        let env = systemd.run(&["cat", "/run/flannel/subnet.env"])?;
        let value = |key: &str| {
            env.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .with_context(|| format!("{key} in {env}"))
        };
        let wanted = format!(
            "--bip={} --ip-masq=false --mtu={}\n",
            value("FLANNEL_SUBNET")?,
            value("FLANNEL_MTU")?
        );
        let options = systemd.run(&["cat", "/run/options"])?;
        ensure!(options == wanted, "{options} instead of {wanted}");
        Ok(())
    });
}

#[test]
fn a_hung_daemon_is_restarted_by_the_watchdog_and_a_killed_one_at_once() {
    scenario(one_node(), |lab| {
        let systemd = boot(lab)?;
        systemd.systemctl(&["start", UNIT])?;
        let mut pid = systemd.property("MainPID")?;
        for signal in ["STOP", "KILL"] {
            systemd.run(&["kill", &format!("-{signal}"), &pid])?;
            pid = wait_for("another process, ready", PATIENCE, || {
                let now = systemd.property("MainPID")?;
                ensure!(now != pid && now != "0", "{signal}: process {now}");
                ensure!(systemd.property("StatusText")? == "ready");
                Ok(now)
            })?;
        }
        Ok(())
    });
}
