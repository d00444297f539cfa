//! The unit file under a real systemd, booted in namespaces of its own on a lab's node: its
//! sandbox, notifications, reload, watchdog, and the options Docker gets.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_tests::{
    lab::{Lab, agent, scenario, store},
    netns::checked,
    process::{Daemon, Lifetime},
    wait::wait_for,
};

use crate::support::{PATIENCE, deploy, one_node, unit_setting};

const UNIT: &str = "overlay-agent.service";

/// A cgroup in every hierarchy, for a systemd to take as its root.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn create(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut dirs = Vec::new();
        for line in fs::read_to_string("/proc/self/cgroup")?.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                bail!("/proc/self/cgroup: {line}");
            };
            let Some(mount) = mount_of(&mounts, controllers) else {
                continue;
            };
            let dir = mount.join(path.trim_start_matches('/')).join(name);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            dirs.push(dir);
        }
        Ok(Self(dirs))
    }
}

/// Where a hierarchy is mounted; no controllers means cgroup2.
fn mount_of(mounts: &str, controllers: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (dir, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let matches = match controllers {
            "" => kind == "cgroup2",
            _ => kind == "cgroup" && format!(",{options},").contains(&format!(",{controllers},")),
        };
        matches.then(|| dir.into())
    })
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // The processes have been killed and are being reaped.
        let removed = wait_for("the cgroups to become empty", PATIENCE, || {
            self.0.iter().try_for_each(|dir| remove_tree(dir))
        });
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}

fn remove_tree(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_tree(&path)?;
        }
    }
    fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))
}

struct Systemd {
    daemon: Daemon,
    _cgroups: Cgroups,
}

impl Systemd {
    fn boot(lab: &Lab) -> Result<Self> {
        let node = lab.node(0);
        let environment = lab.dir().join("environment");
        fs::write(
            &environment,
            format!(
                "FLANNELD_ETCD_ENDPOINTS={}\nFLANNELD_ETCD_PREFIX={}\nFLANNELD_IP_MASQ=true\n\
                 FLANNELD_PUBLIC_IP={}\nFLANNELD_DATAPATH=ebpf\n",
                lab.store().endpoints(),
                store::PREFIX,
                node.address
            ),
        )?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/service/boot.sh");
        let cgroups = Cgroups::create(&format!("ovl-{}-{}", process::id(), lab.id()))?;
        let mut join = String::new();
        for dir in &cgroups.0 {
            // cpuset of cgroup v1 takes nobody before it is set up, and systemd does without.
            writeln!(join, "echo $$ >{}/cgroup.procs || true", dir.display())?;
        }
        join.push_str(
            "exec unshare --mount --pid --cgroup --ipc --uts --fork --kill-child --mount-proc \
             sh \"$@\"",
        );
        let mut command = node.namespace.command("sh");
        command
            .args(["-c", &join, "sh"])
            .arg(script)
            .arg(agent::binary()?);
        command.arg(deploy("").canonicalize()?).arg(environment);
        let log = lab.dir().join("systemd.log");
        let daemon = Daemon::start("systemd", command, &log, Lifetime::Bound)?;
        let this = Self {
            daemon,
            _cgroups: cgroups,
        };
        wait_for("systemd to boot", PATIENCE, || {
            this.daemon.check_running()?;
            let state = this.run(&["systemctl", "is-system-running"])?;
            ensure!(
                state.trim() == "running",
                "{state}: {}",
                this.daemon.log_tail(20)
            );
            Ok(())
        })?;
        Ok(this)
    }

    /// Process 1 of the namespaces.
    fn init(&self) -> Result<String> {
        let pid = self.daemon.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let child = children
            .split_whitespace()
            .next()
            .context("systemd has not started")?;
        Ok(child.to_owned())
    }

    /// Runs a command where systemd runs.
    fn run(&self, words: &[&str]) -> Result<String> {
        let init = self.init()?;
        checked(
            Command::new("nsenter")
                .args(["-a", "-t", &init])
                .args(words),
        )
    }

    fn systemctl(&self, words: &[&str]) -> Result<String> {
        self.run(&[&["systemctl"], words].concat())
            .with_context(|| {
                let evidence =
                    |words: &[&str]| self.run(words).unwrap_or_else(|error| format!("{error:#}"));
                format!(
                    "{}{}",
                    evidence(&["systemctl", "show", UNIT]),
                    evidence(&["cat", "/run/agent.log"]),
                )
            })
    }

    fn property(&self, name: &str) -> Result<String> {
        let value = self.systemctl(&["show", UNIT, "--value", "--property", name])?;
        Ok(value.trim().to_owned())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if let Err(error) = self.daemon.kill() {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn the_unit_starts_reloads_and_stops_in_its_sandbox() {
    scenario(one_node(), |lab| {
        let systemd = Systemd::boot(lab)?;
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
        let systemd = Systemd::boot(lab)?;
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
        let systemd = Systemd::boot(lab)?;
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
