//! Rules that judge packets one by one, over the real agent: with the fast path each packet fares as
//! it does without, and flows that no such rule can match stay fast.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    rules::{self, Flavour, NodePort, Protocol, Service},
    services::{Connection, Server},
    traffic::Endpoint,
    wait::wait_for,
};
use serde_json::Value;

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
const DEADLINE: Duration = Duration::from_secs(15);
/// Silence that counts as "dropped".
const SILENCE: Duration = Duration::from_millis(150);
/// Packets of each kind that are sent to a rule.
const PACKETS: usize = 12;
/// What the rules look for.
const EVIL: &[u8] = b"EVIL EVIL";
const FINE: &[u8] = b"fine fine";

/// A rule, by the commands that install it.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Of the node the rule is on: 0 sends the packets it judges, 1 receives them.
    node: usize,
    commands: &'static [&'static str],
    /// By what it judges, as `status` names it.
    by: &'static str,
}

const STRING: Case = Case {
    node: 0,
    commands: &[
        "iptables-nft -I FORWARD -p udp -m udp --dport 8080 -m string --string EVIL --algo bm -j DROP",
    ],
    by: "string",
};

const LEGACY_STRING: Case = Case {
    node: 1,
    commands: &[
        "iptables-legacy -I FORWARD -p udp -m udp --dport 8080 -m string --string EVIL --algo bm -j DROP",
    ],
    by: "string",
};

/// The payload begins behind the 8 bytes of the UDP header.
const PAYLOAD: Case = Case {
    node: 1,
    commands: &[
        "nft table ip judges { chain forward { type filter hook forward priority 0; \
         udp dport 8080 @th,64,32 0x4556494c drop; }; }",
    ],
    by: "payload",
};

/// Nobody listens to the queue.
const QUEUE: Case = Case {
    node: 0,
    commands: &["iptables-nft -I FORWARD -p udp -m udp --dport 8080 -j NFQUEUE --queue-num 77"],
    by: "NFQUEUE",
};

const LIMIT: Case = Case {
    node: 1,
    commands: &[
        "nft table ip judges { chain forward { type filter hook forward priority 0; \
         udp dport 8080 limit rate 1/hour burst 3 packets accept; udp dport 8080 drop; }; }",
    ],
    by: "limit",
};

/// A chain of nftables jumped to with a narrower match.
const JUMP: Case = Case {
    node: 0,
    commands: &[
        "nft table inet judges { chain lengths { meta length 30-40 drop; }; chain forward { \
         type filter hook forward priority 0; meta l4proto udp udp dport 8080 jump lengths; }; }",
    ],
    by: "meta length",
};

/// How the packets of a flow fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fate {
    fine: usize,
    evil: usize,
}

/// Pod `a` of the first node talks to pod `a` of the second.
struct Bench<'a> {
    lab: &'a Lab,
    client: Endpoint,
    target: SocketAddr,
    _servers: Vec<Server>,
}

fn with_bench(flags: &[&str], test: impl FnOnce(&Bench<'_>) -> Result<()>) {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&[&["--ip-masq"], flags].concat())?;
        lab.wait_converged()?;
        lab.add_pods(1)?;
        let pods: Vec<Endpoint> = lab.pods().iter().map(|(_, pod)| pod.endpoint()).collect();
        let [client, server] = pods.as_slice() else {
            bail!("{} pods", pods.len());
        };
        let servers = [
            Server::start(server, Protocol::Udp, PORT)?,
            Server::start(server, Protocol::Udp, OTHER_PORT)?,
            Server::start(server, Protocol::Tcp, PORT)?,
        ];
        test(&Bench {
            lab,
            target: SocketAddr::new(server.address.into(), PORT),
            client: client.clone(),
            _servers: servers.into(),
        })
    });
}

impl Bench<'_> {
    fn install(&self, case: Case) -> Result<()> {
        for command in case.commands {
            let (program, words) = command.split_once(' ').context("a command")?;
            let node = self.lab.node(case.node);
            if program == "nft" {
                node.cmd(program, [words])?;
            } else {
                node.cmd(program, words.split(' '))?;
            }
        }
        Ok(())
    }

    /// Waits until `status` names a rule that judges by `by`, and nothing else.
    fn wait_named(&self, case: Case) -> Result<Value> {
        wait_for("status to name the rule", DEADLINE, || {
            let rules = per_packet_rules(self.lab.node(case.node))?;
            ensure!(rules["problem"].is_null(), "{rules:#}");
            let found = rules["rules"].as_array().context("no rules")?;
            ensure!(
                found.len() == 1 && found[0]["judges_by"] == case.by,
                "{rules:#}"
            );
            Ok(found[0].clone())
        })
    }

    fn socket(&self) -> Result<UdpSocket> {
        let socket = self.client.namespace.enter(|| -> Result<_> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(self.target)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(socket)
    }

    /// Fast packets of both hooks on both nodes so far.
    fn fast(&self) -> Result<u64> {
        let mut sum = 0;
        for node in self.lab.nodes() {
            let counters = node.counters()?;
            sum += counters.fast(Hook::Egress) + counters.fast(Hook::Ingress);
        }
        Ok(sum)
    }

    /// Exchanges until the fast path carries them in both directions.
    fn make_fast(&self, mut exchange: impl FnMut() -> Result<()>) -> Result<()> {
        wait_for("the fast path to carry a flow", DEADLINE, || {
            let before = self.fast()?;
            for _ in 0..10 {
                exchange()?;
            }
            let added = self.fast()? - before;
            ensure!(added >= 36, "{added} of 40 packets were fast");
            Ok(())
        })
    }
}

