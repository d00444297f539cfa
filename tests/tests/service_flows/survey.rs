//! Every kind of client and every kind of service.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{rules::Protocol, traffic::Endpoint};

use crate::bench::{BOTH, Bench, FAR, NEAR, OWN, PROTOCOLS, Services, service};

/// Every kind of client to every kind of service: who answered, and whom it saw.
pub fn survey<A: Services>(bench: &Bench<'_, A>) -> Result<BTreeMap<String, (String, String)>> {
    let clients = [
        ("n1/a", bench.pod(0, 'a')),
        ("n2/a", bench.pod(1, 'a')),
        ("n1", A::host(bench.node(0))),
        ("n2", A::host(bench.node(1))),
        ("outside", A::outside(bench.lab)),
    ];
    let targets = [
        ("far pod", bench.backend(1, 'b')),
        ("near", service::<A>(NEAR)),
        ("far", service::<A>(FAR)),
        ("node port, masqueraded", bench.node_port(30080)),
        ("node port, source kept", bench.node_port(30081)),
    ];
    let mut seen = BTreeMap::new();
    for protocol in PROTOCOLS {
        let protocol_name = protocol.name();
        for (client_name, client) in &clients {
            for (target_name, target) in targets {
                // No route leads from the outside to a pod.
                if (*client_name, target_name) == ("outside", "far pod") {
                    continue;
                }
                let what = format!("{protocol_name} {client_name} → {target_name}");
                let visit = bench
                    .visit(client, protocol, target)
                    .context(what.clone())?;
                seen.insert(what, visit);
            }
            affinity(bench, client, protocol)
                .with_context(|| format!("{protocol_name} {client_name} → both"))?;
        }
        let hairpin = bench
            .visit(&bench.pod(0, 'a'), protocol, service::<A>(OWN))
            .context("hairpin")?;
        seen.insert(format!("{protocol_name} n1/a → itself"), hairpin);
    }
    Ok(seen)
}

/// A client stays with the backend it got first.
fn affinity<A: Services>(
    bench: &Bench<'_, A>,
    client: &Endpoint<A>,
    protocol: Protocol,
) -> Result<()> {
    let mut backends = BTreeMap::new();
    for _ in 0..6 {
        let (by, _) = bench.visit(client, protocol, service::<A>(BOTH))?;
        *backends.entry(by).or_insert(0) += 1;
    }
    ensure!(backends.len() == 1, "answered by {backends:?}");
    Ok(())
}

/// Who must have seen whom, whatever carries the packets.
pub fn check_survey(seen: &BTreeMap<String, (String, String)>) {
    let expected = [
        ("n1/a → far pod", ("n2/b", "n1/a")),
        ("n1/a → near", ("n1/b", "n1/a")),
        ("n1/a → far", ("n2/b", "n1/a")),
        ("n2/a → far", ("n2/b", "n2/a")),
        ("n2/a → near", ("n1/b", "n2/a")),
        ("n1 → near", ("n1/b", "gateway of n1")),
        ("n1 → far", ("n2/b", "VTEP of n1")),
        ("outside → near", ("n1/b", "gateway of n1")),
        ("outside → far", ("n2/b", "VTEP of n1")),
        ("outside → node port, masqueraded", ("n2/b", "VTEP of n1")),
        ("outside → node port, source kept", ("n1/b", "outside")),
        ("n2 → node port, source kept", ("n1/b", "n2")),
        ("n1/a → itself", ("n1/a", "gateway of n1")),
    ];
    for protocol in PROTOCOLS {
        for (path, (by, source)) in expected {
            let path = format!("{} {path}", protocol.name());
            let want = (by.to_owned(), source.to_owned());
            assert_eq!(seen.get(&path), Some(&want), "{path}");
        }
    }
}
