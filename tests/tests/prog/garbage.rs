//! Damaged, truncated and random packets: whatever comes, a program passes it on or handles it the
//! way a plain reading of its rules says, and counts it once.

use std::{collections::BTreeMap, env, ops::RangeInclusive};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::{
    addr::MacAddr,
    config::{FASTPATH_STRICT, FASTPATH_TRUSTED},
    flow::Flow,
    node::MODE_DIRECT,
    outcome::{Hook, Kind, Outcome},
};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench, Hex, Run, Surroundings, Verdict,
        fixture::{Fixture, LEAVING, POD_MAC, Remote, SOURCE_PORT, VXLAN_PORT},
        model::{Decision, Model, Reading, pair},
        node::{GATEWAY_MAC, Interfaces, on_node},
        oddities::Oddities,
        packet::{ETH_LEN, Local, Packet, TCP_ACK, TCP_SYN, Transport, pattern},
    },
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

/// Packets of the random test in each mode, over all programs.
const PACKETS: u32 = 30_000;
/// Starts the random test from another number than this one.
use crate::packets::{DATA, SACK, sctp};

const SEED: (&str, u64) = ("OVERLAY_TEST_SEED", 20_260_724);

/// A packet to damage, as its hook sees it.
#[derive(Clone)]
struct Case {
    hook: Hook,
    frame: Vec<u8>,
    surroundings: Surroundings,
}

/// Transports whose packets belong to flow number `flow`.
fn transports(flow: u16) -> [Transport; 6] {
    [
        Transport::Tcp {
            src: flow,
            dst: 80,
            flags: TCP_ACK,
            options: 12,
        },
        Transport::Udp { src: flow, dst: 53 },
        sctp(DATA).of_flow(flow),
        sctp(SACK).of_flow(flow),
        Transport::EchoRequest { id: flow },
        Transport::EchoReply { id: flow },
    ]
}

/// Packets of each transport at each hook, and the fixture in which those that can be are fast. In
/// trusted mode the pairs of pods are, handshakes included.
fn cases<F: Reading + Oddities>(interfaces: Interfaces, fastpath: u32) -> (Vec<Case>, Fixture<F>) {
    /// Permits that do not count, each for its own reason.
    const BROKEN: [fn(&mut Flow); 16] = [
        |flow| flow.egress_until = 1,
        |flow| flow.ingress_until = 1,
        |flow| flow.generation -= 1,
        |flow| flow.id ^= 1,
        |flow| flow.node = 9,
        |flow| flow.gateway_mac = MacAddr::ZERO,
        |flow| flow.egress_mode = MODE_DIRECT,
        |flow| flow.ingress_mode = MODE_DIRECT,
        |flow| flow.pod_mtu = 100,
        |flow| flow.path_mtu = 100,
        |flow| flow.path_changes -= 1,
        |flow| flow.vtep[0] ^= 1,
        |flow| flow.egress_mode |= 46 << 2,
        |flow| flow.ingress_mode |= 46 << 2,
        |flow| flow.egress_ttl -= 1,
        |flow| flow.ingress_ttl -= 1,
    ];

    let mut fixture = Fixture::new(interfaces);
    fixture.config.fastpath = fastpath;
    let mut cases = Vec::new();
    let fast: fn(&mut Flow) = |_| {};
    let fast = [40_000, 40_001]
        .into_iter()
        .flat_map(|number| [F::TUNNELLED, F::DIRECT].map(|remote| (number, remote, fast)));
    let broken = (1..)
        .zip(BROKEN)
        .map(|(number, break_permit)| (number, F::TUNNELLED, break_permit));
    let trusted = fastpath == FASTPATH_TRUSTED;
    // All flows of a pair share its permit: there is one, and it counts.
    for (number, remote, adjust) in broken.filter(|_| !trusted).chain(fast) {
        let handshake = Transport::Tcp {
            src: number,
            dst: 80,
            flags: TCP_SYN,
            options: 12,
        };
        for transport in transports(number).into_iter().chain([handshake]) {
            let out = remote.from_pod(transport).with(|p| p.payload = pattern(90));
            let back = remote.to_pod(transport).with(|p| p.payload = pattern(90));
            for key in [out.flow(Local::Source), back.flow(Local::Destination)] {
                let key = if trusted { pair(key) } else { key };
                let flow = fixture.grant(key, &remote);
                if trusted {
                    (flow.egress_ttl, flow.ingress_ttl) = (0, 0);
                }
                adjust(flow);
            }
            cases.extend(journey(&fixture, &remote, &out, &back));
        }
    }
    let injection = F::TUNNELLED
        .from_pod(Transport::Udp {
            src: 9,
            dst: VXLAN_PORT,
        })
        .with(|p| p.dst = F::ROUTED.vtep.into());
    let to_this_node = injection.clone().with(|p| p.dst = F::VTEP.into());
    let hidden = F::injections(&to_this_node)
        .into_iter()
        .map(|(_, packet)| packet);
    let harmless = F::harmless(&injection)
        .into_iter()
        .map(|(_, _, packet)| packet);
    let to_nodes = hidden.chain(harmless).chain([injection]);
    cases.extend(to_nodes.map(|packet| Case {
        hook: Hook::Egress,
        frame: packet.bytes(),
        surroundings: Surroundings {
            ifindex: interfaces.pod,
            ..Surroundings::default()
        },
    }));
    (cases, fixture)
}

