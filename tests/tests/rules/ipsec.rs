//! A policy that wants the packets between two nodes ciphered, where there is no state to cipher them
//! with: nothing leaves in clear any more, not even in flows that the fast path carries.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    decode::is_udp_to,
    lab::{Lab, Node, scenario},
    rules::Protocol,
    services::{Connection, Server},
    traffic::ping,
    wait::wait_for,
};

const VXLAN_PORT: u16 = 8472;
const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(15);
/// What an announced change may take to end fast flows.
const BOUND: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_millis(400);

fn generation(node: &Node) -> Result<u64> {
    let status = node.operator_json(&["status"])?;
    Ok(status["datapath"]["generation"]
        .as_u64()
        .unwrap_or_default())
}

/// Sets the policy, or takes it away.
fn set_policy(lab: &Lab, present: bool) -> Result<()> {
    let [from, to] = [0, 1].map(|index| lab.node(index).address.to_string());
    let selector = ["src", &from, "dst", &to, "dir", "out"];
    let way = ["src", &from, "dst", &to, "proto", "esp"];
    let mode = ["mode", "transport", "level", "required"];
    let words = if present {
        [
            &["xfrm", "policy", "add"],
            &selector[..],
            &["tmpl"],
            &way,
            &mode,
        ]
        .concat()
    } else {
        [&["xfrm", "policy", "delete"], &selector[..]].concat()
    };
    lab.node(0).cmd("ip", words).map(drop)
}

/// Tunnel packets that leave the first node in clear, and whether pods still reach each other, from
/// [`BOUND`] after the policy on.
fn after_the_policy(lab: &Lab, connection: &mut Connection) -> Result<(usize, bool)> {
    let pods = lab.pods();
    let (client, server) = (pods[0].1.endpoint(), pods[1].1.address);
    set_policy(lab, true)?;
    let appeared = Instant::now();
    while appeared.elapsed() < BOUND {
        connection.is_cut(Duration::from_millis(50))?;
    }
    let capture = lab.node(0).capture_wire()?;
    let mac = lab.node(0).mac("eth0")?;
    let mut answered = false;
    for _ in 0..5 {
        answered |= !connection.is_cut(SILENCE)?;
        answered |= ping::once(&client, server).is_ok();
    }
    let frames = capture.stop()?;
    let clear = frames.iter().filter(|frame| {
        frame.bytes.get(6..12) == Some(&mac.octets[..]) && is_udp_to(&frame.bytes, VXLAN_PORT)
    });
    Ok((clear.count(), answered))
}

fn with_connection(arguments: &[&str], test: impl FnOnce(&Lab, &mut Connection) -> Result<()>) {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(arguments)?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        let pods = lab.pods();
        let [client, server] = [0, 1].map(|index| pods[index].1.endpoint());
        let listening = Server::start(&server, Protocol::Udp, PORT)?;
        let mut connection = Connection::open(&client, Protocol::Udp, listening.address, 0)?;
        connection.exchange(2_000, 100)?;
        test(lab, &mut connection)
    });
}

#[test]
fn a_policy_to_cipher_ends_fast_flows_within_a_second() {
    with_connection(&[], |lab, connection| {
        lab.wait_attached()?;
        let node = lab.node(0);
        wait_for("the flow to be fast", DEADLINE, || {
            let before = node.counters()?;
            connection.exchange(2_000, 100)?;
            let fast = node.counters()?.since(&before).fast(Hook::Egress);
            ensure!(fast >= 15, "{fast} fast packets of 20");
            Ok(())
        })?;
        let before = generation(node)?;
        let (clear, answered) = after_the_policy(lab, connection)?;
        ensure!(generation(node)? > before, "no flush");
        ensure!(clear == 0, "{clear} tunnel packets left in clear");
        ensure!(!answered, "pods still reach each other");

        set_policy(lab, false)?;
        wait_for("packets to pass again", DEADLINE, || {
            connection.recover()?;
            connection.exchange(2_000, 100)
        })
    });
}

#[test]
fn a_policy_to_cipher_ends_flows_without_the_fast_path_too() {
    with_connection(&["--fastpath=off"], |lab, connection| {
        let (clear, answered) = after_the_policy(lab, connection)?;
        ensure!(clear == 0, "{clear} tunnel packets left in clear");
        ensure!(!answered, "pods still reach each other");
        Ok(())
    });
}

#[test]
fn every_change_of_policies_flushes() {
    with_connection(&[], |lab, _| {
        let node = lab.node(0);
        let [from, to] = [0, 1].map(|index| lab.node(index).address.to_string());
        let policy = ["src", &from, "dst", &to, "dir", "out"];
        let changes: [(&str, &[&str]); 4] = [
            ("an allowing policy", &["policy", "add"]),
            ("another of its kind", &["policy", "update"]),
            ("its end", &["policy", "delete"]),
            (
                "another default",
                &["policy", "setdefault", "out", "accept"],
            ),
        ];
        for (what, words) in changes {
            let before = generation(node)?;
            let selector = if words.contains(&"setdefault") {
                &[]
            } else {
                &policy[..]
            };
            node.cmd("ip", [&["xfrm"], words, selector].concat())?;
            wait_for(&format!("a flush after {what}"), BOUND, || {
                ensure!(generation(node)? > before, "generation {before}");
                Ok(())
            })?;
        }
        Ok(())
    });
}
