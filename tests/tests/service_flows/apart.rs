//! Translated flows beside direct ones.

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{differ::Mode, services::Connection};

use crate::bench::{Bench, FAR, PROTOCOLS, SMALL, Services, service};

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

/// Direct flows and those to services are fast at both ends.
pub fn direct_and_service_flows_are_fast<A: Services>(bench: &Bench<'_, A>) -> Result<()> {
    let client = bench.pod(0, 'a');
    // Writes go out one at a time and each is echoed: so many packets in each direction at least.
    let writes = 60;
    for protocol in PROTOCOLS {
        let exchange = |target| {
            let mut connection = Connection::open(&client, protocol, target, 0)?;
            connection.exchange(writes * 100, 100)?;
            connection.close()
        };
        let direct = bench.fast_packets_of(|| exchange(bench.backend(1, 'b')))?;
        let service = bench.fast_packets_of(|| exchange(service::<A>(FAR)))?;
        let name = protocol.name();
        if bench.mode == Mode::Off {
            ensure!(
                (direct, service) == ([(0, 0); 2], [(0, 0); 2]),
                "{name}: fast packets with the fast path off: direct {direct:?}, service {service:?}"
            );
            continue;
        }
        let most = writes as u64 * 9 / 10;
        let all_fast = |(egress, ingress): (u64, u64)| egress >= most && ingress >= most;
        for (kind, counted) in [("direct", direct), ("service", service)] {
            ensure!(
                counted.into_iter().all(all_fast),
                "{name}: a {kind} flow had these fast packets at the nodes: {counted:?}"
            );
        }
    }
    Ok(())
}
