//! `overlay-agent monitor`: it tells of packets while it runs, loses none, and leaves nothing behind.

use std::{fs, net::SocketAddr, os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_agent::{
    datapath::sys::{link_place, object_get},
    object::LOGGING_OBJECT,
};
use overlay_tests::{
    lab::{Lab, Node, agent, scenario},
    process::{Daemon, Lifetime},
    skip,
    traffic::{flow::SteadyFlow, udp},
    wait::wait_for,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const NOT_BUILT: &str = "the agent was built without the programs that log; build them with `cargo \
                         xtask build-ebpf --log`, then the agent";

/// Starts `monitor` on the node; what it prints goes to a file of this name.
fn start(lab: &Lab, node: &Node, name: &str, words: &[&str]) -> Result<Daemon> {
    let binary = agent::binary()?;
    let program = binary.to_str().context("a path in UTF-8")?;
    let mut command = node.namespace.command(program);
    command.arg("monitor").args(words).args(["-o", "json"]);
    command.arg("--pin-dir").arg(&node.pin_dir);
    let log = lab.dir().join(format!("{name}.log"));
    Daemon::start(name, command, &log, Lifetime::Bound)
}

/// Starts it, and waits until it listens.
fn listen(lab: &Lab, node: &Node, name: &str, words: &[&str]) -> Result<Daemon> {
    let monitor = start(lab, node, name, words)?;
    wait_for("monitor to listen", PATIENCE, || {
        monitor.check_running()?;
        ensure!(monitor.log().contains("listening"), "{}", monitor.log());
        Ok(())
    })?;
    Ok(monitor)
}

/// The packets it told of.
fn packets(monitor: &Daemon) -> Vec<Value> {
    let log = monitor.log();
    let lines = log.lines();
    let objects = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    objects.filter(|line| line["hook"].is_string()).collect()
}

/// Waits for a packet that has all these values.
fn wait_for_packet(monitor: &Daemon, values: &[(&str, &str)]) -> Result<()> {
    wait_for(&format!("a packet with {values:?}"), PATIENCE, || {
        let found = packets(monitor);
        let has_all = |packet: &Value| values.iter().all(|&(key, value)| packet[key] == value);
        ensure!(found.iter().any(has_all), "{}", monitor.log_tail(10));
        Ok(())
    })
}

/// The program at the pod's interface for what it sends.
fn program(node: &Node) -> Result<u32> {
    let [egress, _] = node.pod_link_pins(&node.pods()[0])?;
    let link = object_get(&egress)?;
    let place = link_place(link.as_fd())?.context("a link that is attached")?;
    Ok(place.program_id)
}

fn wait_for_program(node: &Node, wanted: u32) -> Result<()> {
    wait_for("the agent's own programs", PATIENCE, || {
        let found = program(node)?;
        ensure!(found == wanted, "program {found}, not {wanted}");
        Ok(())
    })
}

#[test]
fn without_the_programs_that_tell_it_says_so() {
    if LOGGING_OBJECT.is_some() {
        skip!("the agent was built with the programs that log");
    }
    scenario(Lab::builder().nodes(1), |lab| {
        lab.bring_up(1)?;
        let monitor = start(lab, lab.node(0), "monitor", &[])?;
        let status = monitor.wait_exit(PATIENCE)?;
        ensure!(status.code() == Some(1), "{status}");
        ensure!(monitor.log().contains("built without"), "{}", monitor.log());
        Ok(())
    });
}

#[test]
fn drops_are_named_and_no_packet_is_lost_by_listening_or_by_its_end() {
    if LOGGING_OBJECT.is_none() {
        skip!("{NOT_BUILT}");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [node, peer] = [lab.node(0), lab.node(1)];
        let flow = SteadyFlow::start(
            &node.first_pod(),
            &peer.first_pod(),
            Duration::from_millis(2),
        )?;
        node.wait_fast()?;
        let own = program(node)?;

        let monitor = listen(lab, node, "drops", &["--drops"])?;
        ensure!(program(node)? != own, "the agent's own program runs");
        let socket = udp::bind(&node.first_pod())?;
        let vtep = SocketAddr::new(peer.address.into(), 8472);
        socket.send_to(&[0; 60], vtep)?;
        wait_for_packet(
            &monitor,
            &[
                ("kind", "drop"),
                ("hook", "egress"),
                ("outcome", "pod_tunnel"),
                ("interface", "vetha"),
                ("protocol", "udp"),
                ("source", &socket.local_addr()?.to_string()),
                ("destination", &vtep.to_string()),
            ],
        )?;
        let others = packets(&monitor);
        ensure!(
            others.iter().all(|packet| packet["kind"] == "drop"),
            "{others:#?}"
        );
        node.wait_fast()?;

        // Another one has to wait, and is told for whom.
        let other = start(lab, node, "other", &[])?;
        ensure!(
            other.wait_exit(PATIENCE)?.code() == Some(1),
            "{}",
            other.log()
        );
        let reason = format!("process {}", monitor.pid());
        ensure!(other.log().contains(&reason), "{}", other.log());

        monitor.kill()?;
        wait_for_program(node, own)?;
        node.wait_fast()?;
        let monitor = listen(lab, node, "again", &["--all", "--count=3", "--rate=2"])?;
        ensure!(monitor.wait_exit(PATIENCE)?.success(), "{}", monitor.log());
        ensure!(packets(&monitor).len() == 3, "{}", monitor.log());
        ensure!(monitor.log().contains("not_shown"), "{}", monitor.log());
        wait_for_program(node, own)?;
        node.wait_fast()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn declines_are_shown_of_the_pod_or_the_peer_that_is_asked_for_only() {
    if LOGGING_OBJECT.is_none() {
        skip!("{NOT_BUILT}");
    }
    scenario(Lab::builder().nodes(3), |lab| {
        lab.bring_up(2)?;
        let node = lab.node(0);
        let pods = node.pods();
        let [one, other] = [pods[0].endpoint(), pods[1].endpoint()];
        let [first, second] = [lab.node(1), lab.node(2)];
        let exchange = || -> Result<()> {
            for from in [&one, &other] {
                for to in [first, second] {
                    // Too large for one packet.
                    udp::echo_each(from, &to.first_pod(), &[4_000], 3)?.ensure_lossless()?;
                }
            }
            Ok(())
        };
        let fragment = [
            ("kind", "decline"),
            ("hook", "egress"),
            ("outcome", "fragment"),
        ];

        let address = one.address.to_string();
        let monitor = listen(lab, node, "pod", &["--declines", "--pod", &address])?;
        exchange()?;
        wait_for_packet(&monitor, &[&fragment[..], &[("source", &address)]].concat())?;
        monitor.signal(Signal::SIGINT)?;
        ensure!(monitor.wait_exit(PATIENCE)?.success(), "{}", monitor.log());
        for packet in packets(&monitor) {
            let is_end = |key: &str| {
                packet[key]
                    .as_str()
                    .is_some_and(|end| end.contains(&address))
            };
            ensure!(is_end("source") || is_end("destination"), "{packet:#}");
            ensure!(packet["kind"] == "decline", "{packet:#}");
        }

        let address = first.address.to_string();
        let monitor = listen(lab, node, "peer", &["--declines", "--peer", &address])?;
        exchange()?;
        let its_pod = first.first_pod().address.to_string();
        wait_for_packet(
            &monitor,
            &[&fragment[..], &[("destination", &its_pod)]].concat(),
        )?;
        monitor.stop()?;
        let others = second.first_pod().address.to_string();
        ensure!(!packets(&monitor).is_empty(), "{}", monitor.log());
        ensure!(!monitor.log().contains(&others), "{}", monitor.log());
        Ok(())
    });
}

#[test]
fn it_ends_with_its_agent_and_the_next_one_runs_its_own_programs() {
    if LOGGING_OBJECT.is_none() {
        skip!("{NOT_BUILT}");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [node, peer] = [lab.node(0), lab.node(1)];
        let flow = SteadyFlow::start(
            &node.first_pod(),
            &peer.first_pod(),
            Duration::from_millis(2),
        )?;
        let own = program(node)?;
        let monitor = listen(lab, node, "stopped", &[])?;
        ensure!(program(node)? != own, "the agent's own program runs");
        // An agent that is stopped takes them back.
        node.stop_agent()?;
        ensure_ended(&monitor)?;
        ensure!(program(node)? == own, "the programs that log were left");

        start_again(lab, node, 2)?;
        let monitor = listen(lab, node, "killed", &[])?;
        let lent = program(node)?;
        node.kill_agent()?;
        ensure_ended(&monitor)?;
        ensure!(program(node)? == lent, "who put them back?");
        start_again(lab, node, 3)?;
        ensure!(program(node)? != lent, "an earlier program runs");
        node.wait_fast()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}

fn ensure_ended(monitor: &Daemon) -> Result<()> {
    let status = monitor.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}: {}", monitor.log());
    ensure!(
        monitor.log().contains("the agent has ended"),
        "{}",
        monitor.log()
    );
    Ok(())
}

/// Starts the agent of a node for the `nth` time, and waits until it has said that it has.
fn start_again(lab: &Lab, node: &Node, nth: usize) -> Result<()> {
    lab.start_agent(node, &[])?;
    wait_for("the agent to be started", PATIENCE, || {
        node.check_running()?;
        let log = fs::read_to_string(node.log_file())?;
        let started = log.matches("node started").count();
        ensure!(started == nth, "{started} times");
        Ok(())
    })
}
