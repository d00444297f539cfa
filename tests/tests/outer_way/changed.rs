//! What rules write into the headers of pods' packets arrives with every packet.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::{Capture, Direction},
    differ::{Mode, in_both_modes, raw::POD_INTERFACE},
    in_both_families,
    lab::{Lab, Node},
    traffic::{
        Endpoint,
        flow::SteadyFlow,
        udp::{EchoServer, bind, fill},
    },
    wait::wait_for,
};

use crate::family::{BOUND, DEADLINE, Header, pods, two_nodes};

const INTERVAL: Duration = Duration::from_millis(5);
/// Packets to look at, in each direction.
const PACKETS: usize = 60;

/// What a pod finds in the headers of the other's packets: TOS and TTL.
type Headers = BTreeSet<(u8, u8)>;

/// What arrives at either pod with a rule.
#[derive(Debug, PartialEq, Eq)]
struct Arrived {
    rule: String,
    /// At the pod that answers, and at the pod that asks.
    at: [Headers; 2],
}

/// Looks at what arrives at both pods.
fn look<A: Header>(pods: &[Endpoint<A>; 2], flow: &SteadyFlow) -> Result<[Headers; 2]> {
    let [asks, answers] = pods;
    let captures = [answers, asks].map(|pod| Capture::start(&pod.namespace, POD_INTERFACE));
    let before = flow.sent();
    wait_for("packets", DEADLINE, || {
        let sent = flow.sent() - before;
        ensure!(sent as usize >= PACKETS, "{sent} datagrams");
        Ok(())
    })?;
    let mut found = [Headers::new(), Headers::new()];
    for ((capture, from), headers) in captures.into_iter().zip(pods).zip(&mut found) {
        let frames = capture?.stop()?;
        let received = frames
            .iter()
            .filter(|frame| frame.direction == Direction::Received);
        let packets = received.filter_map(|frame| A::read(&frame.bytes));
        let of_flow: Vec<_> = packets
            .map(|(seen, _)| seen)
            .filter(|seen| seen.source == from.address)
            .collect();
        ensure!(of_flow.len() >= PACKETS / 2, "{} packets", of_flow.len());
        headers.extend(of_flow.iter().map(|seen| (seen.tos, seen.ttl)));
    }
    Ok(found)
}

fn arrive<A: Header>(lab: &Lab, mode: Mode) -> Result<Vec<Arrived>> {
    let pods = pods::<A>(lab)?;
    let [asks, answers] = &pods;
    let dscp = ["-j", "DSCP", "--set-dscp", "46"];
    let mut arrived = Vec::new();
    for node in lab.nodes() {
        for target in [dscp, A::SET_TTL] {
            let set = |action| {
                let rule = [&["-t", "mangle", action, "FORWARD"], &target[..]].concat();
                node.cmd(A::IPTABLES, rule).map(drop)
            };
            let rule = format!("{} at {}", target.join(" "), node.name);
            let flow = SteadyFlow::start(asks, answers, INTERVAL)?;
            if mode == Mode::Fast {
                lab.node(0).wait_fast().context("before the rule")?;
            }
            set("-A")?;
            thread::sleep(BOUND);
            let at = look(&pods, &flow)?;
            arrived.push(Arrived {
                rule: format!("{rule}, of a flow that was there"),
                at,
            });
            flow.stop()?.datagrams.ensure_lossless()?;
            let flow = SteadyFlow::start(asks, answers, INTERVAL)?;
            let at = look(&pods, &flow)?;
            arrived.push(Arrived {
                rule: format!("{rule}, of a new flow"),
                at,
            });
            set("-D")?;
            if mode == Mode::Fast {
                lab.node(0).wait_fast().context("after the rule")?;
            }
            flow.stop()?.datagrams.ensure_lossless()?;
        }
    }
    Ok(arrived)
}

