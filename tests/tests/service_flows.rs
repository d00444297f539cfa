//! Services as kube-proxy makes them, over the real agent: whatever netfilter does to a flow, the
//! fast path changes nothing but the way its packets take.
//!
//! Two nodes with two pods each; the pods `b` serve. Every test runs once per form of the rules,
//! in two labs: one with the fast path, one with `--fastpath=off`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    panic::resume_unwind,
    slice,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    differ::{self, Mode},
    lab::{Lab, Node},
    rules::{Flavour, NodePort, Protocol, Service, install},
    services::{Connection, Server},
    traffic::Endpoint,
};
use serde_json::Value;

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Port every pod serves on.
const PORT: u16 = 8080;
/// Bytes and size of writes of an exchange that earns leases, if the flow can have any.
const SMALL: (usize, usize) = (6_000, 100);

/// A lab with services, and the servers behind them.
struct Bench<'a> {
    lab: &'a Lab,
    flavour: Flavour,
    mode: Mode,
    _servers: Vec<Server>,
}

/// Runs `test` on a bench with the fast path and on one without; what it returned on each.
fn in_both_modes<T: Send>(
    flavour: Flavour,
    test: impl Fn(&Bench<'_>) -> Result<T> + Sync,
) -> [T; 2] {
    let nodes = Lab::builder().nodes(2);
    differ::in_both_modes(&nodes, &["--ip-masq"], |lab, mode| {
        lab.add_pods(2)?;
        test(&Bench::start(lab, flavour, mode)?)
    })
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab, flavour: Flavour, mode: Mode) -> Result<Self> {
        let mut servers = Vec::new();
        for (node, pod) in lab.pods() {
            // As the CNI plugin has it with `hairpinMode`: a pod may get its own packets back.
            node.cmd(
                "bridge",
                ["link", "set", "dev", &pod.host_interface, "hairpin", "on"],
            )?;
            for protocol in PROTOCOLS {
                servers.push(Server::start(&pod.endpoint(), protocol, PORT)?);
            }
        }
        // The host outside sends cluster addresses to the first node.
        let first = lab.node(0).address.to_string();
        let outside = lab.outside().namespace;
        outside.run("ip", ["route", "add", "10.96.0.0/16", "via", &first])?;
        let bench = Self {
            lab,
            flavour,
            mode,
            _servers: servers,
        };
        bench.install(&[])?;
        Ok(bench)
    }

    /// Installs the rules on every node, those of `further` services after the usual ones.
    fn install(&self, further: &[Service]) -> Result<()> {
        let services = [self.services(), further.to_vec()].concat();
        for node in self.lab.nodes() {
            install(node, self.flavour, "10.5.0.0/16".parse()?, &services)?;
        }
        Ok(())
    }

    fn pod(&self, node: usize, name: &str) -> Endpoint {
        let pods = self.lab.node(node).pods();
        let pod = pods.iter().find(|pod| pod.name == name);
        pod.expect("a pod of this lab").endpoint()
    }

    fn backend(&self, node: usize, name: &str) -> SocketAddrV4 {
        SocketAddrV4::new(self.pod(node, name).address, PORT)
    }

    fn services(&self) -> Vec<Service> {
        let (near, far) = (self.backend(0, "b"), self.backend(1, "b"));
        let own = self.backend(0, "a");
        let mut services = Vec::new();
        for protocol in PROTOCOLS {
            let mut add = |host, names: [&'static str; 2], backends: &[_], node_port| {
                services.push(Service {
                    name: names[usize::from(protocol == Protocol::Udp)],
                    protocol,
                    address: virtual_address(host),
                    node_port,
                    affinity: backends.len() > 1,
                    backends: backends.to_vec(),
                });
            };
            let (masqueraded, kept) = (NodePort::Masqueraded(30080), NodePort::SourceKept(30081));
            add(FAR, ["FAR-T", "FAR-U"], &[far], Some(masqueraded));
            add(NEAR, ["NEAR-T", "NEAR-U"], &[near], Some(kept));
            add(BOTH, ["BOTH-T", "BOTH-U"], &[near, far], None);
            add(OWN, ["OWN-T", "OWN-U"], &[own], None);
        }
        services
    }

    /// What an address is called in every lab.
    fn name(&self, address: Ipv4Addr) -> Result<String> {
        if address == self.lab.outside().address {
            return Ok("outside".to_owned());
        }
        for (node, pod) in self.lab.pods() {
            if pod.address == address {
                return Ok(format!("{}/{}", node.name, pod.name));
            }
        }
        for node in self.lab.nodes() {
            let gateway = node.subnet_env()?.gateway;
            let name = &node.name;
            if address == node.address {
                return Ok(name.clone());
            } else if address == gateway.ip() {
                return Ok(format!("gateway of {name}"));
            } else if address == gateway.network() {
                return Ok(format!("VTEP of {name}"));
            }
        }
        Ok(address.to_string())
    }

    /// Opens a connection, exchanges data on it, closes it, and says who saw whom.
    fn visit(
        &self,
        client: &Endpoint,
        protocol: Protocol,
        target: SocketAddrV4,
    ) -> Result<(String, String)> {
        let mut connection = Connection::open(client, protocol, target, 0)?;
        connection.exchange(SMALL.0, SMALL.1)?;
        if protocol == Protocol::Tcp {
            connection.exchange(400_000, 60_000)?;
        }
        let served = connection.served;
        connection.close()?;
        Ok((self.name(served.by)?, self.name(*served.source.ip())?))
    }

    fn node(&self, index: usize) -> &Node {
        self.lab.node(index)
    }

    /// Packets that took the fast path at a node, out of pods and into them.
    fn fast_packets(&self, node: usize) -> Result<(u64, u64)> {
        let stats = self.node(node).operator_json(&["stats"])?;
        let count = |direction: &str| -> Result<u64> {
            let count: &Value = &stats["fast_path"][direction]["fast_packets"];
            count
                .as_u64()
                .with_context(|| format!("no count in {stats}"))
        };
        Ok((count("egress")?, count("ingress")?))
    }

    /// What `action` added to the fast packets of each node.
    fn fast_packets_of(&self, action: impl FnOnce() -> Result<()>) -> Result<[(u64, u64); 2]> {
        let before = [self.fast_packets(0)?, self.fast_packets(1)?];
        action()?;
        let after = [self.fast_packets(0)?, self.fast_packets(1)?];
        Ok([0, 1].map(|node| {
            (
                after[node].0 - before[node].0,
                after[node].1 - before[node].1,
            )
        }))
    }
}

