//! Flows that netfilter translates, as of a service: what of them is remembered, and what is not.

use std::{mem::offset_of, time::Duration};

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};
use overlay_common::{
    addr::Address as _,
    flow::{
        Flow, FlowWords, REWRITE_DESTINATION, REWRITE_NONE, REWRITE_SOURCE,
        TRANSLATED_UDP_PERMIT_NS,
    },
    outcome::{Hook, Outcome},
    wire::UdpHeader,
};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench, Hex, Surroundings, Verdict,
        fixture::{Fixture, LEAVING, Remote, SOURCE_PORT, delivered},
        node::{Interfaces, UNDERLAY_MAC, on_node},
        oddities::Oddities,
        packet::{ETH_LEN, Local, Packet, TCP_ACK, TCP_FIN, TCP_SYN, Transport},
        passage::{as_delivered, inward, outward, sent_frame},
    },
};

use crate::tunnel::{announce_no_checksums, is_invalid};

/// A name, how a packet differs, and what comes of it.
type EditCase<F> = (&'static str, fn(&mut Packet<F>), Outcome);

const SERVICE_PORT: u16 = 80;
const PORT: u16 = 8080;
const IPV4_LEN: usize = 20;
const TRANSPORTS: [Transport; 2] = [tcp(TCP_ACK), udp(40_000)];

const fn tcp(flags: u8) -> Transport {
    Transport::Tcp {
        src: 40_000,
        dst: PORT,
        flags,
        options: 12,
    }
}

const fn udp(src: u16) -> Transport {
    Transport::Udp { src, dst: PORT }
}

/// A flow to a service whose backend is the pod on `remote`.
pub struct Translated<F: Oddities> {
    pub remote: Remote<F>,
    pub transport: Transport,
}

impl<F: Oddities> Translated<F> {
    /// What the pod sends.
    pub fn asked(&self) -> Packet<F> {
        self.remote.from_pod(self.transport).with(|packet| {
            packet.dst = F::ELSEWHERE.into();
            packet.transport = self.transport.with_ports(|(src, _)| (src, SERVICE_PORT));
        })
    }

    /// What netfilter makes of it.
    pub fn sent(&self) -> Packet<F> {
        self.remote.from_pod(self.transport)
    }

    /// What the backend answers.
    pub fn answer(&self) -> Packet<F> {
        self.remote.to_pod(self.back())
    }

    pub fn back(&self) -> Transport {
        self.transport.with_ports(|(src, dst)| (dst, src))
    }

    /// What netfilter makes of that, on the last hop to the pod.
    pub fn received(&self) -> Packet<F> {
        as_delivered(&self.remote, self.back()).with(|packet| {
            packet.src = F::ELSEWHERE.into();
            packet.transport = self.answer_transport();
        })
    }

    fn answer_transport(&self) -> Transport {
        let answer = self.answer().transport;
        answer.with_ports(|(_, dst)| (SERVICE_PORT, dst))
    }

    /// Sends what the pod asks by the kernel, translated to `sent`; what came of it at the end.
    pub fn send(
        &self,
        bench: &mut Bench<F>,
        interfaces: &Interfaces,
        sent: &Packet<F>,
    ) -> Result<Outcome> {
        let out = outward(interfaces, &self.remote);
        let asked = self.asked().bytes();
        let entering = Surroundings {
            ifindex: interfaces.pod,
            ..Surroundings::default()
        };
        let hash = bench.left_by(Hook::Egress, &asked, &entering)?.hash;
        let surroundings = Surroundings { hash, ..out };
        let frame = F::hop(&self.remote.addressed(sent).bytes());
        let first = bench.run(Hook::Confirm, &frame, &surroundings)?;
        let outcome = first.outcome(Hook::Confirm, frame.len())?;
        if outcome != Outcome::Leaving {
            return Ok(outcome);
        }
        let left = Surroundings {
            ifindex: interfaces.underlay,
            tc_index: LEAVING,
            hash,
            ..out
        };
        let frame = sent_frame(&self.remote, sent);
        let run = bench.run(Hook::Confirm, &frame, &left)?;
        run.outcome(Hook::Confirm, frame.len())
    }

    /// Takes in what the backend answers by the kernel, translated back to `received`.
    pub fn receive(
        &self,
        bench: &mut Bench<F>,
        interfaces: &Interfaces,
        received: &Packet<F>,
    ) -> Result<Outcome> {
        let in_by = inward(interfaces, &self.remote);
        let hook = if self.remote == F::DIRECT {
            Hook::Ingress
        } else {
            Hook::Arrive
        };
        let arriving = Surroundings {
            ifindex: in_by.ingress_ifindex,
            ..in_by
        };
        let answer = self.answer().bytes();
        let hash = bench.left_by(hook, &answer, &arriving)?.hash;
        let frame = F::hop(&received.bytes());
        let run = bench.run(Hook::Deliver, &frame, &Surroundings { hash, ..in_by })?;
        run.outcome(Hook::Deliver, frame.len())
    }
}

pub fn flows<F: Oddities>() -> impl Iterator<Item = Translated<F>> {
    [F::TUNNELLED, F::DIRECT]
        .into_iter()
        .flat_map(|remote| TRANSPORTS.map(|transport| Translated { remote, transport }))
}

fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?.into())
}

