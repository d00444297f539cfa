//! Packet filter policy over the real agent: what a rule drops is dropped, for new flows from the
//! moment the rule is there, and within a second for flows that the fast path carries.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, scenario},
    rules::Protocol,
    services::{Connection, Server, is_unreachable},
    traffic::{Address, Endpoint},
    wait::wait_for,
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const PORT: u16 = 8080;
/// What a rule may take to end a flow that the fast path carries.
const BOUND: Duration = Duration::from_secs(1);
/// Silence that counts as "dropped".
const SILENCE: Duration = Duration::from_millis(400);
const DEADLINE: Duration = Duration::from_secs(15);
/// Pause between two datagrams of a pulse.
const BEAT: Duration = Duration::from_millis(5);

/// Who keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Iptables,
    IptablesLegacy,
    /// The forward hook of a table of its own.
    Nftables,
    /// The ingress hook of the interface packets come in by, ahead of any routing.
    Netdev,
    /// Not the packet filter but the policy routing database.
    Routing,
}

/// Which packets a rule drops, and where.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Requests, at the client's node.
    RequestsLeaving,
    /// Requests, at the server's node.
    RequestsArriving,
    RepliesLeaving,
    RepliesArriving,
}

const PLACES: [Place; 4] = [
    Place::RequestsLeaving,
    Place::RequestsArriving,
    Place::RepliesLeaving,
    Place::RepliesArriving,
];

/// The egress and the ingress program of a flow's way.
const REQUESTS: [Place; 2] = [Place::RequestsLeaving, Place::RequestsArriving];

/// Pod `a` of the first node talks to pod `a` of the second.
struct Bench<'a, A> {
    lab: &'a Lab,
    client: Endpoint<A>,
    server: Endpoint<A>,
    target: SocketAddr,
    _servers: Vec<Server>,
}

/// An address family of pods, and what the tools call it.
trait PolicyFamily: Address {
    const NFT: &str;
    const IPTABLES: [&str; 2];
    const DEVICE: &str;
    const ANY: IpAddr;

    /// A pod on each node.
    fn add_pods(lab: &Lab) -> Result<Vec<Endpoint<Self>>>;
}

impl PolicyFamily for Ipv4Addr {
    const NFT: &str = "ip";
    const IPTABLES: [&str; 2] = ["iptables-nft", "iptables-legacy"];
    const DEVICE: &str = "flannel.1";
    const ANY: IpAddr = IpAddr::V4(Self::UNSPECIFIED);

    fn add_pods(lab: &Lab) -> Result<Vec<Endpoint>> {
        lab.add_pods(1)?;
        let pods = lab.pods().into_iter();
        Ok(pods.map(|(_, pod)| pod.endpoint()).collect())
    }
}

impl PolicyFamily for Ipv6Addr {
    const NFT: &str = "ip6";
    const IPTABLES: [&str; 2] = ["ip6tables-nft", "ip6tables-legacy"];
    const DEVICE: &str = "flannel-v6.1";
    const ANY: IpAddr = IpAddr::V6(Self::UNSPECIFIED);

    fn add_pods(lab: &Lab) -> Result<Vec<Endpoint<Self>>> {
        lab.nodes().iter().map(|node| node.add_pod6('a')).collect()
    }
}

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;

fn with_bench<A: PolicyFamily>(test: impl FnOnce(&Bench<'_, A>) -> Result<()>) {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.start_agents(&["--ip-masq"])?;
        lab.wait_converged()?;
        lab.wait_converged6()?;
        let pods = A::add_pods(lab)?;
        let [client, server] = [0, 1].map(|node| pods[node].clone());
        let mut servers = Vec::new();
        for protocol in PROTOCOLS {
            servers.push(Server::start(&server, protocol, PORT)?);
        }
        test(&Bench {
            lab,
            target: SocketAddr::new(server.address.into(), PORT),
            client,
            server,
            _servers: servers,
        })
    });
}