fn what_rules_write_into_headers_arrives_with_every_packet<A: Header>() -> Result<()> {
    let [fast, off] = in_both_modes(&two_nodes(), &[], arrive::<A>);
    ensure!(
        fast == off,
        "with the fast path {fast:#?}\nwithout {off:#?}"
    );
    // Both directions pass the rule; a TTL is one less behind the other node.
    let expected = |rule: &str, (tos, ttl): (u8, u8)| {
        if rule.contains("DSCP") {
            tos == 184
        } else {
            tos == 0 && (ttl == 33 || ttl == 32)
        }
    };
    for Arrived { rule, at } in &fast {
        let all = at.iter().flatten().all(|&headers| expected(rule, headers));
        let one = at.iter().all(|headers| headers.len() == 1);
        ensure!(all && one, "{rule}: {at:?}");
    }
    Ok(())
}

/// What arrives of one flow that every second packet of has by itself, in TOS or TTL, what the rule writes
/// into all of them.
fn arrive_of_mixed<A: Header>(lab: &Lab, mode: Mode) -> Result<Vec<Headers>> {
    let [asks, answers] = pods::<A>(lab)?;
    let mut arrived = Vec::new();
    for (target, own) in [
        (["-j", "DSCP", "--set-dscp", "46"], [(184, 64), (0, 64)]),
        (A::SET_TTL, [(0, 34), (0, 64)]),
    ] {
        let set = |node: &Node, action| {
            let rule = [&["-t", "mangle", action, "FORWARD"], &target[..]].concat();
            node.cmd(A::IPTABLES, rule).map(drop)
        };
        lab.nodes().iter().try_for_each(|node| set(node, "-A"))?;
        thread::sleep(BOUND);
        let server = EchoServer::start(&answers)?;
        let socket = bind(&asks)?;
        socket.connect(server.address)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        let exchange = |number: u32, (tos, ttl)| -> Result<()> {
            A::set_header(&socket, tos, ttl)?;
            socket.send(&fill(number, 100))?;
            let mut reply = [0; 100];
            socket.recv(&mut reply).context("no reply")?;
            Ok(())
        };
        let mut numbers = 0..;
        if mode == Mode::Fast {
            // The packets that look as if the rule had done nothing to them are fast by themselves.
            let node = lab.node(0);
            let before = node.counters()?;
            wait_for("a fast packet", DEADLINE, || {
                exchange(numbers.next().unwrap_or_default(), own[0])?;
                let counted = node.counters()?.since(&before);
                ensure!(counted.fast(Hook::Egress) > 0, "counted\n{counted}");
                Ok(())
            })?;
        }
        let capture = Capture::start(&answers.namespace, POD_INTERFACE)?;
        for own in own.into_iter().cycle().take(PACKETS) {
            exchange(numbers.next().unwrap_or_default(), own)?;
        }
        let frames = capture.stop()?;
        let seen: Vec<_> = frames
            .iter()
            .filter(|frame| frame.direction == Direction::Received)
            .filter_map(|frame| A::read(&frame.bytes))
            .map(|(seen, _)| seen)
            .filter(|seen| seen.source == asks.address)
            .collect();
        ensure!(seen.len() >= PACKETS, "{} packets", seen.len());
        arrived.push(seen.iter().map(|seen| (seen.tos, seen.ttl)).collect());
        lab.nodes().iter().try_for_each(|node| set(node, "-D"))?;
    }
    Ok(arrived)
}

fn a_rule_holds_for_packets_that_a_fast_one_of_their_flow_makes_look_alike<A: Header>() -> Result<()>
{
    let [fast, off] = in_both_modes(&two_nodes(), &[], arrive_of_mixed::<A>);
    ensure!(fast == off, "with the fast path {fast:?}\nwithout {off:?}");
    ensure!(fast.iter().all(|headers| headers.len() == 1), "{fast:?}");
    Ok(())
}

in_both_families! { addresses:
    a_rule_holds_for_packets_that_a_fast_one_of_their_flow_makes_look_alike,
    what_rules_write_into_headers_arrives_with_every_packet,
}
