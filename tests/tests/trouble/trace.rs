//! `overlay-agent trace`: it says where a packet would go on a real node, and names what would stop it.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Attachment, Lab, Node, agent, scenario},
    process::{Daemon, Lifetime},
    traffic::{
        flow::SteadyFlow,
        udp::{self, EchoServer},
    },
    wait::wait_for,
};
use serde_json::Value;

use crate::support::{judge, run};

const PATIENCE: Duration = Duration::from_secs(10);
const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;

/// What `trace` says of a packet.
fn trace(
    node: &Node,
    source: impl Into<IpAddr>,
    destination: impl Into<IpAddr>,
    more: &[&str],
) -> Result<(Option<i32>, Value)> {
    let file = node.subnet_file_flag();
    let (source, destination) = (source.into().to_string(), destination.into().to_string());
    let words = [&["trace", &source, &destination, &file], more].concat();
    judge(node, &words)
}

/// Names and states of the steps that are not as they should be.
fn remarks(said: &Value) -> Vec<(String, String)> {
    let text = |step: &Value, key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let steps = said["steps"].as_array().into_iter().flatten();
    steps
        .map(|step| (text(step, "name"), text(step, "state")))
        .filter(|(_, state)| state != "ok")
        .collect()
}

fn step<'a>(said: &'a Value, name: &str) -> Result<&'a Value> {
    let steps = said["steps"].as_array().context("steps")?;
    let found = steps.iter().find(|step| step["name"] == name);
    found.with_context(|| format!("no step {name}: {said:#}"))
}

#[track_caller]
fn ensure_passes(judged: &(Option<i32>, Value)) -> Result<()> {
    let (code, said) = judged;
    ensure!(
        *code == Some(0) && said["verdict"] == "passes" && remarks(said).is_empty(),
        "{code:?} {said:#}"
    );
    ensure!(said["not_asked"] == serde_json::json!([]), "{said:#}");
    Ok(())
}

/// Waits until the packet does not pass, and nothing but this step says so.
fn expect(
    node: &Node,
    [source, destination]: [IpAddr; 2],
    (name, state): (&str, &str),
) -> Result<Value> {
    wait_for(&format!("{name} to be {state}"), PATIENCE, || {
        let (code, said) = trace(node, source, destination, &[])?;
        let wanted = vec![(name.to_owned(), state.to_owned())];
        ensure!(
            code == Some(1) && remarks(&said) == wanted,
            "{code:?} {said:#}"
        );
        Ok(said)
    })
}

#[test]
fn a_flow_is_not_fast_at_first_and_then_it_is_on_both_sides() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [here, there] = [lab.node(0), lab.node(1)];
        let [from, to] = [&here.pods()[0], &there.pods()[0]];
        let udp = ["--proto=udp"];

        let before = trace(here, from.address, to.address, &udp)?;
        ensure_passes(&before)?;
        let said = &before.1;
        ensure!(said["fast"]["now"] == false, "{said:#}");
        ensure!(said["fast"]["outcome"] == "no_permit", "{said:#}");
        ensure!(step(said, "sender")?["interface"] == "vetha", "{said:#}");
        ensure!(step(said, "route")?["interface"] == "flannel.1", "{said:#}");
        ensure!(step(said, "underlay")?["interface"] == "eth0", "{said:#}");
        ensure!(said["mtu"] == 1450, "{said:#}");
        let tunnel = step(said, "tunnel")?["text"].as_str().unwrap_or_default();
        let ends = format!("{} → {}", here.address, there.address);
        ensure!(
            tunnel.contains(&ends) && tunnel.contains("8472"),
            "{tunnel}"
        );

        let flow = SteadyFlow::start(&from.endpoint(), &to.endpoint(), Duration::from_millis(2))?;
        here.wait_fast()?;
        there.wait_fast()?;
        for (node, hook) in [(here, "egress"), (there, "ingress")] {
            // Now and then a packet is the one that renews the permit.
            wait_for("a fast flow", PATIENCE, || {
                let judged = trace(node, from.address, to.address, &udp)?;
                ensure_passes(&judged)?;
                let fast = &judged.1["fast"];
                ensure!(fast["now"] == true && fast["hook"] == hook, "{fast:#}");
                ensure!(fast["outcome"] == "fast_tunnel", "{fast:#}");
                ensure!(fast["seconds_left"].as_f64() > Some(0.0), "{fast:#}");
                Ok(())
            })?;
        }
        flow.stop()?.datagrams.ensure_lossless()?;
        // Nobody knows of a connection to another port.
        let (_, said) = trace(here, from.address, to.address, &["--port=81"])?;
        ensure!(said["fast"]["now"] == false, "{said:#}");
        Ok(())
    });
}

