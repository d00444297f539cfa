//! Endpoints that go, as kube-proxy does it: the rules change, and then what conntrack knows of their UDP flows is
//! deleted. Endpoints that come back, and clients that forget theirs.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    differ::Mode,
    lab::Attachment,
    rules::{Flavour, Protocol, Service},
    services::{Connection, Server},
    traffic::{Endpoint, ping},
    wait::{scaled, wait_for},
};

use crate::bench::{Bench, FAR, PORT, PROTOCOLS, SMALL, Services, service};

/// Number of a service that the bench does not have by itself.
const MOVING: u8 = 7;
/// What a datagram may go on to an endpoint that has gone: the permit of a translated UDP flow, and a
/// little.
const BOUND: Duration = Duration::from_secs(3);
/// Between two questions of a client: short against that.
const PATIENCE: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(20);
/// Seconds.
const AFFINITY: u32 = 2;

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
            affinity: None,
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
    // IPVS forgets UDP flows of an endpoint that goes by itself.
    let stay = if bench.flavour == Flavour::Ipvs {
        vec![&mut tcp]
    } else {
        vec![&mut tcp, &mut udp]
    };
    for connection in stay {
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
    match bench.node(0).cmd("conntrack", delete) {
        // It took the endpoint's flows out of conntrack, and there is nothing to delete.
        Err(_) if bench.flavour == Flavour::Ipvs => {}
        deleted => drop(deleted?),
    }
    wait_for("the new endpoint to answer", DEADLINE, || {
        let served = udp.ask(scaled(PATIENCE))?;
        ensure!(served.by == new.ip(), "answered by {}", served.by);
        Ok(())
    })?;
    let after = gone.elapsed();
    println!("the new endpoint answers {after:?} after the old one went");
    ensure!(bench.mode == Mode::Off || after < BOUND, "{after:?}");
    exchange_fast(bench, &mut tcp).context("TCP stays with the endpoint that has gone")?;
    // A new connection does not.
    let fresh = Connection::open(&client, Protocol::Tcp, target, 0)?;
    ensure!(fresh.served.by == new.ip(), "{:?}", fresh.served);
    fresh.close()?;
    tcp.close()
}

/// A pod that takes the place of a backend, at its address, gets what comes for the service; an open connection
/// hears from it that nobody knows it.
pub fn a_backend_is_replaced(bench: &Bench<'_, Ipv4Addr>) -> Result<()> {
    let client = bench.pod(0, 'a');
    let (old, target) = (bench.backend(1, 'b'), service::<Ipv4Addr>(FAR));
    let [mut tcp, mut udp] = connect(&client, target)?;
    let node = bench.node(1);
    node.remove_pod("b")?;
    let new = node.add_pod("b", Attachment::Bridge)?.endpoint();
    ensure!(old.ip() == new.address, "the new pod has {}", new.address);
    let mut servers = Vec::new();
    for protocol in PROTOCOLS {
        servers.push(Server::start(&new, protocol, PORT)?);
    }
    // The node hears of the new pod by its questions for the gateway.
    ping::once(&new, node.subnet_env()?.gateway.ip())?;
    let start = Instant::now();
    udp.exchange(SMALL.0, SMALL.1)
        .context("datagrams to the new backend")?;
    ensure!(start.elapsed() < scaled(DEADLINE), "{:?}", start.elapsed());
    ensure!(
        tcp.exchange(100, 100).is_err(),
        "the new backend goes on with the old one's connection"
    );
    for mut connection in connect(&client, target)? {
        exchange_fast(bench, &mut connection).context("to the new backend")?;
        connection.close()?;
    }
    Ok(())
}

/// A connection over each protocol that has exchanged enough to be fast.
fn connect(client: &Endpoint, target: SocketAddr) -> Result<[Connection; 2]> {
    let mut connections = PROTOCOLS.iter().map(|&protocol| {
        let mut connection = Connection::open(client, protocol, target, 0)?;
        connection.exchange(SMALL.0, SMALL.1)?;
        anyhow::Ok(connection)
    });
    let mut next = || connections.next().context("two protocols")?;
    Ok([next()?, next()?])
}

/// Affinity holds as long as the service says, for new connections. What is open stays where it is.
pub fn affinity_ends<A: Services>(bench: &Bench<'_, A>) -> Result<()> {
    /// How often a client may get its old backend by chance.
    const ROUNDS: usize = 20;
    let client = bench.pod(0, 'a');
    let backends = vec![bench.backend(1, 'a'), bench.backend(1, 'b')];
    let sticky = PROTOCOLS.map(|protocol| Service {
        name: match protocol {
            Protocol::Tcp => "STICKY-T",
            Protocol::Udp => "STICKY-U",
        },
        protocol,
        address: service::<A>(MOVING),
        node_port: None,
        affinity: Some(AFFINITY),
        backends: backends.clone(),
    });
    bench.install(&sticky)?;
    let target = service::<A>(MOVING);
    for protocol in PROTOCOLS {
        let open = || Connection::open(&client, protocol, target, 0);
        let mut first = open()?;
        let is_other = |other: &Connection| other.served.by != first.served.by;
        let same: Vec<_> = (0..4).map(|_| open()).collect::<Result<_>>()?;
        ensure!(!same.iter().any(is_other), "{same:?}");
        let mut round = 0;
        loop {
            // Longer than the affinity; another connection would renew it.
            thread::sleep(Duration::from_secs(AFFINITY.into()) + Duration::from_millis(200));
            if is_other(&open()?) {
                break;
            }
            round += 1;
            ensure!(round < ROUNDS, "{} keeps its backend", protocol.name());
        }
        exchange_fast(bench, &mut first).context("what is open stays")?;
        first.close()?;
    }
    Ok(())
}

/// Exchanges enough to be fast at both nodes, with the fast path.
fn exchange_fast<A: Services>(bench: &Bench<'_, A>, connection: &mut Connection) -> Result<()> {
    let fast = bench.fast_packets_of(|| connection.exchange(SMALL.0, SMALL.1))?;
    ensure!(
        fast.into_iter()
            .all(|(out, back)| (out.min(back) > 40) == (bench.mode == Mode::Fast)),
        "of 60 packets each way {fast:?} were fast"
    );
    Ok(())
}