fn per_packet_rules(node: &Node) -> Result<Value> {
    let status = node.operator_json(&["status"])?;
    Ok(status["datapath"]["per_packet_rules"].clone())
}

/// Whether the datagram is answered.
fn is_answered(socket: &UdpSocket, payload: &[u8]) -> Result<bool> {
    socket.send(payload)?;
    let mut answer = [0; 256];
    loop {
        match socket.recv(&mut answer) {
            Ok(len) if answer[..len].ends_with(payload) => return Ok(true),
            // An earlier one, late.
            Ok(_) => {}
            Err(_) => return Ok(false),
        }
    }
}

/// Sends packets of both kinds, in turns.
fn fate(socket: &UdpSocket) -> Result<Fate> {
    let mut fate = Fate { fine: 0, evil: 0 };
    for _ in 0..PACKETS {
        fate.fine += usize::from(is_answered(socket, FINE)?);
        fate.evil += usize::from(is_answered(socket, EVIL)?);
    }
    Ok(fate)
}

/// How an established flow fares once the rule is there.
fn judged(case: Case, flags: &[&str]) -> Fate {
    let is_off = flags.contains(&"--fastpath=off");
    let mut result = None;
    with_bench(flags, |bench| {
        let socket = bench.socket()?;
        if is_off {
            ensure!(is_answered(&socket, FINE)?, "no answer at all");
        } else {
            bench.make_fast(|| {
                ensure!(is_answered(&socket, FINE)?, "no answer");
                Ok(())
            })?;
        }
        bench.install(case)?;
        if !is_off {
            let rule = bench.wait_named(case)?;
            let left = rule["left_to_kernel"].to_string();
            ensure!(
                left.contains("udp") && left.contains("port 8080"),
                "{rule:#}"
            );
        }
        let node = bench.lab.node(case.node);
        let before = node.counters()?;
        let fate = fate(&socket)?;
        let since = node.counters()?.since(&before);
        result = Some(fate);
        if is_off {
            return Ok(());
        }
        // On this node, in this direction, no packet but those of the flow is under way.
        let (takes, grants) = [
            (Hook::Egress, Hook::Confirm),
            (Hook::Ingress, Hook::Deliver),
        ][case.node];
        ensure!(since.fast(takes) == 0, "{fate:?}: {since:?}");
        ensure!(
            fate.fine + fate.evil == 0 || since.packets(grants, Outcome::PerPacketRule) > 0,
            "{fate:?}: {since:?}"
        );
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let port = if protocol == Protocol::Tcp {
                PORT
            } else {
                OTHER_PORT
            };
            let target = SocketAddr::new(bench.target.ip(), port);
            let mut other = Connection::open(&bench.client, protocol, target, 0)?;
            bench
                .make_fast(|| other.exchange(100, 100))
                .with_context(|| format!("a {} flow to port {port}", protocol.name()))?;
        }
        Ok(())
    });
    result.unwrap_or_else(|| panic!("{case:?} with {flags:?} has no result"))
}

#[track_caller]
fn assert_heeded(case: Case, expected: Fate) {
    let off = judged(case, &["--fastpath=off"]);
    assert_eq!(off, expected, "without the fast path");
    assert_eq!(judged(case, &[]), off, "with it");
}

const EVIL_DROPPED: Fate = Fate {
    fine: PACKETS,
    evil: 0,
};

#[test]
fn a_string_match_of_iptables_stops_every_packet_it_would_stop_without_the_fast_path() {
    assert_heeded(STRING, EVIL_DROPPED);
}

#[test]
fn a_string_match_of_legacy_iptables_stops_every_packet_it_would_stop_without_the_fast_path() {
    assert_heeded(LEGACY_STRING, EVIL_DROPPED);
}

#[test]
fn a_payload_match_of_nftables_stops_every_packet_it_would_stop_without_the_fast_path() {
    assert_heeded(PAYLOAD, EVIL_DROPPED);
}

#[test]
fn a_queue_that_nobody_listens_to_stops_every_packet() {
    assert_heeded(QUEUE, Fate { fine: 0, evil: 0 });
}