// Last numbers of the virtual addresses: a backend on the first node, one on the second, one on
// each, and the client itself.
const NEAR: u8 = 1;
const FAR: u8 = 2;
const BOTH: u8 = 3;
const OWN: u8 = 4;

fn virtual_address(host: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, host), 80)
}

/// Every kind of client to every kind of service: who answered, and whom it saw.
fn survey(bench: &Bench<'_>) -> Result<BTreeMap<String, (String, String)>> {
    let clients = [
        ("n1/a", bench.pod(0, "a")),
        ("n2/a", bench.pod(1, "a")),
        ("n1", bench.node(0).endpoint()),
        ("n2", bench.node(1).endpoint()),
        ("outside", bench.lab.outside()),
    ];
    let first = bench.node(0).address;
    let targets = [
        ("far pod", bench.backend(1, "b")),
        ("near", virtual_address(NEAR)),
        ("far", virtual_address(FAR)),
        ("node port, masqueraded", SocketAddrV4::new(first, 30080)),
        ("node port, source kept", SocketAddrV4::new(first, 30081)),
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
            .visit(&bench.pod(0, "a"), protocol, virtual_address(OWN))
            .context("hairpin")?;
        seen.insert(format!("{protocol_name} n1/a → itself"), hairpin);
    }
    Ok(seen)
}

/// A client stays with the backend it got first.
fn affinity(bench: &Bench<'_>, client: &Endpoint, protocol: Protocol) -> Result<()> {
    let mut backends = BTreeMap::new();
    for _ in 0..6 {
        let (by, _) = bench.visit(client, protocol, virtual_address(BOTH))?;
        *backends.entry(by).or_insert(0) += 1;
    }
    ensure!(backends.len() == 1, "answered by {backends:?}");
    Ok(())
}

