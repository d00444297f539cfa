//! IPv6 without a tunnel: DirectRouting and the host-gw backend.

use anyhow::{Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::{ping6, tcp, udp},
    wait::wait_for,
};
use std::time::Duration;

const DIRECT: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
/// For nodes that start anew.
const DEADLINE: Duration = Duration::from_secs(20);
const TUNNEL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"host-gw"}}"#;

/// The route of `node` to the IPv6 pods of `peer`.
fn route(node: &Node, peer: &Node) -> Result<String> {
    let subnet = peer.subnet_env6()?.subnet()?;
    node.cmd("ip", ["-6", "route", "show", &subnet.to_string()])
}

fn is_direct(node: &Node, peer: &Node) -> Result<()> {
    let route = route(node, peer)?;
    let expected = format!("via {} dev eth0 proto 241", peer.address6());
    ensure!(route.contains(&expected), "no `{expected}` in {route}");
    ensure!(route.lines().count() == 1, "{route}");
    Ok(())
}

fn is_tunnelled(node: &Node, peer: &Node) -> Result<()> {
    let route = route(node, peer)?;
    ensure!(route.contains("dev flannel-v6.1 proto 241"), "{route}");
    ensure!(route.lines().count() == 1, "{route}");
    Ok(())
}

#[test]
fn on_link_peers_are_reached_directly_and_routed_ones_through_the_tunnel() {
    let builder = Lab::builder().nodes(2).routed_nodes(1).config(DIRECT);
    scenario(builder, |lab| {
        lab.start_agents(&[])?;
        lab.wait_converged6()?;
        let [n1, n2, n3] = lab.nodes() else {
            anyhow::bail!("not three nodes")
        };
        is_direct(n1, n2)?;
        is_direct(n2, n1)?;
        is_tunnelled(n1, n3)?;
        is_tunnelled(n3, n2)?;
        let pods = [n1.add_pod6('a')?, n2.add_pod6('a')?, n3.add_pod6('a')?];
        overlay_tests::lab::ipv6::ping_matrix(&pods)?;
        for to in &pods[1..] {
            tcp::transfer(&pods[0], to, tcp::Spec::bulk(8 << 20))?;
            udp::echo_each(&pods[0], to, &[8, 1382, 3000], 5)?.ensure_lossless()?;
        }
        Ok(())
    });
}

#[test]
fn a_peer_that_tunnels_while_we_send_directly_is_understood() {
    scenario(Lab::builder().nodes(2).config(DIRECT), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        let stock = lab.node(1);
        stock.start_stock(lab.store(), TUNNEL, "10.5.200.0/24&fd00:10:5:200::/64")?;
        lab.wait_converged6()?;
        is_direct(lab.node(0), stock)?;
        let (ours, theirs) = (lab.node(0).add_pod6('a')?, stock.add_pod6('a')?);
        ping6::all(&ours, theirs.address, 5)?;
        tcp::transfer(&ours, &theirs, tcp::Spec::bulk(4 << 20))?;
        tcp::transfer(&theirs, &ours, tcp::Spec::bulk(4 << 20)).map(drop)
    });
}

#[test]
fn a_peer_that_sends_directly_while_we_tunnel_is_understood() {
    scenario(Lab::builder().nodes(2).config(TUNNEL), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        let stock = lab.node(1);
        stock.start_stock(lab.store(), DIRECT, "10.5.200.0/24&fd00:10:5:200::/64")?;
        lab.wait_converged6()?;
        is_tunnelled(lab.node(0), stock)?;
        let (ours, theirs) = (lab.node(0).add_pod6('a')?, stock.add_pod6('a')?);
        ping6::all(&ours, theirs.address, 5)?;
        tcp::transfer(&ours, &theirs, tcp::Spec::bulk(4 << 20)).map(drop)
    });
}