#[test]
fn a_limit_lets_as_many_packets_pass_as_without_the_fast_path() {
    assert_heeded(LIMIT, Fate { fine: 2, evil: 1 });
}

#[test]
fn a_length_match_behind_a_jump_stops_every_packet_it_would_stop_without_the_fast_path() {
    // Both payloads are of the same length: 20 + 8 + 9 bytes.
    assert_heeded(JUMP, Fate { fine: 0, evil: 0 });
}

#[test]
fn rules_that_judge_each_packet_can_be_ignored() {
    with_bench(&["--per-packet-rules=ignore"], |bench| {
        let socket = bench.socket()?;
        let mut exchange = || {
            ensure!(is_answered(&socket, FINE)?, "no answer");
            Ok(())
        };
        bench.make_fast(&mut exchange)?;
        bench.install(STRING)?;
        // The rule sees the packets with which the flow earns its permits again, once its coming has
        // ended them.
        wait_for("all packets to be fast", DEADLINE, || {
            bench.make_fast(&mut exchange)?;
            let fate = fate(&socket)?;
            ensure!(
                fate == Fate {
                    fine: PACKETS,
                    evil: PACKETS
                },
                "{fate:?}: something was left to the rule"
            );
            Ok(())
        })?;
        let rules = per_packet_rules(bench.lab.node(0))?;
        ensure!(
            rules["heeded"] == false && rules["rules"] == serde_json::json!([]),
            "{rules:#}"
        );
        Ok(())
    });
}

#[test]
fn a_flow_is_fast_again_when_the_rule_is_gone() {
    with_bench(&[], |bench| {
        let socket = bench.socket()?;
        bench.install(PAYLOAD)?;
        bench.wait_named(PAYLOAD)?;
        ensure!(!is_answered(&socket, EVIL)?, "the rule does nothing");
        bench
            .lab
            .node(PAYLOAD.node)
            .cmd("nft", ["delete table ip judges"])?;
        bench.make_fast(|| {
            ensure!(is_answered(&socket, EVIL)?, "no answer");
            Ok(())
        })
    });
}

#[test]
fn a_marked_flow_stays_in_the_kernel_and_others_do_not() {
    with_bench(&["--slow-mark=0x100000/0x100000"], |bench| {
        let node = bench.lab.node(0);
        let rule =
            "-t mangle -A FORWARD -p udp -m udp --dport 8080 -j MARK --set-xmark 0x100000/0x100000";
        node.cmd("iptables-nft", rule.split(' '))?;
        let mut marked = Connection::open(&bench.client, Protocol::Udp, bench.target, 0)?;
        let target = SocketAddr::new(bench.target.ip(), OTHER_PORT);
        let mut other = Connection::open(&bench.client, Protocol::Udp, target, 0)?;
        bench.make_fast(|| other.exchange(100, 100))?;
        let before = node.counters()?;
        marked.exchange(2_000, 100)?;
        let since = node.counters()?.since(&before);
        ensure!(since.fast(Hook::Egress) == 0, "{since:?}");
        ensure!(
            since.packets(Hook::Confirm, Outcome::SlowMark) >= 20,
            "{since:?}"
        );
        Ok(())
    });
}

/// Sets of rules that half of all hosts have.
#[test]
fn the_rules_of_kube_proxy_and_logs_under_a_limit_leave_nothing_to_the_kernel() {
    for flavour in [Flavour::Iptables, Flavour::Nftables] {
        with_bench(&[], |bench| {
            let services: Vec<Service> = [false, true]
                .into_iter()
                .zip(["10.96.0.10:80", "10.96.0.11:80"])
                .map(|(affinity, address)| {
                    Ok(Service {
                        name: if affinity { "sticky" } else { "spread" },
                        protocol: Protocol::Tcp,
                        address: address.parse()?,
                        node_port: Some(NodePort::Masqueraded(if affinity {
                            30_001
                        } else {
                            30_002
                        })),
                        affinity: affinity.then_some(10_800),
                        backends: vec![
                            bench.target,
                            SocketAddr::new(bench.client.address.into(), PORT),
                        ],
                    })
                })
                .collect::<Result<_>>()?;
            let log = "-I FORWARD -m limit --limit 3/min --limit-burst 10 -j LOG";
            for node in bench.lab.nodes() {
                rules::install(node, flavour, "10.5.0.0/16".parse()?, &services)?;
                node.cmd("iptables-nft", log.split(' '))?;
            }
            let mut connection = Connection::open(&bench.client, Protocol::Tcp, bench.target, 0)?;
            bench.make_fast(|| connection.exchange(100, 100))?;
            for node in bench.lab.nodes() {
                let rules = per_packet_rules(node)?;
                ensure!(
                    rules["problem"].is_null() && rules["rules"] == serde_json::json!([]),
                    "{flavour:?}: {rules:#}"
                );
            }
            Ok(())
        });
    }
}