/// Who must have seen whom, whatever carries the packets.
fn check_survey(seen: &BTreeMap<String, (String, String)>) {
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

fn all_clients_reach_all_services(flavour: Flavour) {
    let [fast, off] = in_both_modes(flavour, survey);
    check_survey(&off);
    assert_eq!(fast, off);
}

#[test]
fn all_clients_reach_all_services_with_iptables_rules() {
    all_clients_reach_all_services(Flavour::Iptables);
}

#[test]
fn all_clients_reach_all_services_with_nftables_rules() {
    all_clients_reach_all_services(Flavour::Nftables);
}

/// A flow to a service and one to its backend, from one source port, at the same time: after
/// translation they differ in nothing but what netfilter changes to keep them apart.
fn shared_ports(bench: &Bench<'_>) -> Result<()> {
    let client = bench.pod(0, "a");
    let direct = bench.backend(1, "b");
    let service = virtual_address(FAR);
    let mut port = 40_000;
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

/// Direct flows are fast at both ends. Of a translated flow no packet is fast at the client's
/// node; the backend's node sees an ordinary flow.
fn only_untranslated_flows_are_fast(bench: &Bench<'_>) -> Result<()> {
    let client = bench.pod(0, "a");
    // Writes go out one at a time and each is echoed: so many packets in each direction at least.
    let writes = 60;
    for protocol in PROTOCOLS {
        let exchange = |target| {
            let mut connection = Connection::open(&client, protocol, target, 0)?;
            connection.exchange(writes * 100, 100)?;
            connection.close()
        };
        let direct = bench.fast_packets_of(|| exchange(bench.backend(1, "b")))?;
        let service = bench.fast_packets_of(|| exchange(virtual_address(FAR)))?;
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
        ensure!(
            direct.into_iter().all(all_fast),
            "{name}: a direct flow had these fast packets at the nodes: {direct:?}"
        );
        ensure!(
            service[0] == (0, 0) && all_fast(service[1]),
            "{name}: a service flow had these fast packets at the nodes: {service:?}"
        );
    }
    Ok(())
}

fn translated_flows_stay_apart(flavour: Flavour) {
    in_both_modes(flavour, |bench| {
        only_untranslated_flows_are_fast(bench)?;
        shared_ports(bench)
    });
}

#[test]
fn flows_that_share_ports_stay_apart_and_only_untranslated_ones_are_fast_with_iptables_rules() {
    translated_flows_stay_apart(Flavour::Iptables);
}

#[test]
fn flows_that_share_ports_stay_apart_and_only_untranslated_ones_are_fast_with_nftables_rules() {
    translated_flows_stay_apart(Flavour::Nftables);
}

/// A change under open connections.
type Change<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

/// Connections of every kind outlive every change of rules that does not concern them.
fn endurance(bench: &Bench<'_>) -> Result<()> {
    let first = bench.node(0).address;
    let pod = bench.pod(0, "a");
    let mut connections = Vec::new();
    for protocol in PROTOCOLS {
        for (client, target) in [
            (&pod, bench.backend(1, "b")),
            (&pod, virtual_address(NEAR)),
            (&pod, virtual_address(FAR)),
            (&pod, virtual_address(OWN)),
            (&bench.lab.outside(), SocketAddrV4::new(first, 30080)),
            (&bench.lab.outside(), SocketAddrV4::new(first, 30081)),
        ] {
            connections.push(Connection::open(client, protocol, target, 0)?);
        }
    }
    let unrelated = Service {
        name: "OTHER",
        protocol: Protocol::Tcp,
        address: virtual_address(99),
        node_port: None,
        affinity: false,
        backends: vec![bench.backend(0, "a"), bench.backend(1, "a")],
    };
    let on_all = |words: &'static str| {
        move || -> Result<()> {
            for node in bench.lab.nodes() {
                let mut words = words.split(' ');
                node.cmd(words.next().unwrap_or_default(), words)?;
            }
            Ok(())
        }
    };
    let changes: [Change<'_>; 6] = [
        (
            "service added",
            Box::new(|| bench.install(slice::from_ref(&unrelated))),
        ),
        ("service removed", Box::new(|| bench.install(&[]))),
        (
            "drop rule for others added",
            Box::new(on_all("iptables-nft -I FORWARD -d 192.0.2.1 -j DROP")),
        ),
        (
            "drop rule for others removed",
            Box::new(on_all("iptables-nft -D FORWARD -d 192.0.2.1 -j DROP")),
        ),
        (
            "table added",
            Box::new(on_all("nft add table ip unrelated")),
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
fn under_load(bench: &Bench<'_>, unrelated: &Service) -> Result<()> {
    let pod = bench.pod(0, "a");
    let mut connections = [bench.backend(1, "b"), virtual_address(FAR)]
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

#[test]
fn open_connections_survive_changes_of_iptables_rules() {
    in_both_modes(Flavour::Iptables, endurance);
}

#[test]
fn open_connections_survive_changes_of_nftables_rules() {
    in_both_modes(Flavour::Nftables, endurance);
}
