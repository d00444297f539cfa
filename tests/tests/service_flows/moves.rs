//! Endpoints that go: the rules change, and then what conntrack knows of their UDP flows is deleted, as
//! kube-proxy does it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    differ::Mode,
    rules::{Protocol, Service},
    services::Connection,
    wait::wait_for,
};

use crate::bench::{Bench, PROTOCOLS, SMALL, Services, service};

/// Number of a service that the bench does not have by itself.
const MOVING: u8 = 7;
/// What a datagram may go on to an endpoint that has gone: the permit of a translated UDP flow, and a
/// little.
const BOUND: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(20);

/// UDP flows leave an endpoint that goes; TCP connections that are open stay with it.
pub fn endpoints_go<A: Services>(bench: &Bench<'_, A>) -> Result<()> {
    let client = bench.pod(0, 'a');
    let [old, new] = ['b', 'a'].map(|name| bench.backend(1, name));
    let on = |backend| {
        PROTOCOLS.map(|protocol| Service {
            name: match protocol {
                Protocol::Tcp => "MOVING-T",
                Protocol::Udp => "MOVING-U",
            },
            protocol,
            address: service::<A>(MOVING),
            node_port: None,
            affinity: false,
            backends: vec![backend],
        })
    };
    bench.install(&on(old))?;
    let target = service::<A>(MOVING);
    let mut tcp = Connection::open(&client, Protocol::Tcp, target, 0)?;
    let mut udp = Connection::open(&client, Protocol::Udp, target, 0)?;
    for connection in [&mut tcp, &mut udp] {
        ensure!(connection.served.by == old.ip(), "{:?}", connection.served);
        connection.exchange(SMALL.0, SMALL.1)?;
    }
    bench.install(&on(new))?;
    for connection in [&mut tcp, &mut udp] {
        connection
            .exchange(SMALL.0, SMALL.1)
            .context("what is open stays while conntrack knows of it")?;
    }
    let gone = Instant::now();
    let address = target.ip().to_string();
    let mut delete = vec!["-D", "-p", "udp", "--orig-dst", &address];
    if target.is_ipv6() {
        delete.extend(["-f", "ipv6"]);
    }
    bench.node(0).cmd("conntrack", delete)?;
    wait_for("the new endpoint to answer", DEADLINE, || {
        let served = udp.ask()?;
        ensure!(served.by == new.ip(), "answered by {}", served.by);
        Ok(())
    })?;
    let after = gone.elapsed();
    println!("the new endpoint answers {after:?} after the old one went");
    ensure!(bench.mode == Mode::Off || after < BOUND, "{after:?}");
    tcp.exchange(SMALL.0, SMALL.1)
        .context("TCP stays with the endpoint that has gone")?;
    // A new connection does not.
    let fresh = Connection::open(&client, Protocol::Tcp, target, 0)?;
    ensure!(fresh.served.by == new.ip(), "{:?}", fresh.served);
    fresh.close()?;
    tcp.close()
}
