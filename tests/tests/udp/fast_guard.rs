//! Who may use what fast flows have earned: nobody but the node of their pods, and no pod.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::ensure;
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    lab::{Lab, scenario},
    traffic::{flow::SteadyFlow, udp},
    wait::wait_for,
};

use super::{
    CONFIG, DEADLINE, PORT, counted,
    fast::cabled,
    guard::injected,
    peer::{ADDRESS, StockPeer, bind, packet},
    wait_counted,
};
#[test]
fn a_packet_of_a_fast_flow_that_its_node_did_not_send_is_refused() {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let (near, far) = (node.first_pod(), peer.first_pod());
        let flow = SteadyFlow::start(&far, &near, Duration::from_millis(2))?;
        node.wait_fast()?;
        // The flow's own addresses, and ports as the flow has them.
        let shown = node.operator_json(&["flows"])?;
        let text = shown.to_string();
        let victim = shown["flows"].as_array().and_then(|flows| {
            flows
                .iter()
                .find(|flow| flow["protocol"] == "udp" && flow["remote"] == far.address.to_string())
        });
        let port = |name: &str| {
            let port = victim.and_then(|flow| flow[name].as_u64());
            port.and_then(|port| u16::try_from(port).ok())
        };
        let (Some(local), Some(remote)) = (port("local_port"), port("remote_port")) else {
            anyhow::bail!("no such flow in {text}");
        };
        // As it would arrive of the pod: less the hop of its host and that of the forwarder there.
        let forged = packet(
            (far.address, remote),
            (near.address, local),
            62,
            &udp::fill(0, 200),
        )?;
        let mut stranger = lab.outside();
        stranger.address = Ipv4Addr::new(172, 30, 0, 77);
        let address = format!("{}/24", stranger.address);
        stranger
            .namespace
            .run("ip", ["addr", "add", &address, "dev", "seg0"])?;
        let stranger = bind(&stranger, PORT)?;
        let (before, forwarder) = (node.counters()?, counted(node)?);
        stranger.send_to(&forged, (node.address, PORT))?;
        wait_counted(node, &forwarder, "unknown_sender", 1)?;
        let now = node.counters()?.since(&before);
        ensure!(now.packets(Hook::Ingress, Outcome::WrongPeer) == 1, "{now}");

        // Another node, which speaks for a pod that is not its own; and from a port that is not a node's.
        let stock = StockPeer::join(lab, node)?;
        let (before, forwarder) = (node.counters()?, counted(node)?);
        stock.socket.send_to(&forged, (node.address, PORT))?;
        wait_counted(node, &forwarder, "inner_source", 1)?;
        let now = node.counters()?.since(&before);
        ensure!(now.packets(Hook::Ingress, Outcome::WrongPeer) == 1, "{now}");
        let (before, forwarder) = (node.counters()?, counted(node)?);
        let other_port = bind(&peer.endpoint(), 40_000)?;
        other_port.send_to(&forged, (node.address, PORT))?;
        wait_counted(node, &forwarder, "sender_port", 1)?;
        let now = node.counters()?.since(&before);
        ensure!(
            now.packets(Hook::Ingress, Outcome::UnknownPeer) == 1,
            "{now}"
        );
        flow.stop()?.datagrams.ensure_lossless()
    });
}

/// As pods of any cluster do it, and as those that are masqueraded by a rule that keeps ports.
fn pods_reach_no_forwarder(options: &[&str]) {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.start_agents(options)?;
        lab.add_pods(2)?;
        lab.wait_converged()?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let pods = node.pods();
        let (attacker, victim) = (pods[0].endpoint(), peer.pods()[0].endpoint());
        node.cmd(
            "nft",
            ["add table ip keeps\n\
              add chain ip keeps post { type nat hook postrouting priority 90; }\n\
              add rule ip keeps post oifname eth0 ip saddr 10.5.0.0/16 masquerade\n"],
        )?;
        let socket = bind(&attacker, PORT)?;
        for target in [node, peer] {
            let bytes = injected(pods[1].address, node, target, victim.address)?;
            let (before, forwarder) = (node.counters()?, counted(target)?);
            let end = SocketAddr::from((target.address, PORT));
            attacker.namespace.enter(|| socket.send_to(&bytes, end))?;
            wait_for("the packet to be dropped", DEADLINE, || {
                let now = node.counters()?.since(&before);
                ensure!(now.packets(Hook::Egress, Outcome::PodTunnel) == 1, "{now}");
                Ok(())
            })?;
            let now = counted(target)?;
            for event in ["received", "unknown_sender", "sender_port"] {
                ensure!(now[event] == forwarder[event], "{event}: {now:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn pods_reach_no_forwarder_of_any_node() {
    pods_reach_no_forwarder(&[]);
}

#[test]
fn pods_reach_no_forwarder_with_the_fast_path_off() {
    pods_reach_no_forwarder(&["--fastpath=off"]);
}

#[test]
fn what_a_node_says_for_others_earns_nothing() {
    scenario(cabled(1), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let stock = StockPeer::join(lab, node)?;
        let pod = node.pods()[0].endpoint();
        let socket = udp::bind(&pod)?;
        let to = (pod.address, socket.local_addr()?.port());
        let before = counted(node)?;
        // A source of nobody's in the pod network, again and again: nothing of it earns anything.
        let nobody = Ipv4Addr::new(10, 5, 77, 2);
        for _ in 0..10 {
            let bytes = packet((nobody, 4000), to, 64, b"forged")?;
            stock.socket.send_to(&bytes, (node.address, PORT))?;
        }
        wait_counted(node, &before, "inner_source", 10)?;
        let bytes = packet((ADDRESS, 4000), to, 64, b"from a pod")?;
        stock.socket.send_to(&bytes, (node.address, PORT))?;
        wait_counted(node, &before, "received", 1)
    });
}
