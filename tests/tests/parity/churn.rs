//! Endless change: nothing of it stays, and traffic goes on.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Result, ensure};
use aya::util::nr_cpus;
use overlay_common::{family::V4, outcome::Hook};
use overlay_tests::{
    differ::{
        Mode, in_mode,
        packets::{self, Header as _, Ip, UDP},
        raw::{RawPort, deafen, mac_of, undeafen},
    },
    lab::{Attachment, Lab, Pod, holdings::Holdings},
    rules::Protocol,
    services::{Connection, Server},
    traffic::flow::SteadyFlow,
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 8080;
/// Rounds after which the agent has allocated what it will.
const WARM_UP: usize = 3;
const ROUNDS: usize = 8;
const GHOSTS: u8 = 4;
const RESTARTS: usize = 3;
/// What the allocator may keep of a round's garbage.
const RSS_TOLERANCE_KIB: u64 = 3_072;
/// Flows that live beside the churn.
const MANY_FLOWS: u32 = 100_000;
/// Every CPU has a part of the table, and one may see all of them first.
const ROOM_PER_CPU: usize = 131_072;
/// More flows than the table has room for.
const TOO_MANY_FLOWS: u32 = 150_000;

/// Connection tracking has a limit of its own, which is not the one to be reached.
fn leave_untracked(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        node.cmd(
            "nft",
            ["table ip untracked { chain all_packets { type filter hook prerouting priority raw; \
              udp dport 9-20 notrack; }; }"],
        )?;
    }
    Ok(())
}

/// Sends two datagrams of each of `count` flows from a pod of the first node to a pod of the other,
/// which does not answer: the second one earns the permit.
fn open_flows(lab: &Lab, from: &Pod, to: &Pod, count: u32) -> Result<()> {
    deafen::<V4>(&to.namespace)?;
    let port = RawPort::open(from)?;
    let gateway = mac_of(&lab.node(0).namespace, "cni0")?;
    let header = [&gateway.octets[..], &port.mac.octets, &[8, 0]].concat();
    for number in 0..count {
        let [_, high, low_a, low_b] = number.to_be_bytes();
        let ip = Ip {
            source: from.address,
            // Several destinations' worth of source ports.
            destination: Ipv4Addr::from_bits(to.address.to_bits() + u32::from(high % 2)),
            protocol: UDP,
            ttl: 64,
            tos: 0,
            id: 0,
            fragment: 0,
            options: Vec::new(),
        };
        let source = u16::from_be_bytes([low_a, low_b]);
        let segment = packets::udp(&ip, [source, 9 + u16::from(high)], b"");
        let frame = [&header[..], &ip.packet(&segment)].concat();
        for _ in 0..2 {
            port.send(&frame)?;
        }
    }
    Ok(())
}

fn ghost_key(number: u8) -> String {
    format!("10.5.{}.0-24", 200 + number)
}

/// Peers and pods come and go, rules change.
fn round(lab: &Lab) -> Result<()> {
    for number in 0..GHOSTS {
        let lease = format!(
            r#"{{"PublicIP":"172.30.0.{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{number:02x}"}}}}"#,
            200 + number
        );
        lab.store().put_lease(&ghost_key(number), &lease)?;
    }
    wait_peers(lab, 1 + usize::from(GHOSTS))?;
    for node in lab.nodes() {
        node.add_pod("passing", Attachment::Bridge)?;
        node.cmd("nft", ["add table ip passing"])?;
    }
    lab.ping_matrix()?;
    for node in lab.nodes() {
        node.remove_pod("passing")?;
        node.cmd("nft", ["delete table ip passing"])?;
    }
    for number in 0..GHOSTS {
        lab.store().delete_lease(&ghost_key(number))?;
    }
    wait_peers(lab, 1)
}

fn wait_peers(lab: &Lab, count: usize) -> Result<()> {
    wait_for("all nodes to follow the leases", DEADLINE, || {
        for node in lab.nodes() {
            let peers = node.mapped_subnets()?;
            ensure!(peers.len() == count, "{} has {peers:?}", node.name);
        }
        Ok(())
    })
}

