//! What any kernel must do with the programs, in few steps: these tests run on the machine's own
//! kernel, and by `cargo xtask test` on others, in virtual machines that are about ten times slower.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{EbpfLoader, programs::Program};
use overlay_agent::object::OBJECT;
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::Frame,
    decode::is_udp_to,
    lab::{Lab, Node, scenario, underlay::NODE_INTERFACE},
    requirements::require_root,
    rules::{self, Flavour, Protocol, Service},
    services::{Connection, Server, is_unreachable},
    skip,
    traffic::{Endpoint, flow::SteadyFlow, tcp},
    wait::{scaled, wait_for},
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const PORT: u16 = 8080;
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const VXLAN: u16 = 8472;
const DEADLINE: Duration = Duration::from_secs(15);
/// What a rule may take to end a flow that the fast path carries.
const BOUND: Duration = Duration::from_secs(1);
/// Silence that counts as "stopped".
const SILENCE: Duration = Duration::from_millis(400);
/// Lines of a verifier log that say why it refuses.
const REASON: usize = 6;

/// How a kernel runs the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Tcx,
    Filters,
    /// Not at all.
    KernelTier,
}

impl Means {
    /// What the documentation promises of the running kernel.
    fn promised() -> Result<Self> {
        let release = release()?;
        Ok(if release < (5, 15) {
            Self::KernelTier
        } else if release < (6, 6) {
            Self::Filters
        } else {
            Self::Tcx
        })
    }
}

/// Major and minor version of the running kernel.
fn release() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("kernel release {release}"),
    }
}

#[test]
fn the_verifier_takes_every_program() {
    require_root();
    if Means::promised().unwrap() == Means::KernelTier {
        skip!("this kernel is too old for the programs");
    }
    let mut ebpf = EbpfLoader::new().load(OBJECT).unwrap();
    let mut refusals = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => panic!("{name} is of another type"),
        };
        if let Err(error) = loaded {
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(REASON)..].join("\n");
            refusals.push(format!("{name}: {tail}"));
        }
    }
    assert!(refusals.is_empty(), "{}", refusals.join("\n"));
}

#[test]
fn pods_talk_and_their_flows_are_fast_by_the_means_of_the_kernel() {
    scenario(Lab::builder().nodes(2), |lab| {
        let means = Means::promised()?;
        lab.start_agents(&[])?;
        lab.add_pods(1)?;
        if means == Means::KernelTier {
            // There are no maps to look into.
            wait_for("pods to talk", DEADLINE, || lab.ping_matrix())?;
        } else {
            lab.wait_converged()?;
            lab.ping_matrix()?;
        }
        let [from, to] = [0, 1].map(|node| lab.node(node).pods()[0].endpoint());
        tcp::transfer(&from, &to, tcp::Spec::bulk(1 << 20))?;
        let flow = SteadyFlow::start(&from, &to, Duration::from_millis(5))?;
        for node in lab.nodes() {
            if means != Means::KernelTier {
                node.wait_fast()?;
            }
            check_means(node, means)?;
        }
        flow.stop()?.datagrams.ensure_lossless()
    });
}

/// Checks by the system's own tools how the programs are attached, and that `status` agrees.
fn check_means(node: &Node, means: Means) -> Result<()> {
    let filters = |interface: &str, side: &str| -> Result<bool> {
        let shown = node.cmd("tc", ["filter", "show", "dev", interface, side])?;
        Ok(shown.contains("overlay_") || shown.contains("direct-action"))
    };
    for interface in [NODE_INTERFACE, "vetha", "flannel.1"] {
        let filtered = filters(interface, "ingress")?;
        ensure!(
            filtered == (means == Means::Filters),
            "{means:?}, and {interface} has filters: {filtered}"
        );
    }
    if means == Means::KernelTier {
        let (code, text) = node.status()?;
        ensure!(code == Some(1), "{code:?}: {text}");
        ensure!(
            text.contains("kernel tier alone") && text.contains("overlay_"),
            "{text}"
        );
        return check_warning(node);
    }
    if means == Means::Tcx {
        node.attached("vetha").context("links at a pod")?;
    }
    wait_for("status to be content", DEADLINE, || {
        node.operator(&["status"]).map(drop)
    })
}

/// The agent says once why there are no programs, in a few lines.
fn check_warning(node: &Node) -> Result<()> {
    let log = node.with_agent(|agent| Ok(agent.log()))?;
    ensure!(log.matches("no eBPF tier").count() == 1, "{log}");
    ensure!(
        log.matches("programs of an earlier agent").count() == 0,
        "{log}"
    );
    ensure!(log.lines().count() < 60, "a long log:\n{log}");
    Ok(())
}

/// Pod `a` of the first node talks to pod `a` of the second.
struct Bench<'a> {
    lab: &'a Lab,
    client: Endpoint,
    target: SocketAddr,
    _servers: Vec<Server>,
}

fn with_fast_lab(test: impl FnOnce(&Bench<'_>) -> Result<()>) {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let [client, server] = [0, 1].map(|node| lab.node(node).pods()[0].endpoint());
        let mut servers = Vec::new();
        for protocol in PROTOCOLS {
            servers.push(Server::start(&server, protocol, PORT)?);
        }
        test(&Bench {
            lab,
            target: SocketAddr::new(server.address.into(), PORT),
            client,
            _servers: servers,
        })
    });
}

