//! Who may send into the pod network, and what: nobody but nodes, and they for nobody but themselves.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Result, ensure};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::udp,
};

use super::{
    CONFIG, PORT, counted,
    peer::{ADDRESS, StockPeer, bind, packet},
    wait_counted,
};

/// What a pod of `node` would have come to a pod of `target` as if from the pod beside it: that pod itself, or `victim`.
pub fn injected(beside: Ipv4Addr, node: &Node, target: &Node, victim: Ipv4Addr) -> Result<Vec<u8>> {
    let to = if target.name == node.name {
        beside
    } else {
        victim
    };
    packet((beside, 4000), (to, 4000), 64, b"injected")
}

/// Sends a packet for the pod's socket, and waits until it has come to this and to nothing else.
fn refused(
    node: &Node,
    sender: &UdpSocket,
    event: &str,
    (source, destination, ttl): (Ipv4Addr, (Ipv4Addr, u16), u8),
) -> Result<()> {
    let before = counted(node)?;
    let bytes = packet((source, 4000), destination, ttl, b"forged")?;
    sender.send_to(&bytes, (node.address, PORT))?;
    wait_counted(node, &before, event, 1)?;
    let now = counted(node)?;
    ensure!(now["received"] == before["received"], "{event}: {now:?}");
    Ok(())
}

#[test]
fn what_a_node_may_not_send_is_dropped_and_counted() {
    scenario(Lab::builder().nodes(1).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let pod = node.pods()[0].endpoint();
        let socket = udp::bind(&pod)?;
        let pod_port = socket.local_addr()?.port();
        let to_pod = (pod.address, pod_port);

        let stranger = bind(&lab.outside(), 40_001)?;
        refused(node, &stranger, "unknown_sender", (ADDRESS, to_pod, 64))?;
        let stock = StockPeer::join(lab, node)?;
        let other_port = bind(&stock.endpoint, 40_000)?;
        refused(node, &other_port, "sender_port", (ADDRESS, to_pod, 64))?;
        let peer = &stock.socket;
        // Another pod of the node, and one of nobody's.
        for source in [pod.address, Ipv4Addr::new(10, 5, 77, 2)] {
            refused(node, peer, "inner_source", (source, to_pod, 64))?;
        }
        for address in [ADDRESS, node.address, Ipv4Addr::LOCALHOST] {
            let destination = (address, pod_port);
            refused(node, peer, "inner_destination", (ADDRESS, destination, 64))?;
        }
        refused(node, peer, "in_ttl", (ADDRESS, to_pod, 1))?;
        let before = counted(node)?;
        for bytes in [&b"x"[..], &[0x60; 60]] {
            peer.send_to(bytes, (node.address, PORT))?;
        }
        wait_counted(node, &before, "malformed", 2)?;

        socket.set_nonblocking(true)?;
        let mut datagram = [0; 100];
        let received = socket.recv_from(&mut datagram);
        ensure!(received.is_err(), "the pod got {received:?}");
        let log = node.with_agent(|agent| Ok(agent.log()))?;
        ensure!(!log.contains("panicked"), "{log}");
        Ok(())
    });
}

#[test]
fn pods_inject_nothing_into_their_own_node_nor_into_others() {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        // Where programs are, pods do not get so far.
        lab.start_agents(&["--datapath=kernel"])?;
        lab.add_pods(2)?;
        super::wait_pings(lab)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let pods = node.pods();
        let (attacker, victim) = (pods[0].endpoint(), peer.pods()[0].endpoint());
        // As the other pod of its node, and from the port that nodes have.
        let socket = bind(&attacker, PORT)?;
        for target in [node, peer] {
            let bytes = injected(pods[1].address, node, target, victim.address)?;
            let before = counted(target)?;
            attacker
                .namespace
                .enter(|| socket.send_to(&bytes, (target.address, PORT)))?;
            wait_counted(target, &before, "unknown_sender", 1)?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_is_masqueraded_has_its_nodes_address_and_not_its_port() {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.start_agents(&["--ip-masq", "--datapath=kernel"])?;
        lab.add_pods(2)?;
        super::wait_pings(lab)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let pods = node.pods();
        let (attacker, victim) = (pods[0].endpoint(), peer.pods()[0].endpoint());
        let socket = bind(&attacker, PORT)?;
        let (from, to) = ((pods[1].address, 4000), (victim.address, 4000));
        let bytes = packet(from, to, 64, b"injected")?;
        let before = counted(peer)?;
        attacker
            .namespace
            .enter(|| socket.send_to(&bytes, (peer.address, PORT)))?;
        wait_counted(peer, &before, "sender_port", 1)?;
        ensure!(counted(peer)?["received"] == before["received"]);
        Ok(())
    });
}