/// The two packets at every hook on their way, one of them also as a tunnel packet at the underlay.
fn journey<F: Reading>(
    fixture: &Fixture<F>,
    remote: &Remote<F>,
    out: &Packet<F>,
    back: &Packet<F>,
) -> Vec<Case> {
    let Interfaces {
        underlay,
        tunnel,
        gateway,
        pod,
        ..
    } = fixture.interfaces;
    let (device, arriving) = if remote.mode == MODE_DIRECT {
        (underlay, back.bytes())
    } else {
        (tunnel, remote.outer().around(&back.bytes()))
    };
    let out_key = out.flow(Local::Source);
    let out_stamp = fixture.stamp(out_key);
    let back_stamp = fixture.stamp(back.flow(Local::Destination));
    let delivered = back.clone().macs(POD_MAC, GATEWAY_MAC).with(|p| p.ttl -= 1);
    let leaving = remote.leaving(out).bytes();
    let left = Case {
        hook: Hook::Confirm,
        frame: remote.sent(SOURCE_PORT).around(&leaving),
        surroundings: Surroundings {
            ifindex: underlay,
            ingress_ifindex: gateway,
            tc_index: LEAVING,
            leaving: Some(fixture.noted(out_key)),
            ..Surroundings::default()
        },
    };
    [
        (Hook::Egress, out.bytes(), pod, pod, 0),
        (Hook::Confirm, leaving, device, gateway, out_stamp),
        (Hook::Ingress, arriving, underlay, underlay, 0),
        (Hook::Arrive, back.bytes(), tunnel, tunnel, 0),
        (Hook::Deliver, delivered.bytes(), pod, device, back_stamp),
    ]
    .into_iter()
    .map(|(hook, frame, ifindex, ingress_ifindex, hash)| Case {
        hook,
        frame,
        surroundings: Surroundings {
            ifindex,
            ingress_ifindex,
            hash,
            ..Surroundings::default()
        },
    })
    .chain([left])
    .collect()
}

/// Runs one packet and compares what came of it with the model.
fn check<F: Reading>(bench: &mut Bench<F>, fixture: &Fixture<F>, case: &Case) -> Result<Outcome> {
    bench.set(fixture)?;
    let run = bench.run(case.hook, &case.frame, &case.surroundings)?;
    let wanted = Model::new(fixture, &case.surroundings).decide(case.hook, &case.frame);
    compare(case, &run, &wanted).with_context(|| {
        format!(
            "{:?}, {:?}:\n{}became {run:?}\nThe model says {}",
            case.hook,
            case.surroundings,
            Hex(&case.frame),
            match &wanted {
                Decision::Redirect(frame) => format!("redirect:\n{}", Hex(frame)),
                other => format!("{other:?}"),
            }
        )
    })
}