#[test]
fn churn_of_peers_pods_and_rules_loses_no_packet_and_leaks_nothing() {
    let nodes = Lab::builder().nodes(2);
    let cpus = nr_cpus().expect("a number of CPUs");
    let size = format!("--flow-table-size={}", ROOM_PER_CPU * cpus);
    in_mode(&nodes, &[&size], Mode::Fast, |lab, _| {
        leave_untracked(lab)?;
        lab.add_pods(2)?;
        lab.ping_matrix()?;
        let pods: Vec<_> = lab.pods().into_iter().map(|(_, pod)| pod).collect();
        open_flows(lab, &pods[1], &pods[3], MANY_FLOWS)?;
        undeafen(&pods[3].namespace)?;
        let [from, to] = [0, 1].map(|node| lab.node(node).pods()[0].endpoint());
        let flow = SteadyFlow::start(&from, &to, Duration::from_millis(5))?;
        for _ in 0..WARM_UP {
            round(lab)?;
        }
        let settled = lab
            .nodes()
            .iter()
            .map(Holdings::of)
            .collect::<Result<Vec<_>>>()?;
        for _ in 0..ROUNDS {
            round(lab)?;
        }
        flow.stop()?.datagrams.ensure_lossless()?;
        for (node, before) in lab.nodes().iter().zip(settled) {
            wait_for("the agent to hold what it held", DEADLINE, || {
                let now = Holdings::of(node)?;
                ensure!(
                    now.descriptors <= before.descriptors
                        && now.pins == before.pins
                        && now.programs == before.programs
                        && now.links == before.links
                        && now.rss_kib <= before.rss_kib + RSS_TOLERANCE_KIB,
                    "{} holds {now:?}, before {ROUNDS} rounds {before:?}",
                    node.name
                );
                Ok(())
            })?;
        }
        let fast = lab.node(0).counters()?.fast(Hook::Egress);
        ensure!(fast > 500, "{fast} packets were fast");
        let status = lab.node(0).operator_json(&["status"])?;
        let entries = status["datapath"]["flows"]["entries"].as_u64();
        ensure!(
            entries.is_some_and(|entries| entries >= u64::from(MANY_FLOWS)),
            "{entries:?} flows are left of {MANY_FLOWS}"
        );

        // Agents that are killed and started again leave nothing of each other's, either.
        let node = lab.node(0);
        let before = Holdings::of(node)?;
        for _ in 0..RESTARTS {
            node.kill_agent()?;
            lab.start_agent(node, &[&size])?;
            wait_peers(lab, 1)?;
        }
        wait_for(
            "the last agent to hold what the first held",
            DEADLINE,
            || {
                let now = Holdings::of(node)?;
                ensure!(
                    now.descriptors <= before.descriptors
                        && (now.pins, now.programs, now.links)
                            == (before.pins, before.programs, before.links),
                    "it holds {now:?}, the first {before:?}"
                );
                Ok(())
            },
        )
    });
}

/// One pod opens more flows than the table holds; others are served as before.
#[test]
fn a_full_flow_table_stops_nobody() {
    in_mode(&Lab::builder().nodes(2), &[], Mode::Fast, |lab, _| {
        leave_untracked(lab)?;
        lab.add_pods(2)?;
        lab.ping_matrix()?;
        let pods: Vec<_> = lab.pods().into_iter().map(|(_, pod)| pod).collect();
        let (flooder, sink) = (&pods[0], &pods[2]);
        let (from, to) = (pods[1].endpoint(), pods[3].endpoint());
        let _server = Server::start(&to, Protocol::Tcp, PORT)?;
        let target = SocketAddrV4::new(to.address, PORT);
        let mut open = Connection::open(&from, Protocol::Tcp, target, 0)?;
        open.exchange(10_000, 100)?;

        open_flows(lab, flooder, sink, TOO_MANY_FLOWS)?;
        let granted = lab.node(0).counters()?;
        for connection in [
            &mut open,
            &mut Connection::open(&from, Protocol::Tcp, target, 0)?,
        ] {
            wait_for("the fast path to carry a connection", DEADLINE, || {
                let before = lab.node(0).counters()?.fast(Hook::Egress);
                connection.exchange(2_000, 100)?;
                let fast = lab.node(0).counters()?.fast(Hook::Egress) - before;
                ensure!(fast >= 15, "{fast} of 20 packets were fast; {granted}");
                Ok(())
            })?;
        }
        let dropped = lab.node(0).counters()?.dropped();
        ensure!(dropped == 0, "{dropped} packets were dropped");
        Ok(())
    });
}
