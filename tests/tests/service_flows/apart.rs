//! Translated flows beside direct ones.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    differ::Mode,
    rules::{Flavour, Protocol},
    services::Connection,
};

use crate::bench::{Bench, FAR, KEPT_PORT, PROTOCOLS, SMALL, Services, service};

/// A flow to a service and one to its backend, from one source port, at the same time: after
/// translation they differ in nothing but what netfilter changes to keep them apart.
pub fn shared_ports<A: Services>(bench: &Bench<'_, A>) -> Result<()> {
    let client = bench.pod(0, 'a');
    let direct = bench.backend(1, 'b');
    let service = service::<A>(FAR);
    // Below those that the kernel gives to other connections.
    let mut port = 20_000;
    for protocol in PROTOCOLS {
        for targets in [[direct, service], [service, direct]] {
            port += 1;
            let mut connections = Vec::new();
            for target in targets {
                let mut connection = Connection::open(&client, protocol, target, port)?;
                connection.exchange(SMALL.0, SMALL.1)?;
                connections.push(connection);
            }
            for _round in 0..5 {
                for connection in &mut connections {
                    connection
                        .exchange(SMALL.0, SMALL.1)
                        .with_context(|| format!("{} {targets:?}", protocol.name()))?;
                }
            }
            connections.into_iter().try_for_each(Connection::close)?;
        }
    }
    Ok(())
}

/// Direct flows and those that are translated on the client's node are fast at both ends, whoever wrote
/// the rule.
pub fn direct_and_translated_flows_are_fast<A: Services>(bench: &Bench<'_, A>) -> Result<()> {
    let far = bench.backend(1, 'b');
    let mut targets = vec![("direct", far), ("service", service::<A>(FAR))];
    // IPVS has no backends of other nodes behind such a port.
    if bench.flavour != Flavour::Ipvs {
        targets.push(("node port", bench.node_port(KEPT_PORT)));
    }
    let [nobody, other] = [A::NOBODY.parse()?, bench.pod(1, 'a').address.into()];
    let rules = [(nobody, 99), (other, 99), (far.ip(), 98)];
    write_rules(bench, 0, &rules, far)?;
    let names = ["nobody's address", "another pod's", "another port"];
    targets.extend(names.into_iter().zip(rules.map(SocketAddr::from)));
    for protocol in PROTOCOLS {
        for (kind, target) in targets.iter().copied() {
            let counted = fast_packets_to(bench, protocol, target)?;
            let name = protocol.name();
            if bench.mode == Mode::Off {
                ensure!(
                    counted == [(0, 0); 2],
                    "{name}, {kind}: fast packets with the fast path off: {counted:?}"
                );
                continue;
            }
            ensure!(
                counted.into_iter().all(is_fast),
                "{name}, {kind}: the flow had these fast packets at the nodes: {counted:?}"
            );
        }
    }
    Ok(())
}

/// A port that the pod's node publishes, as Docker does it: the local end of its flows is translated, and they
/// stay in the kernel there. The client's node knows nothing of a translation.
pub fn published_ports_are_reached<A: Services>(bench: &Bench<'_, A>) -> Result<()> {
    const PUBLISHED: u16 = 18_080;
    let node = bench.node(1);
    let [gateway, _] = A::gateway_and_vtep(node)?;
    let addresses = [gateway.into(), A::host(node).address.into()];
    let ends = addresses.map(|address| (address, PUBLISHED));
    write_rules(bench, 1, &ends, bench.backend(1, 'b'))?;
    for protocol in PROTOCOLS {
        let [in_network, outside_it] = ends.map(SocketAddr::from);
        let [client, server] = fast_packets_to(bench, protocol, in_network)?;
        let name = protocol.name();
        ensure!(
            is_fast(client) == (bench.mode == Mode::Fast) && server == (0, 0),
            "{name}: fast packets at the client's node {client:?}, at the server's {server:?}"
        );
        // To a node's address on the underlay pods are masqueraded.
        let counted = fast_packets_to(bench, protocol, outside_it)?;
        ensure!(counted == [(0, 0); 2], "{name}: {counted:?}");
    }
    Ok(())
}

/// Writes that go out one at a time, each of which is echoed: so many packets in each direction at least.
const WRITES: usize = 60;

fn is_fast((egress, ingress): (u64, u64)) -> bool {
    let most = WRITES as u64 * 9 / 10;
    egress >= most && ingress >= most
}

/// Fast packets at each node, of a connection of a pod on the first one that ends at a pod of the second.
fn fast_packets_to<A: Services>(
    bench: &Bench<'_, A>,
    protocol: Protocol,
    target: SocketAddr,
) -> Result<[(u64, u64); 2]> {
    let client = bench.pod(0, 'a');
    let counted = bench.fast_packets_of(|| {
        let mut connection = Connection::open(&client, protocol, target, 0)?;
        let by = connection.served.by;
        ensure!(by == bench.backend(1, 'b').ip(), "{by} answers");
        connection.exchange(WRITES * 100, 100)?;
        connection.close()
    });
    counted.with_context(|| format!("{} to {target}", protocol.name()))
}

/// Translates what comes to a node for these ends, as an administrator may.
fn write_rules<A: Services>(
    bench: &Bench<'_, A>,
    node: usize,
    ends: &[(IpAddr, u16)],
    backend: SocketAddr,
) -> Result<()> {
    let ip = A::NFT;
    let mut rules = String::new();
    for (address, port) in ends {
        // Writing to a String cannot fail.
        let _ = writeln!(
            rules,
            "{ip} daddr {address} meta l4proto {{ tcp, udp }} th dport {port} dnat to {backend}"
        );
    }
    let table = format!(
        "table {ip} written {{ chain translate {{ type nat hook prerouting priority dstnat - 5\n\
         {rules} }}; }}"
    );
    bench.node(node).cmd("nft", [table.as_str()]).map(drop)
}