fn compare(case: &Case, run: &Run, wanted: &Decision) -> Result<Outcome> {
    let outcome = run.outcome(case.hook, case.frame.len())?;
    let (decision, kinds): (_, &[Kind]) = match run.verdict {
        Verdict::Pass => {
            ensure!(
                run.frame == case.frame,
                "a packet that is passed on was changed"
            );
            (Decision::Pass, &[Kind::Decline, Kind::Permit])
        }
        Verdict::Drop => (Decision::Drop, &[Kind::Drop]),
        Verdict::Redirect => (Decision::Redirect(run.frame.clone()), &[Kind::Fast]),
        Verdict::Other(verdict) => bail!("verdict {verdict}"),
    };
    ensure!(
        kinds.contains(&outcome.kind()),
        "{:?} with {outcome:?}",
        run.verdict
    );
    ensure!(decision == *wanted, "{outcome:?} was wrong");
    Ok(outcome)
}

fn a_packet_cut_at_any_length_is_left_to_the_kernel<F: Reading + Oddities>() -> Result<()> {
    const LENGTHS: RangeInclusive<usize> = 14..=140;

    on_node(|interfaces| {
        let mut bench = Bench::load()?;
        for fastpath in [FASTPATH_STRICT, FASTPATH_TRUSTED] {
            let (cases, fixture) = cases::<F>(interfaces, fastpath);
            for case in &cases {
                for len in LENGTHS.filter(|&len| len < case.frame.len()) {
                    let cut = Case {
                        frame: case.frame[..len].to_vec(),
                        ..case.clone()
                    };
                    check(&mut bench, &fixture, &cut)?;
                }
            }
        }
        Ok(())
    })
}

/// Damages the packet, or leaves it be.
fn damage<F: Reading>(rng: &mut StdRng, case: &mut Case, others: &[Case]) {
    /// Values at which rules change.
    const EDGES: [u8; 26] = [
        0, 1, 2, 3, 4, 6, 8, 17, 20, 0x21, 43, 44, 51, 58, 60, 0x3f, 0x40, 0x45, 0x46, 0x4f, 0x60,
        0x6f, 0x80, 0x81, 0x86, 0xff,
    ];

    let len = case.frame.len();
    match rng.random_range(0..10) {
        0 => {}
        1 => case.frame = reheadered::<F>(rng, &case.frame),
        2..5 => {
            for _ in 0..rng.random_range(1..=3) {
                // Headers matter more than payload.
                let at = rng.random_range(0..len.min(140));
                case.frame[at] = rng.random();
            }
        }
        5 => case.frame[rng.random_range(0..len.min(140))] = *EDGES.choose(rng).unwrap_or(&0),
        6 => case.frame[rng.random_range(0..len)] ^= 1 << rng.random_range(0..8),
        7 => case.frame.truncate(rng.random_range(14..=len)),
        8 => case.frame.resize(len + rng.random_range(1..=64), 0),
        _ => {
            if rng.random()
                && let Some(other) = others.choose(rng)
            {
                case.frame.clone_from(&other.frame);
            } else {
                case.frame = (0..rng.random_range(14..=200))
                    .map(|_| rng.random())
                    .collect();
                if rng.random() {
                    case.frame[12..14].copy_from_slice(&F::ETHERTYPE);
                }
            }
        }
    }
    if rng.random_ratio(1, 10) {
        case.surroundings.vlan = [Some(0), Some(0x2000), Some(5)]
            .choose(rng)
            .copied()
            .flatten();
        if rng.random() {
            case.frame[12..14].copy_from_slice(&[0x81, 0]);
        }
    }
    if rng.random_ratio(1, 10) {
        case.surroundings.gso_size = *[1, 90, 1398, 1399, 1448, 1449, 0xffff]
            .choose(rng)
            .unwrap_or(&0);
    }
    if rng.random_ratio(1, 20) {
        case.surroundings.hash = rng.random();
    }
    if rng.random_ratio(1, 20) {
        case.surroundings.tc_index = if rng.random() { LEAVING } else { 0 };
    }
}

