//! What the operator's commands say of a node whose datagrams are fast.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_agent::object::LOGGING_OBJECT;
use overlay_tests::{
    lab::{
        Node,
        agent::{judge, operator_json},
        scenario,
    },
    skip,
    traffic::{flow::SteadyFlow, udp},
    wait::wait_for,
};
use serde_json::Value;

use super::{DEADLINE, DEVICE, counted, fast::cabled};

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn the_commands_tell_what_is_fast_and_how() {
    scenario(cabled(2), |lab| {
        lab.bring_up(1)?;
        let [here, there] = [lab.node(0), lab.node(1)];
        let [from, to] = [here, there].map(Node::first_pod);
        let flow = SteadyFlow::start(&from, &to, Duration::from_millis(2))?;
        here.wait_fast()?;
        let file = here.subnet_file_flag();
        let ends = [from.address, to.address].map(|address| address.to_string());
        let words = ["trace", &ends[0], &ends[1], &file, "--proto=udp"];
        // Now and then a packet is the one that renews the permit.
        let said = wait_for("trace to tell of a fast flow", DEADLINE, || {
            let (code, said) = judge(here, &words)?;
            ensure!(code == Some(0) && said["verdict"] == "passes", "{said:#}");
            ensure!(said["fast"]["now"] == true, "{said:#}");
            Ok(said)
        })?;
        ensure!(said["mtu"] == 1472, "{said:#}");
        let steps = said["steps"].as_array().context("steps")?;
        let step = |name: &str| -> Result<&Value> {
            let found = steps.iter().find(|step| text(step, "name") == name);
            found.with_context(|| format!("no step {name} in {said:#}"))
        };
        ensure!(text(step("route")?, "interface") == DEVICE, "{said:#}");
        let tunnel = text(step("tunnel")?, "text");
        let nodes = format!("{} → {}", here.address, there.address);
        for part in [&nodes, "udp port 8285", "28 bytes of headers"] {
            ensure!(tunnel.contains(part), "no {part:?} in {tunnel}");
        }

        let (code, said) = judge(here, &["check", &file])?;
        ensure!(
            code == Some(0) && said["findings"] == serde_json::json!([]),
            "{said:#}"
        );

        let routes = operator_json(here, &["routes"])?;
        let route = &routes["ipv4"]["routes"];
        ensure!(
            routes.to_string().contains(r#""mode":"tunnel""#),
            "{route} of {routes:#}"
        );
        let stats = operator_json(here, &["stats"])?;
        let fast = stats["fast_path"]["egress"]["fast_packets"].as_u64();
        ensure!(fast.is_some_and(|packets| packets > 50), "{stats:#}");
        ensure!(counted(here)?["sent"] > 0);
        let whole = operator_json(here, &["status"])?;
        let node = &whole["datapath"]["node"];
        ensure!(node["vtep_ifname"] == DEVICE && node["port"] == 8285);
        ensure!(node["vtep_mac"].is_null() && node["vni"].is_null());
        ensure!(whole["forwarder"]["alone_because"].is_null(), "{whole:#}");
        flow.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn what_programs_log_at_the_device_names_the_pods() {
    if LOGGING_OBJECT.is_none() {
        skip!("the agent was built without the programs that log: `cargo xtask build-ebpf --log`");
    }
    scenario(cabled(2), |lab| {
        lab.start_agents(&["--datapath-log=debug"])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        let [from, to] = [lab.node(0), lab.node(1)].map(Node::first_pod);
        udp::echo_each(&from, &to, &[100], 5)?.ensure_lossless()?;
        for (node, hook, source) in [
            (lab.node(0), "confirm", &from),
            (lab.node(1), "arrive", &from),
        ] {
            let parts = [
                format!("hook=\"{hook}\""),
                format!("interface=\"{DEVICE}\""),
                format!("source=\"{}:", source.address),
            ];
            wait_for("a packet at the device", DEADLINE, || {
                let log = node.with_agent(|agent| Ok(agent.log()))?;
                let is_it = |line: &str| parts.iter().all(|part| line.contains(part));
                ensure!(log.lines().any(is_it), "no {parts:?} in {log}");
                Ok(())
            })?;
        }
        Ok(())
    });
}
