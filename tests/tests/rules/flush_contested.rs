//! A process that was stopped while it had the configuration locked, as `overlay-agent flush` has for a
//! moment, holds up neither flushes nor the agent.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, scenario},
    rules::Protocol,
    services::{Connection, Server},
    wait::wait_for,
};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(15);
const BOUND: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_millis(400);

fn unready(node: &Node) -> Result<String> {
    node.cmd("curl", ["-s", "http://127.0.0.1:2401/readyz"])
}

#[test]
fn a_rule_ends_fast_flows_although_the_configuration_stays_locked() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&["--healthz-port=2401"])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        let pods = lab.pods();
        let [client, server] = [0, 1].map(|index| pods[index].1.endpoint());
        let listening = Server::start(&server, Protocol::Udp, PORT)?;
        let mut connection = Connection::open(&client, Protocol::Udp, listening.address, 0)?;
        let node = lab.node(0);
        wait_for("the flow to be fast", DEADLINE, || {
            let before = node.counters()?;
            connection.exchange(2_000, 100)?;
            let fast = node.counters()?.since(&before).fast(Hook::Egress);
            ensure!(fast >= 15, "{fast} fast packets of 20");
            Ok(())
        })?;

        let maps = node.map_pin("OVL_CONFIG");
        let lock = File::open(maps.parent().context("a directory of maps")?)?;
        lock.lock()?;
        let rule = |action| ["-t", "raw", action, "PREROUTING", "-p", "udp", "-j", "DROP"];
        node.cmd("iptables-nft", rule("-I"))?;
        let appeared = Instant::now();
        while appeared.elapsed() < BOUND {
            connection.is_cut(Duration::from_millis(50))?;
        }
        ensure!(connection.is_cut(SILENCE)?, "the flow goes on");
        let said = unready(node)?;
        let holder = format!("process {}", std::process::id());
        ensure!(
            said.contains("flushes: ") && said.contains(&holder),
            "{said}"
        );

        drop(lock);
        wait_for("the node to be ready again", DEADLINE, || {
            let said = unready(node)?;
            ensure!(said == "flanneld is ready", "{said}");
            Ok(())
        })?;
        node.cmd("iptables-nft", rule("-D"))?;
        wait_for("the flow to go on", DEADLINE, || {
            connection.recover()?;
            connection.exchange(2_000, 100)
        })
    });
}