impl<A: PolicyFamily> Bench<'_, A> {
    fn open(&self) -> Result<Vec<Connection>> {
        PROTOCOLS
            .iter()
            .map(|&protocol| Connection::open(&self.client, protocol, self.target, 0))
            .collect()
    }

    /// Uses the connections until the fast path carries them, at both nodes and in both directions.
    fn make_fast(&self, connections: &mut [Connection]) -> Result<()> {
        let count = || -> Result<Vec<u64>> {
            let mut counts = Vec::new();
            for node in self.lab.nodes() {
                let counters = node.counters()?;
                counts.extend([Hook::Egress, Hook::Ingress].map(|hook| counters.fast(hook)));
            }
            Ok(counts)
        };
        for connection in connections {
            wait_for("the fast path to carry a connection", DEADLINE, || {
                let before = count()?;
                connection.exchange(2_000, 100)?;
                let added: Vec<_> = count()?
                    .iter()
                    .zip(&before)
                    .map(|(after, before)| after - before)
                    .collect();
                ensure!(
                    added.iter().all(|&packets| packets >= 15),
                    "fast packets of 20 exchanges: {added:?}"
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    fn all_unreachable(&self) -> Result<()> {
        for protocol in PROTOCOLS {
            ensure!(
                is_unreachable(&self.client, protocol, self.target, SILENCE)?,
                "a new {} flow is let through",
                protocol.name()
            );
        }
        Ok(())
    }

    fn node(&self, place: Place) -> &Node {
        match place {
            Place::RequestsLeaving | Place::RepliesArriving => self.lab.node(0),
            Place::RequestsArriving | Place::RepliesLeaving => self.lab.node(1),
        }
    }

    /// Adds the rule that drops what passes at `place`, or takes it away.
    fn set_rule(&self, filter: Filter, place: Place, present: bool) -> Result<()> {
        let node = self.node(place);
        let ends = match place {
            Place::RequestsLeaving | Place::RequestsArriving => [&self.client, &self.server],
            Place::RepliesLeaving | Place::RepliesArriving => [&self.server, &self.client],
        };
        let [from, to] = ends.map(|end| end.address.to_string());
        let hook = match filter {
            Filter::Iptables | Filter::IptablesLegacy => {
                let program = A::IPTABLES[usize::from(filter == Filter::IptablesLegacy)];
                let action = if present { "-I" } else { "-D" };
                let rule = [action, "FORWARD", "-s", &from, "-d", &to, "-j", "DROP"];
                return node.cmd(program, rule).map(drop);
            }
            Filter::Routing => {
                let action = if present { "add" } else { "del" };
                let rule = ["rule", action, "from", &from, "to", &to, "blackhole"];
                let family = if A::ANY.is_ipv6() { "-6" } else { "-4" };
                return node.cmd("ip", [&[family], &rule[..]].concat()).map(drop);
            }
            Filter::Nftables => "hook forward priority filter".to_owned(),
            Filter::Netdev => {
                let device = match place {
                    Place::RequestsLeaving | Place::RepliesLeaving => "vetha",
                    Place::RequestsArriving | Place::RepliesArriving => A::DEVICE,
                };
                format!("hook ingress device {device} priority 0")
            }
        };
        let (ip, family) = match filter {
            Filter::Netdev => (A::NFT, "netdev"),
            _ => (A::NFT, A::NFT),
        };
        let command = if present {
            format!(
                "table {family} verdicts {{ chain drops {{ type filter {hook}; \
                 {ip} saddr {from} {ip} daddr {to} drop; }}; }}"
            )
        } else {
            format!("delete table {family} verdicts")
        };
        node.cmd("nft", [command.as_str()]).map(drop)
    }
}

/// A UDP flow that never pauses.
struct Pulse {
    start: Instant,
    stop: Arc<AtomicBool>,
    /// When the datagrams were sent that got an answer.
    answered: Arc<std::sync::Mutex<Vec<Duration>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Pulse {
    fn start<A: PolicyFamily>(bench: &Bench<'_, A>) -> Result<Self> {
        let socket = bench.client.namespace.enter(|| -> Result<_> {
            let socket = UdpSocket::bind((A::ANY, 0))?;
            socket.connect(bench.target)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let start = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(std::sync::Mutex::new(Vec::new()));
        let sender = {
            let (socket, stop) = (socket.try_clone()?, Arc::clone(&stop));
            thread::spawn(move || -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    let now = u64::try_from(start.elapsed().as_micros())?;
                    socket.send(&now.to_be_bytes())?;
                    thread::sleep(BEAT);
                }
                Ok(())
            })
        };
        let receiver = {
            let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
            thread::spawn(move || -> Result<()> {
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(len) = socket.recv(&mut buffer) else {
                        continue;
                    };
                    let sent = buffer[..len].last_chunk().context("a short answer")?;
                    let sent = Duration::from_micros(u64::from_be_bytes(*sent));
                    answered.lock().map_err(|_| anyhow!("poisoned"))?.push(sent);
                }
                Ok(())
            })
        };
        Ok(Self {
            start,
            stop,
            answered,
            threads: vec![sender, receiver],
        })
    }

    /// Waits until a datagram sent after `since` is answered.
    fn wait_beat(&self, since: Instant) -> Result<()> {
        wait_for("an answer", DEADLINE, || match self.last()? {
            Some(last) if last > since => Ok(()),
            last => bail!(
                "last answered after {:?}",
                last.map(|last| last - self.start)
            ),
        })
    }

    /// When the last datagram was sent that has been answered.
    fn last(&self) -> Result<Option<Instant>> {
        let answered = self.answered.lock().map_err(|_| anyhow!("poisoned"))?;
        Ok(answered.iter().max().map(|&sent| self.start + sent))
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread
                .join()
                .unwrap_or_else(|_panic| Err(anyhow!("panicked")))?;
        }
        Ok(())
    }
}

fn a_drop_rule_is_honoured<A: PolicyFamily>(filter: Filter, places: &[Place]) {
    with_bench(|bench: &Bench<'_, A>| {
        for &place in places {
            drop_and_resume(bench, filter, place)
                .with_context(|| format!("rule of {filter:?} against {place:?}"))?;
        }
        Ok(())
    });
}

fn drop_and_resume<A: PolicyFamily>(
    bench: &Bench<'_, A>,
    filter: Filter,
    place: Place,
) -> Result<()> {
    let mut connections = bench.open()?;
    let pulse = Pulse::start(bench)?;
    pulse.wait_beat(Instant::now())?;
    bench.make_fast(&mut connections)?;

    bench.set_rule(filter, place, true)?;
    let appeared = Instant::now();
    bench.all_unreachable()?;
    thread::sleep((appeared + BOUND).saturating_duration_since(Instant::now()));
    for connection in &mut connections {
        ensure!(
            connection.is_cut(SILENCE)?,
            "{BOUND:?} after the rule, an established flow goes on: {connection:?}"
        );
    }
    let last = pulse.last()?.context("no answer at all")?;
    ensure!(
        last <= appeared + BOUND,
        "a fast flow goes on {:?} after the rule",
        last - appeared
    );

    bench.set_rule(filter, place, false)?;
    let removed = Instant::now();
    pulse.wait_beat(removed)?;
    for connection in &mut connections {
        connection.recover()?;
    }
    bench.make_fast(&mut connections)?;
    for protocol in PROTOCOLS {
        Connection::open(&bench.client, protocol, bench.target, 0)?.exchange(2_000, 100)?;
    }
    pulse.stop()
}

#[test]
fn an_iptables_rule_ends_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv4Addr>(Filter::Iptables, &PLACES);
}

#[test]
fn a_legacy_iptables_rule_ends_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv4Addr>(Filter::IptablesLegacy, &PLACES);
}

