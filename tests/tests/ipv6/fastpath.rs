//! IPv6 pods on the fast path: through the tunnel and directly, with and without IPv4.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    lab::{Lab, Wire, scenario},
    traffic::{Endpoint, ping6, tcp, udp},
};

/// Exchanges of small messages: of these nearly all are fast.
const MESSAGES: u32 = 500;

/// A network config of a backend, with or without IPv4.
fn config(ipv4: bool, backend: &str) -> String {
    format!(
        r#"{{"Network":"10.5.0.0/16","EnableIPv4":{ipv4},"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{backend}}}"#
    )
}

const VXLAN: &str = r#"{"Type":"vxlan"}"#;

/// Traffic of every kind between two pods, and an error unless `way` is how nearly all of it went,
/// on the nodes of both.
fn talk(lab: &Lab, pods: &[Endpoint<Ipv6Addr>], ends: [usize; 2], way: Outcome) -> Result<()> {
    let [from, to] = ends.map(|end| &pods[end]);
    let before = ends.map(|end| lab.node(end).counters());
    ping6::all(from, to.address, 10)?;
    tcp::transfer(from, to, tcp::Spec::bulk(8 << 20))?;
    tcp::transfer(from, to, tcp::Spec::small_writes(100_000, 100))?;
    // The last needs fragments. Between 1382 and what the underlay takes, the kernel loses direct
    // ones, whichever tier there is: it puts the fragments together and sends them as one packet,
    // which is too large for the other pod.
    udp::echo_each(from, to, &[8, 100, 1382, 3000], 10)?.ensure_lossless()?;
    udp::echo_each(from, to, &[100], MESSAGES)?.ensure_lossless()?;
    for (end, before) in ends.into_iter().zip(before) {
        let node = lab.node(end);
        let counted = node.counters()?.since(&before?);
        for hook in [Hook::Egress, Hook::Ingress] {
            let fast = counted.packets(hook, way);
            ensure!(
                fast > MESSAGES.into() && fast == counted.fast(hook),
                "{}: {fast} of {MESSAGES} datagrams and more:\n{counted}",
                node.name
            );
        }
    }
    Ok(())
}

#[test]
fn ipv6_pods_are_fast_through_the_tunnel_over_one_segment_and_over_a_router() {
    let config = config(true, VXLAN);
    let builder = Lab::builder().nodes(2).routed_nodes(1).config(&config);
    scenario(builder, |lab| {
        let pods = lab.bring_up6(&[])?;
        talk(lab, &pods, [0, 1], Outcome::FastTunnel)?;
        talk(lab, &pods, [0, 2], Outcome::FastTunnel)?;
        talk(lab, &pods, [2, 0], Outcome::FastTunnel)
    });
}

#[test]
fn payloads_arrive_unchanged_over_wires_without_offloads() {
    let config = config(true, VXLAN);
    let builder = Lab::builder()
        .nodes(2)
        .config(&config)
        .wire(Wire::Segmented);
    scenario(builder, |lab| {
        let pods = lab.bring_up6(&[])?;
        talk(lab, &pods, [0, 1], Outcome::FastTunnel)?;
        udp::send_segmented(&pods[0], &pods[1], 1200, 40, 5)?.ensure_lossless()
    });
}

#[test]
fn pods_are_fast_on_nodes_without_ipv4() {
    let config = config(false, VXLAN);
    scenario(Lab::builder().nodes(2).config(&config), |lab| {
        let pods = lab.bring_up6(&[])?;
        talk(lab, &pods, [0, 1], Outcome::FastTunnel)
    });
}

#[test]
fn host_gw_routes_fast_packets_directly() {
    for ipv4 in [true, false] {
        let config = config(ipv4, r#"{"Type":"host-gw"}"#);
        scenario(Lab::builder().nodes(2).config(&config), |lab| {
            let pods = lab.bring_up6(&[])?;
            talk(lab, &pods, [0, 1], Outcome::FastDirect)
        });
    }
}

#[test]
fn direct_routing_takes_neighbours_directly_and_others_through_the_tunnel() {
    let config = config(true, r#"{"Type":"vxlan","DirectRouting":true}"#);
    let builder = Lab::builder().nodes(2).routed_nodes(1).config(&config);
    scenario(builder, |lab| {
        let pods = lab.bring_up6(&[])?;
        talk(lab, &pods, [0, 1], Outcome::FastDirect)?;
        talk(lab, &pods, [0, 2], Outcome::FastTunnel)
    });
}

#[test]
fn operator_commands_show_a_node_without_ipv4_and_its_fast_flows() {
    let config = config(false, VXLAN);
    scenario(Lab::builder().nodes(2).config(&config), |lab| {
        let pods = lab.bring_up6(&[])?;
        talk(lab, &pods, [0, 1], Outcome::FastTunnel)?;
        let (node, peer) = (lab.node(0), lab.node(1));
        let subnet = peer.subnet_env6()?.subnet()?.to_string();

        // A node that is not healthy has another exit code than 0.
        let status = node.operator(&["status"])?;
        ensure!(status.starts_with("healthy\n"), "{status}");
        let own = node.subnet_env6()?.subnet()?.to_string();
        ensure!(status.contains(&own), "no {own} in\n{status}");
        ensure!(
            status.contains("taken here and by 1 of 1 peers"),
            "{status}"
        );

        let routes = node.operator_json(&["routes"])?;
        let row = &routes["routes"][0];
        ensure!(row["subnet"] == subnet.as_str(), "{routes}");
        ensure!(row["vtep"] == peer.address6().to_string(), "{row}");
        ensure!(row["next_hop"]["mode"] == "tunnel", "{row}");

        let pod = pods[0].address.to_string();
        let flows = node.operator_json(&["flows", "--pod", &pod])?;
        let flow = &flows["flows"][0];
        ensure!(flow["local"] == pod && flow["state"] == "live", "{flows}");
        ensure!(flows["generation"].is_null(), "{flows}");
        let other = node.operator_json(&["flows", "--pod", "fd00:10:5:ffff::1"])?;
        ensure!(other["matching"] == 0, "{other}");
        Ok(())
    });
}
