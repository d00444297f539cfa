//! `--datapath-log`: the programs of the logging flavour say what they do with packets, and those of the
//! other flavour contain nothing of it.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{EbpfLoader, programs::Program};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use overlay_agent::object::{LOGGING_OBJECT, OBJECT};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    skip,
    traffic::{Address, Endpoint, flow::SteadyFlow, udp},
    wait::wait_for,
};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(10);
const JSON: &str = "--log-format=json";
const DUAL_STACK: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
/// Of the programs that log: a third of what a kernel walks through.
const VERIFIED_LIMIT: u32 = 333_333;
const NOT_BUILT: &str = "the agent was built without the programs that log; build them with `cargo \
                         xtask build-ebpf --log`, then the agent";

/// The lines about packets that the node's agents wrote after the first `from` bytes of their log.
fn packets(node: &Node, from: usize) -> Result<Vec<Value>> {
    let log = fs::read_to_string(node.log_file())?;
    let log = log.get(from..).context("the log has become shorter")?;
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter(|line| line["message"] == "packet").collect())
}

fn log_size(node: &Node) -> Result<usize> {
    Ok(fs::metadata(node.log_file())?.len().try_into()?)
}

/// Waits for a line that has all these values.
fn wait_for_line(node: &Node, values: &[(&str, &str)]) -> Result<()> {
    wait_for(&format!("a line with {values:?}"), DEADLINE, || {
        let lines = packets(node, 0)?;
        let found = lines
            .iter()
            .any(|line| values.iter().all(|&(key, value)| line[key] == value));
        let last = lines.iter().rev().take(20).collect::<Vec<_>>();
        ensure!(found, "{} lines, the last: {last:#?}", lines.len());
        Ok(())
    })
}

/// Has datagrams go from the first node to the second that its programs leave to the kernel, and one
/// that they drop, and waits for the lines about them.
fn check_lines<A: Address>(
    node: &Node,
    from: &Endpoint<A>,
    to: &Endpoint<A>,
    node_addresses: [A; 2],
    protocol: &str,
) -> Result<()> {
    udp::echo_each(from, to, &[4_000], 3)?.ensure_lossless()?;
    let interface = node.pods()[0].host_interface.clone();
    let (source, destination) = (from.address.to_string(), to.address.to_string());
    let [own, peer] = node_addresses.map(|address| address.to_string());
    let fragment = [
        ("level", "INFO"),
        ("kind", "decline"),
        ("outcome", "fragment"),
        ("protocol", protocol),
    ];
    let sent = [
        ("hook", "egress"),
        ("interface", &interface),
        ("source", &source),
        ("destination", &destination),
    ];
    wait_for_line(node, &[&fragment[..], &sent[..]].concat())?;
    // Inside a tunnel packet.
    let received = [
        ("hook", "ingress"),
        ("interface", "eth0"),
        ("source", &destination),
        ("destination", &source),
        ("peer", &peer),
    ];
    wait_for_line(node, &[&fragment[..], &received[..]].concat())?;

    let socket = udp::bind(from)?;
    let vtep = SocketAddr::new(own.parse()?, 8472);
    socket.send_to(&[0; 60], vtep)?;
    wait_for_line(
        node,
        &[
            ("level", "WARN"),
            ("kind", "drop"),
            ("hook", "egress"),
            ("outcome", "pod_tunnel"),
            ("source", &socket.local_addr()?.to_string()),
            ("destination", &vtep.to_string()),
        ],
    )
}

