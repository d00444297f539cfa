//! What the device keeps when the agent ends, and what the next one does with it.

use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::{connection::SteadyConnection, ping},
    wait::wait_for,
};

use super::{CONFIG, DEADLINE, DEVICE, counted, ifindex, wait_pings};

const INTERVAL: Duration = Duration::from_millis(2);

fn network_route(node: &Node) -> Result<String> {
    node.cmd("ip", ["route", "show", "10.5.0.0/16"])
}

/// A connection that is in use over all restarts is not noticed to break.
fn connections_survive(end: fn(&Node) -> Result<()>) {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let (index, route) = (ifindex(node)?, network_route(node)?);
        let connection = SteadyConnection::open(&node.first_pod(), &peer.first_pod(), INTERVAL)?;
        for _ in 0..2 {
            let before = counted(peer)?["received"];
            wait_for("exchanges", DEADLINE, || {
                ensure!(counted(peer)?["received"] > before + 100);
                Ok(())
            })?;
            end(node)?;
            ensure!(ifindex(node)? == index, "the device went with the agent");
            let kept = network_route(node)?;
            ensure!(kept.contains(&format!("dev {DEVICE}")), "{kept}");
            lab.start_agent(node, &[])?;
            wait_pings(lab)?;
            let kept = network_route(node)?;
            ensure!(ifindex(node)? == index && kept == route, "{kept}");
        }
        let report = connection.close()?;
        ensure!(report.exchanges > 100, "{report:?}");
        end(node)?;
        let (code, status) = node.status()?;
        ensure!(code == Some(1), "{code:?}: {status}");
        ensure!(
            status.contains("no agent is running: pods reach no other nodes"),
            "{status}"
        );
        Ok(())
    });
}

#[test]
fn a_restart_adopts_the_device_and_connections_go_on() {
    connections_survive(Node::stop_agent);
}

#[test]
fn a_killed_agents_device_is_adopted_and_connections_go_on() {
    connections_survive(Node::kill_agent);
}

#[test]
fn without_the_agent_pod_packets_do_not_leave_by_the_default_route() {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        node.kill_agent()?;
        let wire = node.capture_wire()?;
        ensure!(ping::once(&node.first_pod(), peer.first_pod().address).is_err());
        let target = peer.first_pod().address.octets();
        let frames = wire.stop()?;
        let leaked = frames
            .iter()
            .filter(|frame| frame.bytes.windows(4).any(|bytes| bytes == target));
        // Nor in a datagram, for nobody makes them.
        ensure!(leaked.count() == 0, "pod packets on the wire");
        Ok(())
    });
}

#[test]
fn a_device_that_is_deleted_or_changed_is_restored_with_its_forwarder() {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        wait_pings(lab)?;
        for command in [
            "link delete flannel0",
            "link set flannel0 down",
            "link set flannel0 mtu 1000",
            "addr flush dev flannel0",
            "route delete 10.5.0.0/16",
        ] {
            node.cmd("ip", command.split(' '))?;
            wait_for(command, DEADLINE, || {
                node.check_running()?;
                let link = node.cmd("ip", ["link", "show", DEVICE])?;
                ensure!(link.contains("mtu 1472") && link.contains(",UP"), "{link}");
                lab.ping_matrix()
            })?;
        }
        Ok(())
    });
}
