//! What any kernel must do with the programs, in few steps: these tests run on the machine's own
//! kernel, and by `cargo xtask test` on others, in virtual machines that are about ten times slower.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{EbpfLoader, programs::Program};
use overlay_agent::object::OBJECT;
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::Frame,
    decode::is_udp_to,
    kernel::Means,
    lab::{Lab, Node, scenario, underlay::NODE_INTERFACE},
    requirements::require_root,
    rules::{self, Flavour, Protocol, Service},
    services::{Connection, Server, is_unreachable},
    skip,
    traffic::{Endpoint, tcp},
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

/// One lab for everything: emulated, it takes half a minute to come up.
#[test]
fn pods_talk_fast_and_what_the_kernel_decides_holds_beside_it() {
    scenario(Lab::builder().nodes(2), |lab| {
        let means = Means::promised()?;
        lab.start_agents(&[])?;
        lab.add_pods(1)?;
        // Without programs there are no maps to look into.
        if means != Means::KernelTier {
            lab.wait_converged()?;
            lab.wait_attached()?;
        }
        wait_for("pods to talk", DEADLINE, || lab.ping_matrix())?;
        let bench = Bench::start(lab)?;
        tcp::transfer(&bench.client, &bench.server, tcp::Spec::bulk(256 << 10))?;
        for node in lab.nodes() {
            check_means(node, means)?;
        }
        if means == Means::KernelTier {
            let mut open = PROTOCOLS.iter().map(|&protocol| bench.open(protocol));
            return open.try_for_each(|connection| connection?.exchange(2_000, 100));
        }
        a_translated_service_keeps_working(&bench).context("a service")?;
        a_rule_stops_a_fast_flow(&bench).context("a rule")?;
        a_policy_stops_a_fast_flow(&bench).context("an IPsec policy")
    });
}

/// Checks by the system's own tools how the programs are attached, and that `status` agrees.
fn check_means(node: &Node, means: Means) -> Result<()> {
    for interface in [NODE_INTERFACE, "vetha", "flannel.1"] {
        let shown = node.cmd("tc", ["filter", "show", "dev", interface, "ingress"])?;
        ensure!(
            shown.contains("direct-action") == (means == Means::Filters),
            "{means:?}, and the filters of {interface} are: {shown}"
        );
    }
    if means != Means::KernelTier {
        return wait_for("status to be content", DEADLINE, || {
            let (code, text) = node.status()?;
            ensure!(code == Some(0), "{text}");
            Ok(())
        });
    }
    let (code, text) = node.status()?;
    ensure!(code == Some(1), "{code:?}: {text}");
    for part in ["kernel tier alone", "rejected overlay_"] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    // The agent says once why, in a few lines.
    let log = node.with_agent(|agent| Ok(agent.log()))?;
    ensure!(log.matches("no eBPF tier").count() == 1, "{log}");
    ensure!(!log.contains("programs of an earlier agent"), "{log}");
    ensure!(log.lines().count() < 50, "a long log:\n{log}");
    Ok(())
}

/// Pod `a` of the first node talks to pod `a` of the second.
struct Bench<'a> {
    lab: &'a Lab,
    client: Endpoint,
    server: Endpoint,
    target: SocketAddr,
    _servers: Vec<Server>,
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let [client, server] = [0, 1].map(|node| lab.node(node).pods()[0].endpoint());
        let mut servers = Vec::new();
        for protocol in PROTOCOLS {
            servers.push(Server::start(&server, protocol, PORT)?);
        }
        Ok(Self {
            lab,
            target: SocketAddr::new(server.address.into(), PORT),
            client,
            server,
            _servers: servers,
        })
    }

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

fn a_translated_service_keeps_working(bench: &Bench<'_>) -> Result<()> {
    let services = PROTOCOLS.map(|protocol| Service {
        name: protocol.name(),
        protocol,
        address: SocketAddr::new(VIRTUAL.into(), PORT),
        node_port: None,
        affinity: None,
        backends: vec![bench.target],
    });
    for node in bench.lab.nodes() {
        rules::install(node, Flavour::Nftables, "10.5.0.0/16".parse()?, &services)?;
    }
    for protocol in PROTOCOLS {
        let mut direct = bench.open(protocol)?;
        bench.make_fast(&mut direct)?;
        let mut service = Connection::open(&bench.client, protocol, (VIRTUAL, PORT), 0)?;
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
}

fn a_rule_stops_a_fast_flow(bench: &Bench<'_>) -> Result<()> {
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
}

/// Node-to-node IPsec whose keys are not there: nothing may leave, least of all in clear text.
fn a_policy_stops_a_fast_flow(bench: &Bench<'_>) -> Result<()> {
    let [node, peer] = [0, 1].map(|index| bench.lab.node(index));
    let (from, to) = (node.address, peer.address);
    let policy = format!(
        "xfrm policy add src {from} dst {to} dir out \
         tmpl src {from} dst {to} proto esp mode transport level required"
    );
    let mut flow = bench.open(Protocol::Udp)?;
    bench.make_fast(&mut flow)?;
    node.cmd("ip", policy.split_whitespace())?;
    thread::sleep(scaled(BOUND));
    let wire = node.capture_wire()?;
    bench.check_stopped(&mut flow)?;
    let frames = wire.stop()?;
    let clear = frames
        .iter()
        .filter(|frame| is_udp_to(&frame.bytes, VXLAN) && is_from(frame, from));
    let clear = clear.count();
    ensure!(clear == 0, "{clear} tunnel packets left in clear text");
    node.cmd("ip", ["xfrm", "policy", "flush"])?;
    flow.recover()?;
    bench.make_fast(&mut flow)
}

fn is_from(frame: &Frame, address: Ipv4Addr) -> bool {
    frame.bytes.get(26..30) == Some(&address.octets())
}