fn rewritten<F: Oddities>(address: F::Address) -> [u8; 16] {
    let address: F::Be = address.into();
    bytemuck::cast(address.wide())
}

fn both_directions_earn_permits_that_remember_the_translation<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for flow in flows::<F>() {
            let mut bench = Bench::<F>::load()?;
            let fixture = Fixture::new(interfaces);
            bench.set(&fixture)?;
            let started = now()?;
            let outcome = flow.send(&mut bench, &interfaces, &flow.sent())?;
            ensure!(outcome == Outcome::PermitGranted, "{outcome:?}");
            let key = flow.asked().flow(Local::Source);
            let entry = bench.entry(key)?;
            let is_udp = matches!(flow.transport, Transport::Udp { .. });
            let permit = if is_udp {
                TRANSLATED_UDP_PERMIT_NS
            } else {
                fixture.config.tcp_permit_ns
            };
            let granted = Duration::from_nanos(entry.egress_until - permit);
            ensure!(
                (started..=now()?).contains(&granted),
                "{granted:?} is not since {started:?}"
            );
            let want = Flow {
                id: FlowWords::from(key).id(),
                egress_until: entry.egress_until,
                rewrite: REWRITE_DESTINATION,
                rewrite_address: rewritten::<F>(flow.sent().dst),
                rewrite_port: PORT.to_be_bytes(),
                ..entry
            };
            ensure!(
                entry == want && entry.node == flow.remote.node_index() && entry.ingress_until == 0,
                "{entry:?} instead of {want:?}"
            );
            ensure!(bench.flow(flow.sent().flow(Local::Source))?.is_none());

            let outcome = flow.receive(&mut bench, &interfaces, &flow.received())?;
            ensure!(outcome == Outcome::PermitGranted, "{outcome:?}");
            let entry = bench.entry(flow.answer().flow(Local::Destination))?;
            let want = Flow {
                rewrite: REWRITE_SOURCE,
                rewrite_address: rewritten::<F>(flow.asked().dst),
                rewrite_port: SERVICE_PORT.to_be_bytes(),
                ..entry
            };
            ensure!(
                entry == want && entry.node == flow.remote.node_index() && entry.egress_until == 0,
                "{entry:?} instead of {want:?}"
            );
        }
        Ok(())
    })
}

/// Flows of a backend with a permit for each direction.
fn granted<F: Oddities>(interfaces: Interfaces, flow: &Translated<F>) -> Result<Bench<F>> {
    let mut bench = Bench::<F>::load()?;
    let mut fixture = Fixture::new(interfaces);
    let out = fixture.grant(flow.asked().flow(Local::Source), &flow.remote);
    out.ingress_until = 0;
    out.rewrite = REWRITE_DESTINATION;
    out.rewrite_address = rewritten::<F>(flow.sent().dst);
    out.rewrite_port = PORT.to_be_bytes();
    let back = fixture.grant(flow.answer().flow(Local::Destination), &flow.remote);
    back.egress_until = 0;
    back.rewrite = REWRITE_SOURCE;
    back.rewrite_address = rewritten::<F>(flow.asked().dst);
    back.rewrite_port = SERVICE_PORT.to_be_bytes();
    bench.set(&fixture)?;
    Ok(bench)
}

/// The frames of a packet on its way through the node.
struct Frames {
    hook: Hook,
    /// As it comes, and as it goes.
    before: Vec<u8>,
    after: Vec<u8>,
}

impl<F: Oddities> Translated<F> {
    /// A packet in each direction with this payload, which netfilter would have translated.
    fn both_ways(&self, payload: &[u8], has_checksum: bool) -> [Frames; 2] {
        let bytes = |packet: Packet<F>| {
            let mut bytes = packet.with(|p| p.payload = payload.to_vec()).bytes();
            if !has_checksum {
                let check = ETH_LEN + F::IP_LEN + offset_of!(UdpHeader, check);
                bytes[check..check + 2].fill(0);
            }
            bytes
        };
        let (sent, answer) = (bytes(self.sent()), bytes(self.answer()));
        let received = bytes(self.answer().with(|p| {
            p.src = F::ELSEWHERE.into();
            p.transport = self.answer_transport();
        }));
        let is_direct = self.remote == F::DIRECT;
        [
            Frames {
                hook: Hook::Egress,
                before: bytes(self.asked()),
                after: if is_direct {
                    self.remote.routed(&sent)
                } else {
                    self.remote.encapsulated(&sent, SOURCE_PORT)
                },
            },
            Frames {
                hook: Hook::Ingress,
                before: if is_direct {
                    answer
                } else {
                    self.remote.outer().around(&answer)
                },
                after: delivered::<F>(&received),
            },
        ]
    }
}