impl Bench<'_> {
    fn open(&self, protocol: Protocol) -> Result<Connection> {
        Connection::open(&self.client, protocol, self.target, 0)
    }

    /// Uses a connection until the fast path carries it, at both nodes and in both directions.
    fn make_fast(&self, connection: &mut Connection) -> Result<()> {
        let count = || -> Result<Vec<u64>> {
            let mut counts = Vec::new();
            for node in self.lab.nodes() {
                let counters = node.counters()?;
                counts.extend([Hook::Egress, Hook::Ingress].map(|hook| counters.fast(hook)));
            }
            Ok(counts)
        };
        wait_for("the fast path to carry a connection", DEADLINE, || {
            let before = count()?;
            connection.exchange(2_000, 100)?;
            let after = count()?;
            let added: Vec<_> = after.iter().zip(before).map(|(a, b)| a - b).collect();
            ensure!(
                added.iter().all(|&packets| packets >= 15),
                "fast packets of 20 exchanges: {added:?}"
            );
            Ok(())
        })
    }

    /// Waits as long as a change may take to count, then checks that nothing passes any more.
    fn check_stopped(&self, connection: &mut Connection) -> Result<()> {
        thread::sleep(scaled(BOUND));
        let silence = scaled(SILENCE);
        ensure!(
            connection.is_cut(silence)?,
            "an established flow goes on: {connection:?}"
        );
        ensure!(
            is_unreachable(&self.client, Protocol::Udp, self.target, silence)?,
            "a new flow is let through"
        );
        Ok(())
    }
}

#[test]
fn a_translated_service_keeps_working_beside_fast_flows() {
    if Means::promised().unwrap() == Means::KernelTier {
        skip!("this kernel is too old for the programs");
    }
    with_fast_lab(|bench| {
        let services = PROTOCOLS.map(|protocol| Service {
            name: protocol.name(),
            protocol,
            address: SocketAddr::new(VIRTUAL.into(), PORT),
            node_port: None,
            affinity: false,
            backends: vec![bench.target],
        });
        for node in bench.lab.nodes() {
            rules::install(node, Flavour::Nftables, "10.5.0.0/16".parse()?, &services)?;
        }
        for protocol in PROTOCOLS {
            let mut direct = bench.open(protocol)?;
            bench.make_fast(&mut direct)?;
            let address = (VIRTUAL, PORT);
            let mut service = Connection::open(&bench.client, protocol, address, 0)?;
            for _ in 0..3 {
                service.exchange(2_000, 100)?;
                bench.make_fast(&mut direct)?;
            }
            let seen = (service.served.by, service.served.source.ip());
            let expected = (bench.target.ip(), bench.client.address.into());
            ensure!(seen == expected, "{seen:?} served, not {expected:?}");
            service.close()?;
            direct.close()?;
        }
        Ok(())
    });
}

#[test]
fn a_rule_stops_an_established_fast_flow() {
    if Means::promised().unwrap() == Means::KernelTier {
        skip!("this kernel is too old for the programs");
    }
    with_fast_lab(|bench| {
        let node = bench.lab.node(1);
        let mut flow = bench.open(Protocol::Udp)?;
        bench.make_fast(&mut flow)?;
        let rule = format!(
            "table ip verdicts {{ chain drops {{ type filter hook forward priority filter; \
             udp dport {PORT} drop; }}; }}"
        );
        node.cmd("nft", [rule.as_str()])?;
        bench.check_stopped(&mut flow)?;
        node.cmd("nft", ["delete table ip verdicts"])?;
        flow.recover()?;
        bench.make_fast(&mut flow)
    });
}

/// Node-to-node IPsec whose keys are not there: nothing may leave, least of all in clear.
#[test]
fn a_policy_without_a_state_stops_an_established_fast_flow() {
    if Means::promised().unwrap() == Means::KernelTier {
        skip!("this kernel is too old for the programs");
    }
    with_fast_lab(|bench| {
        let [node, peer] = [0, 1].map(|index| bench.lab.node(index));
        let [from, to] = [node, peer].map(|node| node.address.to_string());
        let policy = format!(
            "src {from} dst {to} dir out tmpl src {from} dst {to} proto esp mode transport level required"
        );
        let change = |action: &str| {
            let words = ["xfrm", "policy", action].into_iter();
            node.cmd("ip", words.chain(policy.split_whitespace()))
        };
        let mut flow = bench.open(Protocol::Udp)?;
        bench.make_fast(&mut flow)?;
        change("add")?;
        thread::sleep(scaled(BOUND));
        let wire = node.capture_wire()?;
        bench.check_stopped(&mut flow)?;
        let sent = wire.stop()?;
        let is_clear =
            |frame: &&Frame| is_udp_to(&frame.bytes, VXLAN) && is_from(frame, &node.address);
        let clear = sent.iter().filter(is_clear).count();
        ensure!(clear == 0, "{clear} tunnel packets left in clear text");
        node.cmd("ip", ["xfrm", "policy", "flush"])?;
        flow.recover()?;
        bench.make_fast(&mut flow)
    });
}

fn is_from(frame: &Frame, address: &Ipv4Addr) -> bool {
    frame.bytes.get(26..30) == Some(&address.octets())
}
