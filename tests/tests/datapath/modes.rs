//! What the flags and backends of the data plane choose, on running nodes: trusted flows, host-gw, and the
//! connection tracking that the fast path needs.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    rules::Protocol,
    services::{Connection, Server},
    traffic::{Endpoint, ping, tcp, udp},
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(10);
const PORT: u16 = 8080;
const CONNECTIONS: u64 = 20;
/// From the appearance of a rule until no packet passes it.
const PROMPT: Duration = Duration::from_secs(1);

fn start(lab: &Lab, arguments: &[&str]) -> Result<[Endpoint; 2]> {
    lab.start_agents(arguments)?;
    lab.add_pods(1)?;
    lab.wait_converged()?;
    lab.wait_attached()?;
    lab.ping_matrix()?;
    Ok([0, 1].map(|node| lab.node(node).pods()[0].endpoint()))
}

#[test]
fn in_trusted_mode_one_permit_serves_all_flows_of_two_pods_until_a_rule_ends_it() {
    scenario(Lab::builder().nodes(2), |lab| {
        let [from, to] = start(lab, &["--fastpath=trusted"])?;
        ping::all(&from, to.address, 3)?;
        let before: Vec<_> = lab
            .nodes()
            .iter()
            .map(Node::counters)
            .collect::<Result<_>>()?;
        let _server = Server::start(&to, Protocol::Tcp, PORT)?;
        let target = std::net::SocketAddrV4::new(to.address, PORT);
        for _ in 0..CONNECTIONS {
            let mut connection = Connection::open(&from, Protocol::Tcp, target, 0)?;
            connection.exchange(5_000, 500)?;
            connection.close()?;
        }
        udp::echo_each(&from, &to, &[100, 1_400], 20)?.ensure_lossless()?;
        for (node, before) in lab.nodes().iter().zip(&before) {
            let counted = node.counters()?.since(before);
            for hook in [Hook::Egress, Hook::Ingress] {
                let (fast, control) = (
                    counted.fast(hook),
                    counted.packets(hook, Outcome::TcpControl),
                );
                // Handshakes and farewells among them.
                ensure!(
                    fast > CONNECTIONS * 10 && control == 0,
                    "{}: {fast} fast, {control} declined for their TCP flags:\n{counted}",
                    node.name
                );
            }
        }

        let drop = "add table ip stopper; add chain ip stopper stop { type filter hook forward priority 0; }; \
                    add rule ip stopper stop ip daddr";
        let rule = format!("{drop} {} drop", to.address);
        lab.node(0).cmd("nft", [rule.as_str()])?;
        wait_for("the rule to count", PROMPT, || {
            match ping::once(&from, to.address) {
                Ok(_) => bail!("a ping is answered"),
                Err(_) => Ok(()),
            }
        })?;
        lab.node(0).cmd("nft", ["delete table ip stopper"])?;
        wait_for("pods to talk again", DEADLINE, || {
            ping::once(&from, to.address)?;
            Ok(())
        })
    });
}

#[test]
fn host_gw_routes_fast_packets_without_a_tunnel_and_puts_deleted_routes_back() {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    scenario(Lab::builder().nodes(2).config(config), |lab| {
        let [from, to] = start(lab, &[])?;
        tcp::transfer(&from, &to, tcp::Spec::bulk(4 << 20))?;
        tcp::transfer(&to, &from, tcp::Spec::small_writes(50_000, 500))?;
        udp::echo_each(&from, &to, &[100, 1_472, 4_000], 20)?.ensure_lossless()?;
        for node in lab.nodes() {
            let counters = node.counters()?;
            for hook in [Hook::Egress, Hook::Ingress] {
                let direct = counters.packets(hook, Outcome::FastDirect);
                let tunnel = counters.packets(hook, Outcome::FastTunnel);
                ensure!(
                    direct > 100 && tunnel == 0,
                    "{}: {direct} direct, {tunnel} by tunnel:\n{counters}",
                    node.name
                );
            }
            ensure!(!node.has_interface("flannel.1"), "there is a tunnel device");
        }

        let subnet = lab.node(1).subnet_env()?.subnet()?.to_string();
        lab.node(0).cmd("ip", ["route", "del", &subnet])?;
        wait_for("the route to be back", DEADLINE, || {
            let routes = lab.node(0).cmd("ip", ["route", "show", &subnet])?;
            ensure!(routes.contains("via 172.30.0.12"), "{routes}");
            Ok(())
        })?;
        tcp::transfer(&from, &to, tcp::Spec::small_writes(5_000, 500)).map(|_| ())
    });
}

#[test]
fn connection_tracking_is_made_liberal_unless_told_not_to_and_outlasts_a_permit() {
    scenario(Lab::builder().nodes(2), |lab| {
        let sysctl = |node: &Node, key: &str| -> Result<u64> {
            let key = format!("net.netfilter.{key}");
            let value = node.cmd("sysctl", ["-n", &key])?;
            value
                .trim()
                .parse()
                .with_context(|| format!("{key}: {value}"))
        };
        let [liberal, strict] = [lab.node(0), lab.node(1)];
        let be_liberal = "nf_conntrack_tcp_be_liberal";
        for node in [liberal, strict] {
            let before = sysctl(node, be_liberal)?;
            ensure!(before == 0, "{}: {before} before the start", node.name);
        }
        lab.start_agent(liberal, &[])?;
        lab.start_agent(strict, &["--conntrack-tcp-be-liberal=false"])?;
        let values = (sysctl(liberal, be_liberal)?, sysctl(strict, be_liberal)?);
        ensure!(
            values == (1, 0),
            "by default and with the opt-out: {values:?}"
        );

        // A permit that runs out later would renew a flow that is forgotten, as a new one.
        let timeout = sysctl(liberal, "nf_conntrack_udp_timeout")?;
        let permit = wait_for("the permit's length", DEADLINE, || {
            let status = liberal.operator_json(&["status"])?;
            let seconds = status["datapath"]["permit_seconds"]["udp"].as_f64();
            seconds.with_context(|| format!("none in {status}"))
        })?;
        ensure!(
            Duration::from_secs_f64(permit) * 2 <= Duration::from_secs(timeout),
            "a permit lasts {permit} s, an idle UDP flow is tracked {timeout} s"
        );
        Ok(())
    });
}