fn check_fast<F: Oddities>(
    bench: &mut Bench<F>,
    frames: &Frames,
    surroundings: &Surroundings,
) -> Result<()> {
    let Frames {
        hook,
        before,
        after,
    } = frames;
    let run = bench.run(*hook, before, surroundings)?;
    let outcome = run.outcome(*hook, before.len())?;
    ensure!(
        outcome == Outcome::FastTranslated
            && run.verdict == Verdict::Redirect
            && run.frame == *after,
        "{outcome:?}\n{}\ninstead of\n{}",
        Hex(&run.frame),
        Hex(after)
    );
    Ok(())
}

/// Payloads of even and odd lengths, with all the carries of one's-complement arithmetic, and whether there is
/// a checksum over them: UDP may go without.
fn payloads(transport: Transport) -> impl Iterator<Item = (Vec<u8>, bool)> {
    let is_udp = matches!(transport, Transport::Udp { .. });
    (0..600_u16).map(move |number| {
        let word = number.wrapping_mul(0x6d35).to_be_bytes();
        let payload = [word, [1, 2], [3, 4]].concat();
        let len = 2 + usize::from(number % 5);
        (payload[..len].to_vec(), !is_udp || number % 7 != 0)
    })
}

fn on_wire(interfaces: &Interfaces) -> Surroundings {
    Surroundings {
        ifindex: interfaces.underlay,
        ..Surroundings::default()
    }
}

/// Fast packets are byte for byte what netfilter makes of them, checksums included.
fn fast_packets_are_translated_as_by_netfilter<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for flow in flows::<F>() {
            let mut bench = granted(interfaces, &flow)?;
            for (payload, has_checksum) in payloads(flow.transport) {
                let [out, back] = flow.both_ways(&payload, has_checksum);
                check_fast(&mut bench, &out, &Surroundings::default())?;
                check_fast(&mut bench, &back, &on_wire(&interfaces))?;
            }
        }
        Ok(())
    })
}

/// What a card has summed is right for the translated packet, too. Of packets that leave nobody asks it again, so the
/// tunnel's headers and the hop limit of IPv6 are not in it. For UDP without a checksum nobody asks, either, and
/// netfilter leaves it stale, too.
fn the_checksum_that_a_device_computed_is_right_for_translated_packets<F: Oddities>() -> Result<()>
{
    on_node(|interfaces| {
        for flow in flows::<F>() {
            let mut bench = granted(interfaces, &flow)?;
            let all = payloads(flow.transport);
            for (payload, _) in all.filter(|(_, has_checksum)| *has_checksum) {
                let [out, back] = flow.both_ways(&payload, true);
                let summed = |surroundings| Surroundings {
                    checksum: true,
                    ..surroundings
                };
                match check_fast(&mut bench, &back, &summed(on_wire(&interfaces))) {
                    Err(error) if is_invalid(&error) => {
                        announce_no_checksums();
                        return Ok(());
                    }
                    other => other?,
                }
                if flow.remote == F::DIRECT && F::IP_LEN == IPV4_LEN {
                    check_fast(&mut bench, &out, &summed(Surroundings::default()))?;
                }
            }
        }
        Ok(())
    })
}

/// What leaves with another local end, protocol or header, or by another stamp, is not remembered.
fn what_is_changed_otherwise_earns_nothing<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for flow in flows::<F>() {
            let changes: [EditCase<F>; 5] = [
                (
                    "masqueraded as another pod",
                    |p| p.src = F::OTHER_POD.into(),
                    Outcome::Translated,
                ),
                (
                    "from another port",
                    |p| p.transport = p.transport.with_ports(|(_, dst)| (40_001, dst)),
                    Outcome::Translated,
                ),
                (
                    "with another DSCP",
                    |p| p.tos = 46 << 2,
                    Outcome::Translated,
                ),
                ("with another TTL", |p| p.ttl = 33, Outcome::Translated),
                (
                    "to no pod",
                    |p| p.dst = F::INTERNET.into(),
                    Outcome::NotOverlay,
                ),
            ];
            for (name, change, want) in changes {
                let mut bench = Bench::<F>::load()?;
                bench.set(&Fixture::new(interfaces))?;
                let outcome = flow.send(&mut bench, &interfaces, &flow.sent().with(change))?;
                ensure!(outcome == want, "{name}: {outcome:?}");
                ensure!(bench.flow(flow.asked().flow(Local::Source))?.is_none());
            }
            // Of another packet that entered meanwhile nothing is taken.
            let mut bench = Bench::<F>::load()?;
            let fixture = Fixture::new(interfaces);
            bench.set(&fixture)?;
            let hash = fixture.stamp(flow.asked().flow(Local::Source));
            let surroundings = Surroundings {
                hash,
                ..outward(&interfaces, &flow.remote)
            };
            let frame = F::hop(&flow.remote.addressed(&flow.sent()).bytes());
            let run = bench.run(Hook::Confirm, &frame, &surroundings)?;
            let outcome = run.outcome(Hook::Confirm, frame.len())?;
            ensure!(
                outcome == Outcome::Translated,
                "without a note: {outcome:?}"
            );
        }
        Ok(())
    })
}

