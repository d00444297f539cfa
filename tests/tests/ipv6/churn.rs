//! Agents, peers and settings that come, go and change while IPv6 flows are fast: no datagram is lost.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, bail, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    rules::Protocol,
    services::{Connection, Server},
    traffic::{connection::SteadyConnection, flow::SteadyFlow, ping6, tcp, udp},
    wait::wait_for,
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const DEADLINE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(2);
/// What a peer's move may take, on a busy machine.
const FOLLOWED: Duration = Duration::from_secs(5);
/// From the appearance of a rule until no packet passes it.
const PROMPT: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;
const CONNECTIONS: u64 = 20;
const GHOSTS: u8 = 4;

/// Waits until a node has routes to so many peers' subnets.
fn wait_peers(node: &Node, count: usize) -> Result<()> {
    wait_for("the node to follow the leases", DEADLINE, || {
        let routes = node.cmd("ip", ["-6", "route", "show", "dev", "flannel-v6.1"])?;
        let peers = routes.lines().filter(|line| line.contains(" via "));
        ensure!(peers.count() == count, "not {count}:\n{routes}");
        Ok(())
    })
}

#[test]
fn agents_that_end_start_flush_and_follow_peers_lose_no_fast_ipv6_packet() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&[])?;
        let (node, peer) = (lab.node(0), lab.node(1));
        ping6::all(&pods[0], pods[1].address, 2)?;
        let flow = SteadyFlow::start(&pods[0], &pods[1], INTERVAL)?;
        let connection = SteadyConnection::open(&pods[1], &pods[0], INTERVAL)?;
        node.wait_fast()?;

        for agent in [node, peer] {
            agent.kill_agent()?;
            // The fast path works on without the agent.
            agent.wait_fast()?;
            lab.start_agent(agent, &[])?;
            lab.wait_converged6()?;
            agent.wait_fast()?;
        }

        for number in 0..GHOSTS {
            let lease = format!(
                r#"{{"PublicIP":"172.30.0.{last}","PublicIPv6":"fd00:172:30::{last:x}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{number:02x}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"02:00:00:00:06:{number:02x}","ZeroCsum6":true}}}}"#,
                last = 200 + number
            );
            lab.store().put_lease(&ghost(number), &lease)?;
        }
        wait_peers(node, 1 + usize::from(GHOSTS))?;
        node.wait_fast()?;
        for number in 0..GHOSTS {
            lab.store().delete_lease(&ghost(number))?;
        }
        wait_peers(node, 1)?;
        node.wait_fast()?;

        let before = node.counters()?;
        node.operator(&["flush"])?;
        node.wait_fast()?;
        let counted = node.counters()?.since(&before);
        // Whichever direction of a flow comes first: the other finds an entry that is new.
        let refused = [Hook::Egress, Hook::Ingress]
            .map(|hook| counted.packets(hook, Outcome::Generation))
            .iter()
            .sum::<u64>();
        let granted = counted.packets(Hook::Confirm, Outcome::PermitGranted);
        ensure!(refused > 0 && granted > 0, "{counted}");

        connection.close()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}

fn ghost(number: u8) -> String {
    format!("10.5.{0}.0-24&fd00:10:5:{0}::-64", 200 + number)
}

#[test]
fn ipv6_flows_are_fast_to_the_new_address_of_a_node() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&[])?;
        let (node, peer) = (lab.node(0), lab.node(1));
        // What is sent before everybody knows the address is lost.
        let flow = SteadyFlow::start(&pods[0], &pods[1], INTERVAL)?;
        node.wait_fast()?;
        let old = peer.address6();
        peer.namespace.ip_batch(&format!(
            "addr add fd00:172:30::77/64 dev eth0 nodad\naddr del {old}/64 dev eth0\n"
        ))?;
        wait_for("the peer's lease to have the address", DEADLINE, || {
            let leases = lab.store().leases()?;
            let new = leases
                .iter()
                .any(|lease| lease.value.contains("fd00:172:30::77"));
            ensure!(new, "{leases:?}");
            Ok(())
        })?;
        node.wait_fast()?;
        peer.wait_fast()?;
        let before = node.counters()?;
        udp::echo_each(&pods[0], &pods[1], &[100], 200)?.ensure_lossless()?;
        let fast = node.counters()?.since(&before).fast(Hook::Egress);
        ensure!(fast > 150, "{fast} fast packets");
        let gap = flow.stop()?.longest_gap;
        ensure!(gap < FOLLOWED, "nothing came for {gap:?}");
        Ok(())
    });
}

#[test]
fn in_trusted_mode_ipv6_handshakes_are_fast_until_a_rule_ends_it() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&["--fastpath=trusted"])?;
        let (from, to) = (&pods[0], &pods[1]);
        ping6::all(from, to.address, 3)?;
        let before: Vec<_> = lab
            .nodes()
            .iter()
            .map(Node::counters)
            .collect::<Result<_>>()?;
        let _server = Server::start(to, Protocol::Tcp, PORT)?;
        let target = SocketAddr::new(to.address.into(), PORT);
        for _ in 0..CONNECTIONS {
            let mut connection = Connection::open(from, Protocol::Tcp, target, 0)?;
            connection.exchange(5_000, 500)?;
            connection.close()?;
        }
        for (node, before) in lab.nodes().iter().zip(&before) {
            let counted = node.counters()?.since(before);
            for hook in [Hook::Egress, Hook::Ingress] {
                let (fast, control) = (
                    counted.fast(hook),
                    counted.packets(hook, Outcome::TcpControl),
                );
                ensure!(
                    fast > CONNECTIONS * 5 && control == 0,
                    "{}: {fast} fast, {control} declined for their TCP flags:\n{counted}",
                    node.name
                );
            }
        }
        let rule = format!(
            "table inet stopper {{ chain stop {{ type filter hook forward priority 0; \
             ip6 daddr {} drop; }}; }}",
            to.address
        );
        lab.node(0).cmd("nft", [rule.as_str()])?;
        wait_for("the rule to count", PROMPT, || {
            match ping6::answered(from, to.address, 1)? {
                0 => Ok(()),
                _ => bail!("a ping is answered"),
            }
        })?;
        lab.node(0).cmd("nft", ["delete table inet stopper"])?;
        ping6::once(from, to.address)
    });
}

#[test]
fn with_the_fast_path_off_the_kernel_carries_every_ipv6_packet() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let pods = lab.bring_up6(&["--fastpath=off"])?;
        for node in lab.nodes() {
            wait_for("the program at the pod's veth", DEADLINE, || {
                let hooks = node.attached("vetha")?;
                ensure!(hooks.keys().eq(["egress"]), "{hooks:?}");
                Ok(())
            })?;
        }
        ping6::all(&pods[0], pods[1].address, 3)?;
        tcp::transfer(&pods[0], &pods[1], tcp::Spec::bulk(1 << 20))?;
        udp::echo_each(&pods[0], &pods[1], &[100, 1_382], 50)?.ensure_lossless()?;
        for node in lab.nodes() {
            let counted = node.counters()?;
            let granted = counted.packets(Hook::Confirm, Outcome::PermitGranted);
            for hook in [Hook::Egress, Hook::Ingress] {
                let declined = counted.packets(hook, Outcome::Disabled);
                ensure!(
                    counted.fast(hook) == 0 && declined > 50 && granted == 0,
                    "{}:\n{counted}",
                    node.name
                );
            }
        }
        Ok(())
    });
}
