//! Real Docker daemons on nodes of the lab: each with data, state, socket and network namespace of its
//! own, and containers of an image that is made here, from the machine's static busybox.
//!
//! A daemon has a mount namespace of its own, too: what it mounts is gone with its last process,
//! however that ends.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    lab::Node,
    netns::{Namespace, checked},
    process::{Daemon, Lifetime},
    traffic::Endpoint,
    wait::wait_for,
};

const BUSYBOX: &str = "/bin/busybox";
const IMAGE: &str = "busybox:local";
/// The daemon starts its containerd first, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running dockerd. Dropping it removes its containers.
#[derive(Debug)]
pub struct Docker {
    daemon: Daemon,
    socket: PathBuf,
    node: Namespace,
}

/// A running container.
#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    pub address: Ipv4Addr,
    pub namespace: Namespace,
}

impl Docker {
    /// Starts dockerd on a node with these options, one string as in a unit's environment file.
    pub fn start(node: &Node, options: &str) -> Result<Self> {
        let dir = node
            .subnet_file
            .parent()
            .context("a node's directory")?
            .join("docker");
        fs::create_dir_all(&dir)?;
        let path = |name: &str| dir.join(name);
        let socket = path("docker.sock");
        let mut command = node.namespace.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "dockerd"])
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("docker.pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .args(["--storage-driver", "vfs", "--log-level", "warn"])
            .args(options.split_whitespace());
        let daemon = Daemon::start(
            &format!("dockerd of {}", node.name),
            command,
            &path("dockerd.log"),
            Lifetime::Bound,
        )?;
        let docker = Self {
            daemon,
            socket,
            node: node.namespace.clone(),
        };
        wait_for("dockerd to answer", PATIENCE, || {
            docker.daemon.check_running()?;
            docker.run(&["version"])
        })
        .with_context(|| docker.daemon.log_tail(20))?;
        docker.import_image(&dir)?;
        Ok(docker)
    }

    /// A file system with nothing but busybox.
    fn import_image(&self, dir: &Path) -> Result<()> {
        let (root, archive) = (dir.join("image"), dir.join("image.tar"));
        fs::create_dir_all(root.join("bin"))?;
        fs::copy(BUSYBOX, root.join("bin/busybox"))
            .with_context(|| format!("copy {BUSYBOX} (package busybox-static)"))?;
        checked(
            Command::new("tar")
                .arg("-C")
                .arg(&root)
                .arg("-cf")
                .arg(&archive)
                .arg("."),
        )?;
        let archive = archive.to_str().context("a path in UTF-8")?;
        self.run(&["import", archive, IMAGE]).map(drop)
    }

    /// Runs a docker command and returns what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = self.node.command("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()))
            .args(words);
        checked(&mut command)
    }

    /// Starts a container that waits.
    pub fn start_container(&self, node: &Node, name: &str) -> Result<Container> {
        self.run(&[
            "run", "--detach", "--name", name, IMAGE, BUSYBOX, "sleep", "99999",
        ])
        .with_context(|| self.daemon.log_tail(20))?;
        let inspect = |what: &str| -> Result<String> {
            let format = format!("{{{{{what}}}}}");
            let answer = self.run(&["inspect", "--format", &format, name])?;
            Ok(answer.trim().to_owned())
        };
        let pid = inspect(".State.Pid")?;
        Ok(Container {
            name: name.to_owned(),
            address: inspect(".NetworkSettings.IPAddress")?.parse()?,
            namespace: node.attach_namespace(name, pid.parse()?)?,
        })
    }

    /// Runs a busybox applet in a container.
    pub fn exec(&self, container: &Container, applet: &[&str]) -> Result<String> {
        self.run(&[&["exec", &container.name, BUSYBOX], applet].concat())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let removed = self
            .run(&["ps", "--all", "--quiet"])
            .and_then(|containers| {
                let ids: Vec<_> = containers.split_whitespace().collect();
                if ids.is_empty() {
                    return Ok(String::new());
                }
                self.run(&[&["rm", "--force"], ids.as_slice()].concat())
            });
        let stopped = removed.and_then(|_| self.daemon.stop());
        if let Err(error) = stopped {
            eprintln!("dockerd is not stopped in order: {error:#}");
        }
    }
}

impl Container {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            namespace: self.namespace.clone(),
            address: self.address,
        }
    }
}