fn a_handshake_and_an_end_forget_the_flow_by_both_of_its_names<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for (flags, want) in [
            (TCP_SYN, Outcome::Handshake),
            (TCP_FIN | TCP_ACK, Outcome::FlowClosed),
        ] {
            let flow = Translated::<F> {
                remote: F::TUNNELLED,
                transport: tcp(flags),
            };
            let names = [flow.asked(), flow.sent()].map(|packet| packet.flow(Local::Source));
            let mut bench = Bench::<F>::load()?;
            let mut fixture = Fixture::new(interfaces);
            for name in names {
                fixture.grant(name, &flow.remote);
            }
            bench.set(&fixture)?;
            let outcome = flow.send(&mut bench, &interfaces, &flow.sent())?;
            ensure!(outcome == want, "{outcome:?}");
            for name in names {
                ensure!(bench.flow(name)?.is_none(), "{name:?} is still there");
            }
        }
        Ok(())
    })
}

/// A direct flow that has the name of a service's answers takes their entry over whole.
fn a_direct_flow_does_not_keep_what_was_rewritten_before_it<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        // By the tunnel: what arrives directly would be fast by now.
        for flow in flows::<F>().filter(|flow| flow.remote == F::TUNNELLED) {
            let mut bench = Bench::<F>::load()?;
            bench.set(&Fixture::new(interfaces))?;
            flow.receive(&mut bench, &interfaces, &flow.received())?;
            let direct = as_delivered(&flow.remote, flow.back());
            let outcome = flow.receive(&mut bench, &interfaces, &direct)?;
            ensure!(outcome == Outcome::PermitGranted, "{outcome:?}");
            let entry = bench.entry(flow.answer().flow(Local::Destination))?;
            ensure!(
                entry.rewrite == REWRITE_NONE && entry.rewrite_address == [0; 16],
                "{entry:?}"
            );
        }
        Ok(())
    })
}

/// Whoever gets hold of a translated flow's name is not translated by the programs: an answer is taken from the
/// backend's own node and by the way it came before, what a pod asks from behind its own gateway.
fn what_is_forged_is_not_translated<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let flow = Translated::<F> {
            remote: F::TUNNELLED,
            transport: TRANSPORTS[0],
        };
        let mut bench = granted(interfaces, &flow)?;
        let answer = flow.answer().bytes();
        let direct = flow.answer().macs(UNDERLAY_MAC, flow.remote.neighbour);
        let mut outer = flow.remote.outer();
        outer.src = F::ROUTED.vtep.into();
        let mut elsewhere = flow.asked().bytes();
        elsewhere[5] ^= 1;
        let mut from_a_group = flow.asked().bytes();
        from_a_group[6] |= 1;
        for (hook, frame, surroundings, want) in [
            (
                Hook::Ingress,
                outer.around(&answer),
                on_wire(&interfaces),
                Outcome::WrongPeer,
            ),
            (
                Hook::Ingress,
                direct.bytes(),
                on_wire(&interfaces),
                Outcome::OtherMode,
            ),
            (
                Hook::Egress,
                elsewhere,
                Surroundings::default(),
                Outcome::NotGateway,
            ),
            (
                Hook::Egress,
                from_a_group,
                Surroundings::default(),
                Outcome::NotGateway,
            ),
        ] {
            let run = bench.run(hook, &frame, &surroundings)?;
            let outcome = run.outcome(hook, frame.len())?;
            ensure!(
                outcome == want && run.verdict == Verdict::Pass && run.frame == frame,
                "{outcome:?} instead of {want:?}"
            );
        }
        Ok(())
    })
}

in_both_families! {
    both_directions_earn_permits_that_remember_the_translation,
    fast_packets_are_translated_as_by_netfilter,
    the_checksum_that_a_device_computed_is_right_for_translated_packets,
    what_is_changed_otherwise_earns_nothing,
    a_handshake_and_an_end_forget_the_flow_by_both_of_its_names,
    a_direct_flow_does_not_keep_what_was_rewritten_before_it,
    what_is_forged_is_not_translated,
}
