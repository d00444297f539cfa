//! A cluster that is described by a file: no etcd, nothing else to install.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, agent::binary, scenario},
    traffic::ping,
    wait::wait_for,
};

/// For whatever a working daemon does at once, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `overlay-agent init` writes for hosts with these addresses.
fn init(lab: &Lab, hosts: &[String]) -> Result<String> {
    let words = hosts.iter().map(String::as_str);
    let words: Vec<&str> = ["init", "--network=10.5.0.0/16"]
        .into_iter()
        .chain(words)
        .collect();
    lab.node(0)
        .cmd(binary()?.to_str().context("the agent's path")?, words)
}

#[test]
fn nodes_of_a_file_talk_without_a_lease_store_and_follow_its_changes() {
    scenario(Lab::builder().nodes(3).without_config(), |lab| {
        let hosts: Vec<String> = lab
            .nodes()
            .iter()
            .map(|node| format!("{}={}", node.name, node.address))
            .collect();
        let two = init(lab, &hosts[..2])?;
        let path = lab.dir().join("peers.toml");
        fs::write(&path, &two)?;
        let flag = format!("--peers={}", path.display());
        for node in &lab.nodes()[..2] {
            lab.start_agent(node, &[&flag])?;
        }
        // The third is not in the file, and waits for it.
        let third = lab.node(2);
        third.start_agent(lab.store(), &[&flag])?;
        wait_for("the third node to say what is missing", PATIENCE, || {
            let log = fs::read_to_string(third.log_file())?;
            let text = format!("has the address of this node, {}", third.address);
            ensure!(log.contains(&text), "{log}");
            Ok(())
        })?;
        fs::write(&path, init(lab, &hosts)?)?;
        third.wait_ready()?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        lab.ping_matrix()?;

        let pods = lab.pods();
        let (_, from) = pods.first().context("no pod")?;
        let (_, to) = pods.last().context("no pod")?;
        let before = lab.node(0).counters()?;
        ping::all(&from.endpoint(), to.address, 20)?;
        let fast = lab
            .node(0)
            .counters()?
            .since(&before)
            .fast(overlay_common::outcome::Hook::Egress);
        ensure!(fast > 0, "no packet was fast");

        // A slip in the file changes nothing; a node that is taken out goes.
        fs::write(&path, two.replace("[[node]]", "[[node]"))?;
        wait_for("the slip to be named", PATIENCE, || {
            let log = fs::read_to_string(lab.node(0).log_file())?;
            ensure!(log.contains("the leases stay as they were"), "{log}");
            Ok(())
        })?;
        ping::once(&from.endpoint(), to.address)?;
        fs::write(&path, &two)?;
        let gone = third.subnet_env()?.subnet()?;
        wait_for("the third node's route to go", PATIENCE, || {
            let routes = lab.node(0).cmd("ip", ["route", "show"])?;
            ensure!(!routes.contains(&gone.to_string()), "{routes}");
            Ok(())
        })
    });
}
