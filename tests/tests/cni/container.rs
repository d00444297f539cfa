//! What a container runtime does.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnetwork::Ipv4Network;
use overlay_tests::{
    lab::{Lab, Node, agent},
    netns::{Namespace, with_input},
    process::{Daemon, Lifetime},
    traffic::Endpoint,
    wait::wait_for,
};
use serde_json::{Value, json};

use crate::DEADLINE;

/// Where Debian has the plugins of the CNI project.
pub const PLUGINS: &str = "/usr/lib/cni";

/// A container as a runtime has it: a process in a network namespace, and a name.
pub struct Container<'lab> {
    pub node: &'lab Node,
    /// Of the plugins, for all pods of the node.
    dir: PathBuf,
    name: &'static str,
    /// What the network says of the plugin that makes the pod.
    delegate: Value,
    pub namespace: Namespace,
    _process: Daemon,
}

impl<'lab> Container<'lab> {
    pub fn create(
        lab: &'lab Lab,
        node: &'lab Node,
        name: &'static str,
        delegate: Value,
    ) -> Result<Self> {
        let log = lab.dir().join(format!("{}-{name}.log", node.name));
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]);
        let process = Daemon::start(name, command, &log, Lifetime::Bound)?;
        let pid = process.pid();
        let namespace = wait_for("the container's namespace", DEADLINE, || {
            node.attach_namespace(name, pid)
        })?;
        Ok(Self {
            node,
            dir: lab.dir().join(format!("{}-cni", node.name)),
            name,
            delegate,
            namespace,
            _process: process,
        })
    }

    /// What the runtime gives the plugin: a network as flannel's manifest has it, with directories of
    /// this test.
    pub fn network(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "cbr0",
            "type": "overlay-cni",
            "subnetFile": self.node.subnet_file,
            "dataDir": self.data(),
            "delegate": self.delegate,
            "ipam": { "dataDir": self.addresses() },
        })
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("plugins")
    }

    fn addresses(&self) -> PathBuf {
        self.dir.join("addresses")
    }

    /// The file by which `host-local` knows that the pod has its address.
    pub fn kept(&self, pod: &Endpoint) -> PathBuf {
        self.addresses().join("cbr0").join(pod.address.to_string())
    }

    pub fn call(&self, verb: &str, network: &Value) -> Result<String> {
        let program = agent::built("overlay-cni")?;
        let mut command = self.node.namespace.command(path(&program)?);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", format!("/run/netns/{}", self.namespace.name()))
            .env("CNI_PATH", PLUGINS);
        with_input(&mut command, &network.to_string())
    }

    pub fn add(&self) -> Result<(Value, Endpoint)> {
        let result: Value = serde_json::from_str(&self.call("ADD", &self.network())?)?;
        let address = result["ips"][0]["address"].as_str();
        let address: Ipv4Network = address
            .with_context(|| format!("no address in {result}"))?
            .parse()?;
        ensure!(
            self.node.subnet_env()?.subnet()?.contains(address.ip()),
            "{address} is not of the node's subnet"
        );
        let endpoint = self.endpoint(address.ip());
        Ok((result, endpoint))
    }

    pub fn endpoint(&self, address: Ipv4Addr) -> Endpoint {
        Endpoint {
            namespace: self.namespace.clone(),
            address,
        }
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

pub fn fails_with(result: Result<String>, code: u64) -> Result<()> {
    let Err(error) = result else {
        bail!("it succeeded");
    };
    let text = format!("{error:#}");
    ensure!(text.contains(&format!("\"code\":{code}")), "{text}");
    Ok(())
}