/// The frame, or the frame in it, with other values in a valid IP header.
fn reheadered<F: Reading>(rng: &mut StdRng, frame: &[u8]) -> Vec<u8> {
    let mut edit = |frame: &[u8]| {
        let ttl = *[0, 1, 2, 63, 64, 64, 64, 64].choose(rng).unwrap_or(&64);
        let dscp = if rng.random_ratio(1, 4) {
            rng.random_range(0..64)
        } else {
            0
        };
        let tos = dscp << 2 | rng.random_range(0..4);
        F::varied(&F::with_tos(&F::with_ttl(frame, ttl), tos), rng.random())
    };
    let port = ETH_LEN + F::IP_LEN + 2;
    let inner_frame = usize::from(F::OVERHEAD);
    let carries_frame = frame.get(port..port + 2) == Some(&VXLAN_PORT.to_be_bytes())
        && frame.len() > inner_frame + ETH_LEN + F::IP_LEN;
    let frame = edit(frame);
    if carries_frame {
        [&frame[..inner_frame], &edit(&frame[inner_frame..])].concat()
    } else {
        frame
    }
}

fn whatever_comes_is_handled_as_the_rules_say_and_counted_once<F: Reading + Oddities>() -> Result<()>
{
    /// What the test must have seen often to mean anything.
    const COMMON: [(Hook, Outcome); 10] = [
        (Hook::Egress, Outcome::FastTunnel),
        (Hook::Egress, Outcome::FastDirect),
        (Hook::Egress, Outcome::PodTunnel),
        (Hook::Egress, Outcome::NoPermit),
        (Hook::Confirm, Outcome::Leaving),
        (Hook::Confirm, Outcome::PermitGranted),
        (Hook::Ingress, Outcome::FastTunnel),
        (Hook::Ingress, Outcome::FastDirect),
        (Hook::Arrive, Outcome::Stamped),
        (Hook::Deliver, Outcome::PermitGranted),
    ];

    let (variable, default) = SEED;
    let seed = match env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}"))?,
        Err(_) => default,
    };
    on_node(|interfaces| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bench = Bench::load()?;
        for fastpath in [FASTPATH_STRICT, FASTPATH_TRUSTED] {
            let (cases, fixture) = cases::<F>(interfaces, fastpath);
            let mut counts = BTreeMap::<(Hook, Outcome), u32>::new();
            for number in 0..PACKETS {
                let mut case = cases.choose(&mut rng).context("there are cases")?.clone();
                damage::<F>(&mut rng, &mut case, &cases);
                let outcome = check(&mut bench, &fixture, &case).with_context(|| {
                    format!("{variable}={seed}, mode {fastpath}, packet {number}")
                })?;
                *counts.entry((case.hook, outcome)).or_default() += 1;
            }
            for pair in COMMON {
                let count = counts.get(&pair).copied().unwrap_or_default();
                ensure!(count >= 100, "{pair:?} was seen {count} times: {counts:?}");
            }
            let control = counts.get(&(Hook::Egress, Outcome::TcpControl));
            let trusted = fastpath == FASTPATH_TRUSTED;
            ensure!(
                control.is_none() == trusted,
                "mode {fastpath}: {control:?} TCP control packets were declined"
            );
        }
        Ok(())
    })
}

in_both_families! {
    a_packet_cut_at_any_length_is_left_to_the_kernel,
    whatever_comes_is_handled_as_the_rules_say_and_counted_once,
}
