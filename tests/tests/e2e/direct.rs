//! DirectRouting: peers on the same segment are reached without encapsulation, peers behind the
//! router through the tunnel, in one cluster.

use anyhow::{Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    decode::{decode_ipv4, decode_vxlan, is_udp_to},
    lab::{Lab, Node, Wire, scenario},
    traffic::{Endpoint, tcp, udp},
};

const DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
const TUNNEL: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const VXLAN_PORT: u16 = 8472;

/// How many packets between two pods crossed a wire, directly and in the tunnel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ways {
    direct: usize,
    tunnelled: usize,
}

/// Counts what crosses the wire of `node` while 20 datagrams are echoed between two pods.
fn observe(node: &Node, from: &Endpoint, to: &Endpoint) -> Result<Ways> {
    let capture = node.capture_wire()?;
    udp::echo_each(from, to, &[100], 20)?.ensure_lossless()?;
    let pods = [from.address.octets(), to.address.octets()];
    let between = |a: [u8; 4], b: [u8; 4]| pods == [a, b] || pods == [b, a];
    let mut ways = Ways::default();
    for frame in capture.stop()? {
        if is_udp_to(&frame.bytes, VXLAN_PORT) {
            let inner = decode_vxlan(&frame.bytes)?.inner.ip;
            ways.tunnelled += usize::from(between(inner.source, inner.destination));
        } else if let Ok(packet) = decode_ipv4(&frame.bytes) {
            ways.direct += usize::from(between(packet.ip.source, packet.ip.destination));
        }
    }
    Ok(ways)
}

#[test]
fn on_link_peers_are_reached_directly_and_routed_ones_through_the_tunnel() {
    scenario(
        Lab::builder().nodes(2).routed_nodes(1).config(DIRECT),
        |lab| {
            lab.bring_up(1)?;
            let [n1, n2, n3] = lab.nodes() else {
                anyhow::bail!("not three nodes")
            };
            let near = observe(n1, &n1.first_pod(), &n2.first_pod())?;
            ensure!(
                near == Ways {
                    direct: 40,
                    tunnelled: 0
                },
                "n1 and n2: {near:?}"
            );
            let far = observe(n1, &n1.first_pod(), &n3.first_pod())?;
            ensure!(
                far == Ways {
                    direct: 0,
                    tunnelled: 40
                },
                "n1 and n3: {far:?}"
            );
            let counted = n1.counters()?;
            for outcome in [Outcome::FastDirect, Outcome::FastTunnel] {
                for hook in [Hook::Egress, Hook::Ingress] {
                    let fast = counted.packets(hook, outcome);
                    ensure!(
                        fast >= 10,
                        "{} at {}:\n{counted}",
                        outcome.name(),
                        hook.name()
                    );
                }
            }
            lab.ping_matrix()
        },
    );
}

#[test]
fn direct_traffic_is_unchanged_over_wires_without_offloads() {
    let builder = Lab::builder().nodes(2).config(DIRECT).wire(Wire::Segmented);
    scenario(builder, |lab| {
        lab.bring_up(1)?;
        let (from, to) = (lab.node(0).first_pod(), lab.node(1).first_pod());
        tcp::transfer(&from, &to, tcp::Spec::bulk(32 << 20))?;
        tcp::transfer(&from, &to, tcp::Spec::small_writes(100_000, 100))?;
        udp::echo_each(&from, &to, &[8, 100, 1422, 3000], 20)?.ensure_lossless()?;
        udp::send_segmented(&from, &to, 1200, 40, 10)?.ensure_lossless()
    });
}

/// A node of ours with one config beside a stock one with another: packets go one way directly, the other
/// way tunnelled.
fn each_sends_its_own_way(our_config: &str, their_config: &str) {
    scenario(Lab::builder().nodes(2).config(our_config), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.node(1)
            .start_stock(lab.store(), their_config, "10.5.200.0/24")?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        let (ours, theirs) = (lab.node(0).first_pod(), lab.node(1).first_pod());
        let ways = observe(lab.node(0), &ours, &theirs)?;
        ensure!(
            ways == Ways {
                direct: 20,
                tunnelled: 20
            },
            "{ways:?}"
        );
        tcp::transfer(&ours, &theirs, tcp::Spec::bulk(8 << 20))?;
        tcp::transfer(&theirs, &ours, tcp::Spec::bulk(8 << 20)).map(drop)
    });
}

#[test]
fn a_peer_that_tunnels_while_we_send_directly_is_understood() {
    each_sends_its_own_way(DIRECT, TUNNEL);
}

#[test]
fn a_peer_that_sends_directly_while_we_tunnel_is_understood() {
    each_sends_its_own_way(TUNNEL, DIRECT);
}
