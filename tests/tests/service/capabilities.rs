//! The capabilities the unit file grants are enough, and each of them is needed.

use std::{fs, os::unix::fs::symlink, path::Path, process::ExitStatus};

use anyhow::{Result, ensure};
use overlay_tests::{
    lab::{Lab, scenario},
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

/// Runs the daemon with these capabilities and no others: `None` when it gets ready.
fn run_with(
    lab: &Lab,
    capabilities: &[String],
    tools: Tools,
) -> Result<Option<(ExitStatus, String)>> {
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
    let daemon = start(lab, "agent", command)?;
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