#[test]
fn a_declined_and_a_dropped_packet_are_logged_by_name_and_without_the_flag_nothing_is() {
    if LOGGING_OBJECT.is_none() {
        skip!("{NOT_BUILT}");
    }
    scenario(Lab::builder().nodes(2).config(DUAL_STACK), |lab| {
        lab.start_agents6(&["--datapath-log=info", JSON])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        let [node, quiet] = [lab.node(0), lab.node(1)];
        quiet.kill_agent()?;
        lab.start_agent(quiet, &[JSON])?;
        lab.wait_attached()?;
        let quiet_from = log_size(quiet)?;

        let addresses = [node, quiet].map(|node| node.address);
        check_lines(
            node,
            &node.first_pod(),
            &quiet.first_pod(),
            addresses,
            "udp",
        )?;
        let addresses = [node, quiet].map(Node::address6);
        let [from, to] = [node, quiet].map(|node| node.add_ipv6(&node.pods()[0]));
        // What follows the IPv6 header: a fragment header.
        check_lines(node, &from?, &to?, addresses, "44")?;

        let lines = packets(node, 0)?;
        let other: Vec<_> = lines
            .iter()
            .filter(|line| line["level"] != "INFO" && line["level"] != "WARN")
            .collect();
        ensure!(other.is_empty(), "at level info: {other:#?}");
        let lines = packets(quiet, quiet_from)?;
        ensure!(lines.is_empty(), "without the flag: {lines:#?}");
        Ok(())
    });
}

#[test]
fn restarts_that_switch_the_log_on_and_off_lose_no_packet() {
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
        let adopted = node.attached("flannel.1")?;

        node.kill_agent()?;
        lab.start_agent(node, &["--datapath-log=trace", JSON])?;
        node.wait_fast()?;
        let fast = [
            ("level", "TRACE"),
            ("kind", "fast"),
            ("hook", "egress"),
            ("outcome", "fast_tunnel"),
            ("peer", &peer.address.to_string()),
        ];
        wait_for_line(node, &fast)?;

        node.kill_agent()?;
        lab.start_agent(node, &[JSON])?;
        lab.wait_attached()?;
        let from = log_size(node)?;
        node.wait_fast()?;
        ensure!(
            node.attached("flannel.1")? == adopted,
            "other links than before"
        );
        flow.stop()?.datagrams.ensure_lossless()?;
        let lines = packets(node, from)?;
        ensure!(lines.is_empty(), "after the switch: {lines:#?}");
        Ok(())
    });
}

#[test]
fn the_programs_that_log_load_at_every_level_and_are_far_from_the_verifiers_limit() {
    let Some(object) = LOGGING_OBJECT else {
        skip!("{NOT_BUILT}");
    };
    for level in 0..=5u8 {
        let mut ebpf = EbpfLoader::new()
            .override_global(aya_log::LEVEL, &level, true)
            .load(object)
            .expect("the object loads");
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::SchedClassifier(program) => program.load().expect(name),
                Program::Xdp(program) => program.load().expect(name),
                other => panic!("{name} is {other:?}"),
            }
            let info = program.info().expect("facts about a loaded program");
            let verified = info.verified_instruction_count().expect("Linux 5.16");
            assert!(
                verified < VERIFIED_LIMIT,
                "{name} at level {level}: {verified} instructions verified"
            );
        }
    }
}

/// Names of sections and symbols that belong to the log.
fn traces_of_the_log(elf: &[u8]) -> Vec<String> {
    let file = object::File::parse(elf).expect("an ELF object");
    let sections = file
        .sections()
        .filter_map(|section| section.name().ok().map(str::to_owned))
        // A legacy map, and the texts of the messages.
        .filter(|name| name == "maps" || name.starts_with(".rodata"));
    let symbols = file
        .symbols()
        .filter_map(|symbol| symbol.name().ok().map(str::to_owned))
        .filter(|name| name.contains("log") || name.contains("LOG"));
    sections.chain(symbols).collect()
}

#[test]
fn the_programs_that_do_not_log_contain_nothing_of_it() {
    assert_eq!(traces_of_the_log(OBJECT), [""; 0]);
    if let Some(object) = LOGGING_OBJECT {
        let traces = traces_of_the_log(object);
        for expected in ["maps", ".rodata", "AYA_LOGS", "AYA_LOG_LEVEL"] {
            assert!(traces.iter().any(|name| name == expected), "{traces:?}");
        }
    }
}
