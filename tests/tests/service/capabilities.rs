//! The capabilities the unit file grants are enough, and each of them is needed.

use std::{fs, os::unix::fs::symlink, path::Path, process::ExitStatus};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    lab::{Attachment, Lab, scenario},
    process::Daemon,
    wait::wait_for,
};

use crate::support::{PATIENCE, agent_command, deploy, one_node, start, unit_setting};

/// The packet filter commands of the host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tools {
    /// As installed: nft and iptables-nft.
    Installed,
    /// iptables is iptables-legacy.
    Legacy,
}

/// `cap_net_admin` and so on.
fn granted() -> Result<Vec<String>> {
    let set = unit_setting(
        &deploy("systemd/overlay-agent.service"),
        "CapabilityBoundingSet",
    )?;
    Ok(set.split(' ').map(str::to_lowercase).collect())
}

fn link_legacy(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let program = fs::canonicalize("/usr/sbin/iptables-legacy")?;
    for name in [
        "iptables",
        "iptables-restore",
        "ip6tables",
        "ip6tables-restore",
    ] {
        let link = dir.join(name);
        if !link.exists() {
            symlink(&program, link)?;
        }
    }
    Ok(())
}

/// Starts the daemon with these capabilities and no others.
fn start_with(lab: &Lab, capabilities: &[String], tools: Tools) -> Result<Daemon> {
    let names: Vec<&str> = capabilities
        .iter()
        .filter_map(|name| name.strip_prefix("cap_"))
        .collect();
    let bounding = format!("--bounding-set=-all,+{}", names.join(",+"));
    let setpriv = ["setpriv", "--no-new-privs", "--inh-caps=-all", &bounding];
    let node = lab.node(0);
    let extra = ["--ip-masq", "--datapath=ebpf"];
    let mut command = agent_command(lab, node, &setpriv, &extra)?;
    if tools == Tools::Legacy {
        let dir = lab.dir().join("legacy");
        link_legacy(&dir)?;
        command.env(
            "PATH",
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display()),
        );
    }
    start(lab, "agent", command)
}

/// Runs the daemon with these capabilities and no others: `None` when it gets ready.
fn run_with(
    lab: &Lab,
    capabilities: &[String],
    tools: Tools,
) -> Result<Option<(ExitStatus, String)>> {
    let daemon = start_with(lab, capabilities, tools)?;
    let outcome = wait_for("the daemon ready or ended", PATIENCE, || {
        if let Some(status) = daemon.try_wait()? {
            return Ok(Some((status, daemon.log())));
        }
        ensure!(daemon.log().contains(" ready"), "{}", daemon.log());
        Ok(None)
    })?;
    daemon.kill()?;
    Ok(outcome)
}

fn starts_with(capabilities: &[String], tools: Tools) {
    scenario(one_node(), |lab| {
        match run_with(lab, capabilities, tools)? {
            None => Ok(()),
            Some((status, log)) => anyhow::bail!("with {capabilities:?}: {status}\n{log}"),
        }
    });
}

#[test]
fn the_capabilities_of_the_unit_are_enough() {
    for tools in [Tools::Installed, Tools::Legacy] {
        starts_with(&granted().unwrap(), tools);
    }
}

#[test]
fn the_raw_socket_is_for_legacy_iptables_only() {
    let mut fewer = granted().unwrap();
    fewer.retain(|name| name != "cap_net_raw");
    starts_with(&fewer, Tools::Installed);
}

#[test]
fn without_any_one_of_them_the_daemon_ends_and_names_it() {
    for missing in granted().unwrap() {
        scenario(one_node(), |lab| {
            let mut fewer = granted()?;
            fewer.retain(|name| *name != missing);
            let Some((status, log)) = run_with(lab, &fewer, Tools::Legacy)? else {
                anyhow::bail!("ready without {missing}");
            };
            ensure!(status.code() == Some(1), "{missing}: {status}");
            ensure!(
                log.contains(&missing.to_uppercase()),
                "{missing} is not named:\n{log}"
            );
            Ok(())
        });
    }
}

/// Capabilities are those of a thread: `effective` and `permitted` of each.
fn of_threads(pid: u32) -> Result<Vec<[u64; 2]>> {
    let mut sets = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended meanwhile.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue;
        };
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.with_context(|| format!("no {name} in {status}"))?;
            Ok::<_, anyhow::Error>(u64::from_str_radix(value.trim(), 16)?)
        };
        sets.push([set("CapEff:")?, set("CapPrm:")?]);
    }
    Ok(sets)
}

/// What loads programs may read the kernel's memory, and goes on with the daemon's work without it: a pod that
/// comes later gets programs, and a reload succeeds.
#[test]
fn no_thread_keeps_what_only_the_loading_of_programs_needs() {
    const NET_ADMIN: u64 = 1 << 12;
    const PERFMON: u64 = 1 << 38;
    scenario(one_node(), |lab| {
        let daemon = start_with(lab, &granted()?, Tools::Installed)?;
        daemon.wait_log(" ready", PATIENCE)?;
        wait_for("the loading thread to be gone", PATIENCE, || {
            let threads = of_threads(daemon.pid())?;
            for set in threads.iter().flatten() {
                ensure!(set & PERFMON == 0 && set & NET_ADMIN != 0, "{threads:x?}");
            }
            Ok(())
        })?;
        let node = lab.node(0);
        let pod = node.add_pod("late", Attachment::PointToPoint)?;
        node.wait_attached(&pod.host_interface)?;
        daemon.signal(Signal::SIGHUP)?;
        daemon.wait_log("reloaded", PATIENCE)?;
        daemon.kill()
    });
}
