//! Pods that a container runtime makes by the CNI plugin, with Debian's `bridge` and `host-local`.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnetwork::Ipv4Network;
use overlay_tests::{
    lab::{Lab, Node, agent, scenario},
    netns::{Namespace, with_input},
    process::{Daemon, Lifetime},
    traffic::{Endpoint, ping},
    wait::wait_for,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

/// Where Debian has the plugins of the CNI project.
const PLUGINS: &str = "/usr/lib/cni";

/// A container as a runtime has it: a process in a network namespace, and a name.
struct Container<'lab> {
    node: &'lab Node,
    dir: PathBuf,
    name: &'static str,
    namespace: Namespace,
    _process: Daemon,
}

impl<'lab> Container<'lab> {
    fn create(lab: &'lab Lab, node: &'lab Node, name: &'static str) -> Result<Self> {
        let dir = lab.dir().join(format!("{}-{name}", node.name));
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]);
        let process = Daemon::start(name, command, &dir.with_extension("log"), Lifetime::Bound)?;
        let pid = process.pid();
        let namespace = wait_for("the container's namespace", DEADLINE, || {
            node.attach_namespace(name, pid)
        })?;
        Ok(Self {
            node,
            dir,
            name,
            namespace,
            _process: process,
        })
    }

    /// What the runtime gives the plugin: a network as flannel's manifest has it, with directories of
    /// this test.
    fn network(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "cbr0",
            "type": "overlay-cni",
            "subnetFile": self.node.subnet_file,
            "dataDir": self.data(),
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
            "ipam": { "dataDir": self.dir.join("addresses") },
        })
    }

    fn data(&self) -> PathBuf {
        self.dir.join("plugins")
    }

    fn call(&self, verb: &str, network: &Value) -> Result<String> {
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

    fn add(&self) -> Result<(Value, Endpoint)> {
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

    fn endpoint(&self, address: Ipv4Addr) -> Endpoint {
        Endpoint {
            namespace: self.namespace.clone(),
            address,
        }
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn fails_with(result: Result<String>, code: u64) -> Result<()> {
    let Err(error) = result else {
        bail!("it succeeded");
    };
    let text = format!("{error:#}");
    ensure!(text.contains(&format!("\"code\":{code}")), "{text}");
    Ok(())
}

#[test]
fn pods_of_the_plugin_talk_fast_and_go_without_a_trace() {
    scenario(Lab::builder().nodes(2), |lab| {
        let containers = lab
            .nodes()
            .iter()
            .map(|node| Container::create(lab, node, "pod"))
            .collect::<Result<Vec<_>>>()?;
        let [client, server] = &containers[..] else {
            bail!("two containers");
        };

        // Before the node has a subnet: not an error of the network, try again.
        fails_with(client.call("STATUS", &client.network()), 50)?;
        fails_with(client.call("ADD", &client.network()), 11)?;
        client.call("DEL", &client.network())?;

        lab.start_agents(&[])?;
        lab.wait_converged()?;
        let (result, from) = client.add()?;
        let (_, to) = server.add()?;
        ping::once(&from, to.address)?;
        let link = client.namespace.run("ip", ["-o", "link", "show", "eth0"])?;
        let mtu = client.node.subnet_env()?.mtu;
        ensure!(link.contains(&format!("mtu {mtu} ")), "{link}");
        client.node.wait_fast_echoes(&from, server.node, &to)?;

        let mut checked = client.network();
        checked["prevResult"] = result;
        // Version 1.1.1 of `bridge` looks in vain for routes that have no gateway of their own.
        checked["prevResult"]["routes"] = json!([]);
        client.call("CHECK", &checked)?;
        client
            .namespace
            .run("ip", ["address", "flush", "dev", "eth0"])?;
        ensure!(
            client.call("CHECK", &checked).is_err(),
            "no address is fine"
        );

        for container in &containers {
            container.call("DEL", &container.network())?;
            container.call("DEL", &container.network())?;
            ensure!(
                container
                    .namespace
                    .run("ip", ["link", "show", "eth0"])
                    .is_err()
            );
            let left = container.data().read_dir()?.count();
            ensure!(left == 0, "{left} files are kept");
        }
        Ok(())
    });
}