#[test]
fn pods_of_other_kinds_the_node_itself_and_ipv6_are_traced() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agents6(&[])?;
        lab.add_pods(2)?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        let [here, there] = [lab.node(0), lab.node(1)];
        let ptp = here.add_pod("p", Attachment::PointToPoint)?;
        here.wait_attached(&ptp.host_interface)?;
        let remote = &there.pods()[0];

        let judged = trace(here, ptp.address, remote.address, &["--port=80"])?;
        ensure_passes(&judged)?;
        ensure!(
            step(&judged.1, "sender")?["interface"] == "vethp",
            "{:#}",
            judged.1
        );

        let [one, other] = [&here.pods()[0], &here.pods()[1]];
        let judged = trace(here, one.address, other.address, &[])?;
        ensure_passes(&judged)?;
        ensure!(judged.1["fast"]["hook"].is_null(), "{:#}", judged.1);

        for destination in [one.address, remote.address] {
            ensure_passes(&trace(here, here.address, destination, &[])?)?;
        }
        let [from, to] = [here, there].map(|node| node.add_ipv6(&node.pods()[0]));
        let (from, to) = (from?, to?);
        udp::echo_each(&from, &to, &[100], 3)?.ensure_lossless()?;
        for node in [here, there] {
            let judged = trace(node, from.address, to.address, &["--proto=udp"])?;
            ensure_passes(&judged)?;
            ensure!(judged.1["mtu"] == 1430, "{:#}", judged.1);
        }
        // Neither end is here.
        let nobody = IpAddr::from([192, 0, 2, 1]);
        let (code, said) = trace(here, nobody, remote.address, &[])?;
        ensure!(code == Some(2) && said["verdict"] == "unknown", "{said:#}");
        Ok(())
    });
}

#[test]
fn a_pod_without_programs_and_a_subnet_without_a_node_are_named() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [here, there] = [lab.node(0), lab.node(1)];
        let [from, to] = [&here.pods()[0], &there.pods()[0]];
        // The subnet may have a route out of the cluster: the lease is what is missing.
        let (code, said) = trace(here, from.address, IpAddr::from([10, 5, 250, 9]), &[])?;
        ensure!(code == Some(1) && said["verdict"] == "stopped", "{said:#}");
        ensure!(step(&said, "peer")?["state"] == "stopped", "{said:#}");

        here.kill_agent()?;
        for pin in here.pod_link_pins(from)? {
            fs::remove_file(pin)?;
        }
        let judged = trace(here, from.address, to.address, &[])?;
        ensure_passes(&judged)?;
        let fast = &judged.1["fast"];
        ensure!(fast["now"] == false && fast["hook"].is_null(), "{fast:#}");
        let reason = fast["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("no program at vetha"), "{reason}");
        Ok(())
    });
}

#[test]
fn rules_that_drop_the_packet_or_the_tunnel_packet_are_named() {
    // What spoils the way, what puts it right, and the step that says so.
    const TROUBLES: &[(&[&str], &[&str], &str)] = &[
        (
            &["iptables -I FORWARD -p icmp -d DST -j DROP"],
            &["iptables -D FORWARD -p icmp -d DST -j DROP"],
            "rules",
        ),
        (
            &[
                "nft add table inet fw",
                "nft add chain inet fw through { type filter hook forward priority 10; }",
                "nft add rule inet fw through oifname flannel.1 ip daddr DST drop",
            ],
            &["nft delete table inet fw"],
            "rules",
        ),
        (
            &["iptables -I OUTPUT -p udp --dport 8472 -j DROP"],
            &["iptables -D OUTPUT -p udp --dport 8472 -j DROP"],
            "tunnel rules",
        ),
    ];
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [here, there] = [lab.node(0), lab.node(1)];
        let [from, to] = [&here.pods()[0], &there.pods()[0]].map(|pod| IpAddr::from(pod.address));
        let line = |line: &&str| run(here, &line.replace("DST", &to.to_string()));
        for (spoil, mend, name) in TROUBLES {
            spoil.iter().try_for_each(line)?;
            let said = expect(here, [from, to], (name, "stopped"))?;
            ensure!(said["verdict"] == "stopped", "{said:#}");
            mend.iter().try_for_each(line)?;
            ensure_passes(&trace(here, from, to, &[])?)?;
        }
        // It depends on what the text does not tell.
        line(&"iptables -I FORWARD -d DST -m mark --mark 0x7 -j DROP")?;
        let (code, said) = trace(here, from, to, &[])?;
        ensure!(code == Some(2) && said["verdict"] == "unknown", "{said:#}");
        let text = step(&said, "rules")?["text"].as_str().unwrap_or_default();
        ensure!(text.contains("--mark 0x7"), "{text}");
        Ok(())
    });
}

