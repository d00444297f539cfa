//! From and to other backends, by config and restart: the subnets stay, and nothing of the other backend does.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Node, scenario},
    traffic::tcp,
    wait::wait_for,
};

use super::{CONFIG, DEVICE, counted, fast::cabled, wait_pings};

const PATIENCE: Duration = Duration::from_secs(20);
const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// Everything of this backend on the node, and nothing of another.
fn check(node: &Node, peer: &Node, config: &str) -> Result<()> {
    node.check_running()?;
    let subnet = peer.subnet_env()?.subnet()?;
    let expected = match config {
        VXLAN => format!(
            "{subnet} via {} dev flannel.1 proto 241 onlink",
            subnet.network()
        ),
        HOST_GW => format!("{subnet} via {} dev eth0 proto 241", peer.address),
        _ => format!("10.5.0.0/16 dev {DEVICE} proto 241 metric 241"),
    };
    let routes = node.cmd("ip", ["route"])?;
    let ours: Vec<_> = routes.lines().filter(|l| l.contains("proto 241")).collect();
    ensure!(
        ours.iter().map(|l| l.trim()).eq([expected.as_str()]),
        "not `{expected}` but {ours:?}"
    );
    let devices = [(DEVICE, config == CONFIG), ("flannel.1", config == VXLAN)];
    for (device, wanted) in devices {
        ensure!(node.has_interface(device) == wanted, "{device} of {config}");
    }
    let sockets = node.cmd("ss", ["-Huan"])?;
    ensure!(sockets.contains(":8285") == (config == CONFIG), "{sockets}");
    ensure!(counted(node).is_ok() == (config == CONFIG));
    Ok(())
}

#[test]
fn backends_are_switched_by_a_restart_and_nothing_stale_stays() {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let gateways =
            || -> Result<_> { Ok((node.subnet_env()?.gateway, peer.subnet_env()?.gateway)) };
        let before = gateways()?;
        for config in [VXLAN, CONFIG, HOST_GW, CONFIG] {
            lab.store().set_config(config)?;
            for node in lab.nodes() {
                node.stop_agent()?;
                lab.start_agent(node, &[])?;
            }
            wait_for(&format!("both nodes to run {config}"), PATIENCE, || {
                check(node, peer, config).with_context(|| node.name.clone())?;
                check(peer, node, config).with_context(|| peer.name.clone())
            })?;
            ensure!(gateways()? == before, "{config}");
            wait_pings(lab)?;
            tcp::transfer(
                &node.first_pod(),
                &peer.first_pod(),
                tcp::Spec::bulk(1 << 20),
            )
            .with_context(|| config.to_owned())?;
            let [from, to] = [node, peer].map(Node::first_pod);
            { node.wait_fast_echoes(&from, peer, &to) }.with_context(|| config.to_owned())?;
        }
        Ok(())
    });
}
