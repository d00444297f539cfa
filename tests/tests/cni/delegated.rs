//! Pods that Debian's `bridge` makes.

use anyhow::{Result, bail, ensure};
use overlay_tests::{
    lab::{Lab, scenario},
    traffic::ping,
};
use serde_json::json;

use crate::container::{Container, fails_with};

#[test]
fn pods_of_the_plugin_talk_fast_and_go_without_a_trace() {
    scenario(Lab::builder().nodes(2), |lab| {
        let delegate = json!({ "hairpinMode": true, "isDefaultGateway": true });
        let containers = lab
            .nodes()
            .iter()
            .map(|node| Container::create(lab, node, "pod", delegate.clone()))
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