#[test]
fn direct_routing_is_switched_on_and_off_while_the_node_runs() {
    scenario(Lab::builder().nodes(2).config(TUNNEL), |lab| {
        lab.start_agents(&[])?;
        lab.wait_converged6()?;
        let [n1, n2] = lab.nodes() else {
            anyhow::bail!("not two nodes")
        };
        let pods = [n1.add_pod6('a')?, n2.add_pod6('a')?];
        ping6::all(&pods[0], pods[1].address, 3)?;
        for (config, expected) in [
            (DIRECT, is_direct as fn(&Node, &Node) -> Result<()>),
            (TUNNEL, is_tunnelled),
            (DIRECT, is_direct),
        ] {
            lab.store().set_config(config)?;
            for node in lab.nodes() {
                node.signal_agent(nix::sys::signal::Signal::SIGHUP)?;
            }
            wait_for("the other way", Duration::from_secs(5), || {
                expected(n1, n2)?;
                expected(n2, n1)
            })?;
            ping6::all(&pods[0], pods[1].address, 3)?;
        }
        Ok(())
    });
}

#[test]
fn host_gw_routes_both_families_and_ipv4_stays_fast() {
    scenario(Lab::builder().nodes(2).config(HOST_GW), |lab| {
        lab.bring_up(1)?;
        lab.wait_converged6()?;
        let [n1, n2] = lab.nodes() else {
            anyhow::bail!("not two nodes")
        };
        is_direct(n1, n2)?;
        is_direct(n2, n1)?;
        ensure!(!n1.has_interface("flannel-v6.1"), "host-gw has a device");
        ensure!(n1.subnet_env6()?.mtu == 1500, "{:?}", n1.subnet_env6()?);
        let mut pods6 = Vec::new();
        for (node, pod) in lab.pods() {
            pods6.push(node.add_ipv6(&pod)?);
        }
        ping6::all(&pods6[0], pods6[1].address, 5)?;
        tcp::transfer(&pods6[0], &pods6[1], tcp::Spec::bulk(8 << 20))?;
        let before = n1.counters()?;
        let (_, from) = &lab.pods()[0];
        let (_, to) = &lab.pods()[1];
        udp::echo_each(&from.endpoint(), &to.endpoint(), &[100], 100)?.ensure_lossless()?;
        let counted = n1.counters()?.since(&before);
        ensure!(counted.fast(Hook::Egress) >= 90, "of 100:\n{counted}");
        // A route somebody deletes is put back.
        let subnet = n2.subnet_env6()?.subnet()?.to_string();
        n1.cmd("ip", ["-6", "route", "del", &subnet])?;
        wait_for("the route to be back", Duration::from_secs(1), || {
            is_direct(n1, n2)
        })
    });
}

/// Restarts the agents of all nodes with another config.
fn switch(lab: &Lab, config: &str) -> Result<()> {
    lab.store().set_config(config)?;
    for node in lab.nodes() {
        node.stop_agent()?;
        lab.start_agent(node, &[])?;
    }
    Ok(())
}

#[test]
fn ipv6_follows_a_change_of_backend_or_vni_and_nothing_stale_stays() {
    scenario(Lab::builder().nodes(2).config(TUNNEL), |lab| {
        lab.start_agents(&[])?;
        lab.wait_converged6()?;
        let [n1, n2] = lab.nodes() else {
            anyhow::bail!("not two nodes")
        };
        let pods = [n1.add_pod6('a')?, n2.add_pod6('a')?];
        ping6::all(&pods[0], pods[1].address, 3)?;

        switch(lab, HOST_GW)?;
        wait_for("direct routes and no device", DEADLINE, || {
            is_direct(n1, n2)?;
            is_direct(n2, n1)?;
            ensure!(!n1.has_interface("flannel-v6.1"), "the device stays");
            Ok(())
        })?;
        ping6::all(&pods[0], pods[1].address, 3)?;

        switch(lab, TUNNEL)?;
        wait_for("tunnels", DEADLINE, || {
            is_tunnelled(n1, n2)?;
            is_tunnelled(n2, n1)
        })?;
        ping6::all(&pods[0], pods[1].address, 3)?;

        switch(
            lab,
            &TUNNEL.replace(r#""vxlan""#, r#""vxlan","VNI":7,"Port":4789"#),
        )?;
        wait_for("tunnels of the other VNI", DEADLINE, || {
            for (node, peer) in [(n1, n2), (n2, n1)] {
                let route = route(node, peer)?;
                ensure!(route.contains("dev flannel-v6.7 proto 241"), "{route}");
                ensure!(route.lines().count() == 1, "{route}");
                ensure!(!node.has_interface("flannel-v6.1"), "the old device stays");
            }
            Ok(())
        })?;
        ping6::all(&pods[0], pods[1].address, 3)
    });
}
