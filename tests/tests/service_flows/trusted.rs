//! Services in trusted mode, where all flows of two pods share one permit until a translation connects them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    differ::{Mode, in_mode},
    lab::Lab,
    rules::{Flavour, Protocol},
    services::Connection,
    traffic::Endpoint,
    wait::wait_for,
};

use crate::{
    bench::{Bench, FAR, NEAR, PROTOCOLS, SMALL, Services, service, wait_trusted},
    survey::{check_survey, survey},
};

const DEADLINE: Duration = Duration::from_secs(20);
const CONNECTIONS: u64 = 5;
/// Writes go out one at a time and each is echoed: so many packets in each direction at least.
const WRITES: usize = 60;
/// Bytes of a datagram that pods send in fragments.
const LARGE: usize = 4_000;

/// A pod that uses a service, and the service's backend, which is on the other node.
struct Pair<A> {
    /// Index of the client's node.
    node: usize,
    client: Endpoint<A>,
    backend: SocketAddr,
    service: SocketAddr,
}

/// Four pairs that have nothing to do with one another on the clients' nodes.
fn pairs<A: Services>(bench: &Bench<'_, A>) -> [Pair<A>; 4] {
    [
        (0, 'a', 1, FAR),
        (0, 'b', 1, FAR),
        (1, 'a', 0, NEAR),
        (1, 'b', 0, NEAR),
    ]
    .map(|(node, name, to, host)| Pair {
        node,
        client: bench.pod(node, name),
        backend: bench.backend(to, 'b'),
        service: service::<A>(host),
    })
}

/// The flows of one pair, some of them open.
struct Flows<'a, A: Services> {
    bench: &'a Bench<'a, A>,
    pair: Pair<A>,
    open: Vec<(String, Connection)>,
}

impl<'a, A: Services> Flows<'a, A> {
    fn new(bench: &'a Bench<'a, A>, pair: Pair<A>) -> Self {
        let open = Vec::new();
        Self { bench, pair, open }
    }

    fn open(&mut self, protocol: Protocol, target: SocketAddr, first: usize) -> Result<()> {
        let name = format!("{} to {target}", protocol.name());
        let open = || -> Result<_> {
            let mut connection = Connection::open(&self.pair.client, protocol, target, 0)?;
            connection.exchange(first, first)?;
            Ok(connection)
        };
        let connection = open().with_context(|| name.clone())?;
        self.open.push((name, connection));
        self.exchange()
    }

    fn direct(&mut self, protocol: Protocol) -> Result<()> {
        self.open(protocol, self.pair.backend, 100)
    }

    /// With a first datagram of which no packet has ports that can be read.
    fn service(&mut self, protocol: Protocol) -> Result<()> {
        self.open(protocol, self.pair.service, LARGE)
    }

    /// All that are open carry something, in turns.
    fn exchange(&mut self) -> Result<()> {
        for _ in 0..3 {
            for (name, connection) in &mut self.open {
                connection
                    .exchange(SMALL.0, SMALL.1)
                    .with_context(|| name.clone())?;
            }
        }
        Ok(())
    }

    /// Opens and closes direct connections. Packets at the client's node that the kernel had to see at the
    /// connections' ends, and that were fast.
    fn handshakes(&self) -> Result<(u64, u64)> {
        let node = self.bench.node(self.pair.node);
        let before = node.counters()?;
        for _ in 0..CONNECTIONS {
            let (client, backend) = (&self.pair.client, self.pair.backend);
            let mut connection = Connection::open(client, Protocol::Tcp, backend, 0)?;
            connection.exchange(100, 100)?;
            connection.close()?;
        }
        let counted = node.counters()?.since(&before);
        let control = counted.packets(Hook::Egress, Outcome::TcpControl);
        Ok((control, counted.fast(Hook::Egress)))
    }

    /// Whole connections are fast: no translation is known between the pods.
    fn ensure_shared(&self) -> Result<()> {
        wait_for("whole connections to be fast", DEADLINE, || {
            let (control, fast) = self.handshakes()?;
            // SYN, its acknowledgement, data and FIN of each.
            ensure!(
                control == 0 && fast >= CONNECTIONS * 4,
                "{control} packets were the kernel's, {fast} fast"
            );
            Ok(())
        })
    }

    /// Handshakes are for the kernel, and what is between them is fast all the same.
    fn ensure_parted(&mut self) -> Result<()> {
        let (control, _) = self.handshakes()?;
        ensure!(
            control >= CONNECTIONS,
            "{control} packets were the kernel's"
        );
        let most = WRITES as u64 * 9 / 10;
        let node = self.pair.node;
        for (name, connection) in &mut self.open {
            let exchange = || connection.exchange(WRITES * 100, 100);
            let counted = self.bench.fast_packets_of(exchange)?;
            let (egress, ingress) = counted[node];
            ensure!(
                egress >= most && ingress >= most,
                "{name}: fast packets {counted:?}"
            );
        }
        Ok(())
    }

    fn close(self) -> Result<()> {
        self.open
            .into_iter()
            .try_for_each(|(_, connection)| connection.close())
    }
}

/// Direct flows and those of a service between the same pods, in every order.
fn mixed<A: Services>(bench: &Bench<'_, A>) -> Result<()> {
    for (pair, protocol) in pairs(bench).into_iter().zip(PROTOCOLS.repeat(2)) {
        let direct_first = pair.node == 0;
        let mut flows = Flows::new(bench, pair);
        if direct_first {
            flows.ensure_shared()?;
            flows.direct(protocol)?;
        }
        flows.service(protocol)?;
        flows.ensure_parted()?;
        for protocol in PROTOCOLS {
            flows.direct(protocol)?;
            flows.service(protocol)?;
        }
        flows.ensure_parted()?;
        flows.close()?;
    }
    Ok(())
}

pub fn services_in_trusted_mode<A: Services>(flavour: Flavour) {
    let nodes = Lab::builder().nodes(2).config(A::CONFIG);
    in_mode(&nodes, &["--ip-masq"], Mode::Trusted, |lab, mode| {
        let bench = Bench::<A>::start(lab, flavour, mode)?;
        mixed(&bench)?;
        check_survey(&survey(&bench)?);
        Ok(())
    });
}

/// Connections that were translated before the node is in trusted mode.
pub fn older_translations<A: Services>(flavour: Flavour) {
    let nodes = Lab::builder().nodes(2).config(A::CONFIG);
    in_mode(&nodes, &["--ip-masq"], Mode::Fast, |lab, mode| {
        let bench = Bench::<A>::start(lab, flavour, mode)?;
        let [older, fresh, ..] = pairs(&bench);
        let mut older = Flows::new(&bench, older);
        for protocol in PROTOCOLS {
            older.service(protocol)?;
        }
        let node = bench.node(older.pair.node);
        node.stop_agent()?;
        lab.start_agent(node, &["--ip-masq", "--fastpath=trusted"])?;
        wait_trusted(node)?;
        Flows::new(&bench, fresh).ensure_shared()?;
        for protocol in PROTOCOLS {
            older.direct(protocol)?;
        }
        older.ensure_parted()?;
        older.close()
    });
}