#[test]
fn a_path_that_takes_less_than_pods_send_is_named() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [here, there] = [lab.node(0), lab.node(1)];
        let [from, to] = [&here.pods()[0], &there.pods()[0]].map(|pod| IpAddr::from(pod.address));
        run(
            here,
            &format!("ip route add {}/32 dev eth0 mtu 1400", there.address),
        )?;
        let said = expect(here, [from, to], ("size", "warning"))?;
        ensure!(
            said["verdict"] == "troubled" && said["mtu"] == 1350,
            "{said:#}"
        );
        Ok(())
    });
}

#[test]
fn a_service_is_followed_to_the_backend_that_netfilter_chose() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [here, there] = [lab.node(0), lab.node(1)];
        let [from, to] = [here.pods()[0].endpoint(), there.pods()[0].endpoint()];
        let service = IpAddr::from([10, 96, 0, 1]);
        let words = ["--proto=udp", "--port=80"];

        let (_, said) = trace(here, from.address, service, &words)?;
        let text = step(&said, "translation")?["text"].as_str();
        ensure!(
            text.is_some_and(|text| text.contains("no translation")),
            "{said:#}"
        );

        let server = EchoServer::start(&to)?;
        let backend = server.address;
        run(
            here,
            &format!(
                "iptables -t nat -A PREROUTING -d {service} -p udp --dport 80 -j DNAT --to-destination {backend}"
            ),
        )?;
        let socket = udp::bind(&from)?;
        socket.connect((service, 80))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 200];
        // The rule is new: flows earn permits once it has been read.
        let judged = wait_for("a fast translated flow", PATIENCE, || {
            for number in 0..3 {
                socket.send(&udp::fill(number, 100))?;
                socket.recv(&mut buffer)?;
            }
            let judged = trace(here, from.address, service, &words)?;
            let outcome = &judged.1["fast"]["outcome"];
            ensure!(outcome == "fast_translated", "{:#}", judged.1);
            Ok(judged)
        })?;
        ensure_passes(&judged)?;
        let said = &judged.1;
        let text = step(said, "translation")?["text"]
            .as_str()
            .unwrap_or_default();
        ensure!(text.contains(&backend.to_string()), "{text}");
        let peer = step(said, "peer")?["text"].as_str().unwrap_or_default();
        ensure!(peer.contains(&there.address.to_string()), "{peer}");
        server.stop()
    });
}

#[test]
fn the_rules_that_real_packets_meet_are_shown_and_the_table_for_it_goes_with_the_command() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [here, there] = [lab.node(0), lab.node(1)];
        let [from, to] = [here.pods()[0].endpoint(), there.pods()[0].endpoint()];
        let flow = SteadyFlow::start(&from, &to, Duration::from_millis(5))?;
        here.wait_fast()?;
        let words = [from.address, to.address].map(|address| address.to_string());
        let start = |name: &str| -> Result<Daemon> {
            let binary = agent::binary()?;
            let program = binary.to_str().context("a path in UTF-8")?;
            let mut command = here.namespace.command(program);
            command
                .arg("trace")
                .args(&words)
                .args(["--proto=udp", "--watch"]);
            command.arg("--pin-dir").arg(&here.pin_dir);
            let log = lab.dir().join(format!("{name}.log"));
            let watch = Daemon::start("trace --watch", command, &log, Lifetime::Bound)?;
            wait_for("rules that a packet meets", PATIENCE, || {
                watch.check_running()?;
                let has_met = watch.log().contains("filter FLANNEL-FWD rule");
                ensure!(has_met, "{}", watch.log_tail(20));
                Ok(())
            })?;
            Ok(watch)
        };
        let tables = || here.cmd("nft", ["list", "tables"]);
        let gone = || {
            wait_for("the table to go", PATIENCE, || {
                ensure!(!tables()?.contains("overlay-trace"), "{}", tables()?);
                Ok(())
            })
        };
        let watch = start("stopped")?;
        ensure!(tables()?.contains("overlay-trace"), "{}", tables()?);
        let status = watch.stop()?;
        ensure!(status.success(), "{status}: {}", watch.log_tail(20));
        gone()?;
        here.wait_fast()?;

        start("killed")?.kill()?;
        gone()?;
        // Nobody hears of that before the next change.
        run(here, "nft add table inet other")?;
        here.wait_fast()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}
