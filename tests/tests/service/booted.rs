//! A real systemd, booted in namespaces of its own on a lab's node.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_tests::{
    lab::{Lab, store},
    netns::checked,
    process::{Daemon, Lifetime},
    wait::wait_for,
};

use crate::support::PATIENCE;

pub const UNIT: &str = "overlay-agent.service";

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

pub struct Systemd {
    daemon: Daemon,
    _cgroups: Cgroups,
}

impl Systemd {
    /// Boots by a script of this directory, which gets `args` and is the first process of its namespaces.
    pub fn boot(lab: &Lab, script: &str, args: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let node = lab.node(0);
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/service")
            .join(script);
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
        command.args(["-c", &join, "sh"]).arg(script).args(args);
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
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let init = self.init()?;
        checked(
            Command::new("nsenter")
                .args(["-a", "-t", &init])
                .args(words),
        )
    }

    pub fn systemctl(&self, words: &[&str]) -> Result<String> {
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

    pub fn property(&self, name: &str) -> Result<String> {
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

/// What a node of `lab` needs in `/etc/default/overlay-agent`.
pub fn environment(lab: &Lab) -> String {
    format!(
        "FLANNELD_ETCD_ENDPOINTS={}\nFLANNELD_ETCD_PREFIX={}\nFLANNELD_IP_MASQ=true\n\
         FLANNELD_PUBLIC_IP={}\nFLANNELD_DATAPATH=ebpf\n",
        lab.store().endpoints(),
        store::PREFIX,
        lab.node(0).address
    )
}
