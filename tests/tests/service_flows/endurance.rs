//! Open connections while rules change.

use std::{
    panic::resume_unwind,
    slice,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use overlay_tests::{
    rules::{Protocol, Service},
    services::Connection,
};

use crate::bench::{Bench, FAR, NEAR, OWN, PROTOCOLS, SMALL, Services, service};

/// A change under open connections.
type Change<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

/// Connections of every kind outlive every change of rules that does not concern them.
pub fn endurance<A: Services>(bench: &Bench<'_, A>) -> Result<()> {
    let pod = bench.pod(0, 'a');
    let mut connections = Vec::new();
    for protocol in PROTOCOLS {
        for (client, target) in [
            (&pod, bench.backend(1, 'b')),
            (&pod, service::<A>(NEAR)),
            (&pod, service::<A>(FAR)),
            (&pod, service::<A>(OWN)),
            (&A::outside(bench.lab), bench.node_port(30080)),
            (&A::outside(bench.lab), bench.node_port(30081)),
        ] {
            connections.push(Connection::open(client, protocol, target, 0)?);
        }
    }
    let unrelated = Service {
        name: "OTHER",
        protocol: Protocol::Tcp,
        address: service::<A>(99),
        node_port: None,
        affinity: None,
        backends: vec![bench.backend(0, 'a'), bench.backend(1, 'a')],
    };
    let on_all = |words: String| {
        move || -> Result<()> {
            for node in bench.lab.nodes() {
                let mut words = words.split(' ');
                node.cmd(words.next().unwrap_or_default(), words)?;
            }
            Ok(())
        }
    };
    let drop_rule = |action| format!("{} {action} FORWARD -d {} -j DROP", A::IPTABLES, A::NOBODY);
    let changes: [Change<'_>; 6] = [
        (
            "service added",
            Box::new(|| bench.install(slice::from_ref(&unrelated))),
        ),
        ("service removed", Box::new(|| bench.install(&[]))),
        (
            "drop rule for others added",
            Box::new(on_all(drop_rule("-I"))),
        ),
        (
            "drop rule for others removed",
            Box::new(on_all(drop_rule("-D"))),
        ),
        (
            "table added",
            Box::new(on_all(format!("nft add table {} unrelated", A::NFT))),
        ),
        (
            "flow table flushed",
            Box::new(|| {
                for node in bench.lab.nodes() {
                    node.operator(&["flush"])?;
                }
                Ok(())
            }),
        ),
    ];
    // Enough data that conntrack, which did not see it, finds the next packets out of window.
    let use_all = |connections: &mut Vec<Connection>, after: &str| {
        for connection in connections {
            connection
                .exchange(SMALL.0, SMALL.1)
                .context(after.to_owned())?;
            connection
                .exchange(300_000, 60_000)
                .context(after.to_owned())?;
        }
        anyhow::Ok(())
    };
    use_all(&mut connections, "opening")?;
    for (what, change) in changes {
        change().context(what)?;
        use_all(&mut connections, what)?;
    }
    under_load(bench, &unrelated)?;
    connections.into_iter().try_for_each(Connection::close)
}

/// Rules come and go while data flows.
fn under_load<A: Services>(bench: &Bench<'_, A>, unrelated: &Service) -> Result<()> {
    let pod = bench.pod(0, 'a');
    let mut connections = [bench.backend(1, 'b'), service::<A>(FAR)]
        .into_iter()
        .map(|target| Connection::open(&pod, Protocol::Tcp, target, 0))
        .collect::<Result<Vec<_>>>()?;
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        let busy = &busy;
        let flows: Vec<_> = connections
            .iter_mut()
            .map(|connection| {
                scope.spawn(move || -> Result<()> {
                    while busy.load(Ordering::Relaxed) {
                        connection.exchange(1 << 20, 60_000)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let changed = (0..4).try_for_each(|_| {
            bench.install(slice::from_ref(unrelated))?;
            bench.install(&[])
        });
        busy.store(false, Ordering::Relaxed);
        for flow in flows {
            flow.join()
                .unwrap_or_else(|panic| resume_unwind(panic))
                .context("data during changes of rules")?;
        }
        changed
    })?;
    connections.into_iter().try_for_each(Connection::close)
}