#[test]
fn an_nftables_rule_ends_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv4Addr>(Filter::Nftables, &PLACES);
}

#[test]
fn a_netdev_rule_ends_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv4Addr>(Filter::Netdev, &PLACES);
}

#[test]
fn a_policy_routing_rule_ends_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv4Addr>(Filter::Routing, &PLACES);
}

#[test]
fn an_ip6tables_rule_ends_ipv6_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv6Addr>(Filter::Iptables, &REQUESTS[..1]);
}

#[test]
fn a_legacy_ip6tables_rule_ends_ipv6_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv6Addr>(Filter::IptablesLegacy, &REQUESTS[1..]);
}

#[test]
fn an_nftables_rule_ends_ipv6_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv6Addr>(Filter::Nftables, &REQUESTS);
}

#[test]
fn a_netdev_rule_ends_ipv6_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv6Addr>(Filter::Netdev, &REQUESTS[1..]);
}

#[test]
fn a_policy_routing_rule_ends_ipv6_flows_and_its_removal_resumes_them() {
    a_drop_rule_is_honoured::<Ipv6Addr>(Filter::Routing, &REQUESTS[..1]);
}

/// Established flows go on because conntrack knows them, although the fast path kept most of their
/// packets from it; nothing else gets through.
#[test]
fn a_stateful_policy_keeps_established_flows_and_refuses_new_ones() {
    with_bench(|bench: &Bench<'_, Ipv4Addr>| {
        let mut connections = bench.open()?;
        bench.make_fast(&mut connections)?;
        // More than a TCP window, so that what conntrack remembers of it is out of date.
        for connection in &mut connections {
            connection.exchange(4 << 20, 60_000)?;
        }
        let rules: [&[&str]; 3] = [
            &["-N", "POLICY"],
            &[
                "-A",
                "POLICY",
                "-m",
                "conntrack",
                "--ctstate",
                "ESTABLISHED,RELATED",
                "-j",
                "ACCEPT",
            ],
            &["-A", "POLICY", "-j", "DROP"],
        ];
        for node in bench.lab.nodes() {
            for rule in rules {
                node.cmd("iptables-nft", rule.iter().copied())?;
            }
            node.cmd("iptables-nft", ["-I", "FORWARD", "-j", "POLICY"])?;
        }
        bench.all_unreachable()?;
        bench.make_fast(&mut connections)?;
        bench.all_unreachable()?;
        for node in bench.lab.nodes() {
            node.cmd("iptables-nft", ["-D", "FORWARD", "-j", "POLICY"])?;
        }
        bench
            .open()?
            .iter_mut()
            .try_for_each(|connection| connection.exchange(2_000, 100))?;
        connections.into_iter().try_for_each(Connection::close)
    });
}
