//! How flows earn their permits, and what ends them.
//!
//! Two programs run one after the other on the same packet, with the hop of the kernel's forwarding
//! between them. What leaves by the tunnel meets a third one: another run, on the tunnel packet.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};
use overlay_common::{
    addr::{Address as _, MacAddr},
    flow::{Flow, FlowWords},
    node::{MODE_DIRECT, MODE_NONE, MODE_TUNNEL, Nexthop},
    outcome::{Hook, Outcome},
    route::RouteEntry,
    stamp::source_port,
};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench, Seen,
        Step::{Hop, Program},
        Surroundings, Verdict,
        fixture::{Cluster, Fixture, HEADER, LEAVING, PATH_CHANGES, POD_MAC, delivered},
        node::{GATEWAY_MAC, POD_VETH_MTU, UNDERLAY_MAC, on_node},
        oddities::Oddities,
        packet::{Local, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Transport, pattern, with_macs},
        passage::{
            as_delivered, at_underlay, earn, inward, kernel_source_port, outward, send, sent_frame,
        },
    },
};

use crate::packets::{Edit, LOOPBACK, TRANSPORTS, tcp};

/// Gives the protocols permits of different lengths, which are those of [`TRANSPORTS`].
fn set_permit_times<F: Cluster>(fixture: &mut Fixture<F>) -> [Duration; 5] {
    let config = &mut fixture.config;
    config.tcp_permit_ns = 15_000_000_000;
    config.udp_permit_ns = 9_000_000_000;
    config.icmp_permit_ns = 4_000_000_000;
    config.sctp_permit_ns = 6_000_000_000;
    [
        config.tcp_permit_ns,
        config.udp_permit_ns,
        config.sctp_permit_ns,
        config.icmp_permit_ns,
        config.icmp_permit_ns,
    ]
    .map(Duration::from_nanos)
}

/// The clock of the permits.
fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?.into())
}

fn a_flow_that_leaves_untranslated_is_fast_from_the_next_packet_on<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        let permit_times = set_permit_times(&mut fixture);
        for (remote, mtu) in [
            (F::TUNNELLED, F::POD_MTU),
            (F::DIRECT, 1500),
            // That peer's route has an MTU of 1400.
            (F::ROUTED, 1400 - F::OVERHEAD),
        ] {
            fixture.seen_at(outward(&interfaces, &remote).ifindex);
            for (transport, permit) in TRANSPORTS.into_iter().zip(permit_times) {
                bench.set(&fixture)?;
                let packet = remote.from_pod(transport);
                let key = packet.flow(Local::Source);
                let started = now()?;
                let none = Surroundings::default();
                earn(&mut bench, &interfaces, &remote, &packet, none)?;
                let got = bench.entry(key)?;
                let until = Duration::from_nanos(got.egress_until);
                ensure!(
                    (started..=now()?).contains(&(until.saturating_sub(permit))),
                    "granted at {started:?} until {until:?}"
                );
                let source_port = if remote.mode == MODE_DIRECT {
                    0
                } else {
                    kernel_source_port(fixture.stamp(key), 32_768, 60_999)
                };
                let want = Flow {
                    id: FlowWords::from(key).id(),
                    egress_until: got.egress_until,
                    generation: fixture.config.generation,
                    node: remote.node_index(),
                    gateway_mac: GATEWAY_MAC,
                    source_port: source_port.to_be_bytes(),
                    ingress_mode: MODE_NONE,
                    underlay_ifindex: interfaces.underlay,
                    path_changes: PATH_CHANGES,
                    next_hop_mac: remote.neighbour,
                    path_mtu: mtu,
                    underlay_mac: UNDERLAY_MAC,
                    egress_mode: remote.mode,
                    egress_ttl: HEADER.ttl,
                    vtep: F::be(remote.vtep).tag(),
                    ..Flow::default()
                };
                ensure!(got == want, "{got:?} instead of {want:?}");
                let want = Nexthop {
                    vtep: want.vtep,
                    ifindex: interfaces.underlay,
                    dst_mac: remote.neighbour,
                    mtu,
                    src_mac: UNDERLAY_MAC,
                    mode: remote.mode,
                    path_changes: PATH_CHANGES,
                    ..Nexthop::default()
                };
                let shown = bench.nexthop(remote.index)?;
                ensure!(shown == want, "{shown:?} instead of {want:?}");

                let next = bench.run(
                    Hook::Egress,
                    &packet.bytes(),
                    &outward(&interfaces, &remote),
                )?;
                let sent = if remote.mode == MODE_DIRECT {
                    remote.routed(&packet.bytes())
                } else {
                    remote.encapsulated(&packet.bytes(), source_port)
                };
                ensure!(next.verdict == Verdict::Redirect, "{next:?}");
                ensure!(next.frame == sent, "{next:?}");
            }
        }
        Ok(())
    })
}

fn a_protocol_without_a_permit_time_earns_nothing<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let off: [Edit<'_, Fixture<F>>; 4] = [
            &|fixture| fixture.config.tcp_permit_ns = 0,
            &|fixture| fixture.config.udp_permit_ns = 0,
            &|fixture| fixture.config.sctp_permit_ns = 0,
            &|fixture| fixture.config.icmp_permit_ns = 0,
        ];
        for (switched, switch_off) in off.into_iter().enumerate() {
            let mut fixture = Fixture::new(interfaces);
            switch_off(&mut fixture);
            for (transport, number) in TRANSPORTS.into_iter().zip([0, 1, 2, 3, 3]) {
                let want = if number == switched {
                    Outcome::NoPermit
                } else {
                    Outcome::PermitGranted
                };
                for remote in [F::TUNNELLED, F::DIRECT] {
                    bench.set(&fixture)?;
                    let packet = remote.from_pod(transport);
                    let none = Surroundings::default();
                    let passage = send(&mut bench, &interfaces, &remote, &packet, none)?;
                    let last = passage.sent.unwrap_or(passage.first);
                    let confirm = last.outcomes().last().copied();
                    ensure!(confirm == Some((Hook::Confirm, want)), "{last:?}");
                    let granted = bench.flow(packet.flow(Local::Source))?.is_some();
                    ensure!(granted == (number != switched), "{transport:?}: {granted}");

                    bench.set(&fixture)?;
                    let packet = as_delivered(&remote, transport);
                    let run = bench.chain(
                        &[Program(Hook::Arrive), Hop, Program(Hook::Deliver)],
                        &packet.bytes(),
                        &inward(&interfaces, &remote),
                    )?;
                    ensure!(
                        run.outcomes().last() == Some(&(Hook::Deliver, want)),
                        "{run:?}"
                    );
                    let granted = bench.flow(packet.flow(Local::Destination))?.is_some();
                    ensure!(granted == (number != switched), "{transport:?}: {granted}");
                }
            }
        }
        Ok(())
    })
}

/// Only an acknowledgement without data earns a permit as the first packet.
fn a_first_packet_earns_nothing_and_the_second_does<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        for transport in TRANSPORTS {
            for payload in [0, 33] {
                let packet = as_delivered(&F::TUNNELLED, transport).with(|p| {
                    p.payload = pattern(payload);
                });
                let mut outcomes = Vec::new();
                for seen in [Seen::Never, Seen::AsItIs] {
                    bench.set(&fixture)?;
                    let surroundings = Surroundings {
                        hash: fixture.stamp(packet.flow(Local::Destination)),
                        seen,
                        ..inward(&interfaces, &F::TUNNELLED)
                    };
                    let frame = F::hop(&packet.bytes());
                    let run = bench.run(Hook::Deliver, &frame, &surroundings)?;
                    outcomes.push(run.outcome(Hook::Deliver, frame.len())?);
                }
                let is_acknowledgement = matches!(transport, Transport::Tcp { .. }) && payload == 0;
                let first = if is_acknowledgement {
                    Outcome::PermitGranted
                } else {
                    Outcome::FirstPacket
                };
                ensure!(
                    outcomes == [first, Outcome::PermitGranted],
                    "{packet:?}: {outcomes:?}"
                );
            }
        }
        Ok(())
    })
}

fn a_flow_that_is_delivered_untranslated_is_fast_from_the_next_packet_on<F: Oddities>() -> Result<()>
{
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        let permit_times = set_permit_times(&mut fixture);
        for remote in [F::TUNNELLED, F::DIRECT, F::ROUTED] {
            for (transport, permit) in TRANSPORTS.into_iter().zip(permit_times) {
                bench.set(&fixture)?;
                let packet = as_delivered(&remote, transport);
                let key = packet.flow(Local::Destination);
                let started = now()?;
                let first = bench.chain(
                    &[Program(Hook::Arrive), Hop, Program(Hook::Deliver)],
                    &packet.bytes(),
                    &inward(&interfaces, &remote),
                )?;
                ensure!(
                    first.outcomes()
                        == [
                            (Hook::Arrive, Outcome::Stamped),
                            (Hook::Deliver, Outcome::PermitGranted)
                        ],
                    "{first:?}"
                );
                let got = bench.entry(key)?;
                let until = Duration::from_nanos(got.ingress_until);
                ensure!(
                    (started..=now()?).contains(&(until.saturating_sub(permit))),
                    "granted at {started:?} until {until:?}"
                );
                let want = Flow {
                    id: FlowWords::from(key).id(),
                    ingress_until: got.ingress_until,
                    generation: fixture.config.generation,
                    node: remote.node_index(),
                    pod_mac: POD_MAC,
                    pod_mtu: POD_VETH_MTU,
                    deliver_mac: GATEWAY_MAC,
                    egress_mode: MODE_NONE,
                    ingress_mode: remote.mode,
                    ingress_ttl: HEADER.ttl,
                    pod_ifindex: interfaces.pod,
                    ..Flow::default()
                };
                ensure!(got == want, "{got:?} instead of {want:?}");

                let inner = remote.to_pod(transport).bytes();
                let frame = if remote.mode == MODE_DIRECT {
                    inner.clone()
                } else {
                    remote.outer().around(&inner)
                };
                let on_underlay = Surroundings {
                    ifindex: interfaces.underlay,
                    ..Surroundings::default()
                };
                let next = bench.run(Hook::Ingress, &frame, &on_underlay)?;
                ensure!(next.verdict == Verdict::Redirect, "{next:?}");
                ensure!(next.frame == delivered::<F>(&inner), "{next:?}");
            }
        }
        Ok(())
    })
}

fn the_two_directions_of_a_flow_share_an_entry_and_renew_their_permits_apart<F: Oddities>()
-> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        bench.set(&fixture)?;
        let out = F::TUNNELLED.from_pod(TRANSPORTS[0]);
        let back = as_delivered(
            &F::TUNNELLED,
            Transport::Tcp {
                src: 80,
                dst: 40_000,
                flags: TCP_ACK,
                options: 0,
            },
        );
        let key = out.flow(Local::Source);
        ensure!(key == back.flow(Local::Destination), "one flow");
        let grant_egress = |bench: &mut Bench<F>| {
            let frame = sent_frame(&F::TUNNELLED, &out);
            bench.run(Hook::Confirm, &frame, &at_underlay(&fixture, key))
        };
        let grant_ingress = |bench: &mut Bench<F>| {
            let surroundings = Surroundings {
                hash: fixture.stamp(key),
                ..inward(&interfaces, &F::TUNNELLED)
            };
            let frame = F::hop(&back.bytes());
            bench.run(Hook::Deliver, &frame, &surroundings)
        };
        grant_egress(&mut bench)?;
        let egress = bench.entry(key)?;
        grant_ingress(&mut bench)?;
        let both = bench.entry(key)?;
        let want = Flow {
            ingress_until: both.ingress_until,
            pod_mac: POD_MAC,
            pod_mtu: POD_VETH_MTU,
            deliver_mac: GATEWAY_MAC,
            ingress_mode: MODE_TUNNEL,
            ingress_ttl: HEADER.ttl,
            pod_ifindex: interfaces.pod,
            ..egress
        };
        ensure!(both == want, "{both:?} instead of {want:?}");
        ensure!(both.ingress_until != 0, "{both:?}");

        let granted = Duration::from_nanos(both.egress_until.max(both.ingress_until));
        wait_for_tick(granted.saturating_sub(Duration::from_nanos(fixture.config.tcp_permit_ns)))?;
        grant_egress(&mut bench)?;
        let renewed = bench.entry(key)?;
        ensure!(
            renewed.egress_until > both.egress_until,
            "{renewed:?} after {both:?}"
        );
        let want = Flow {
            egress_until: renewed.egress_until,
            ..both
        };
        ensure!(renewed == want, "{renewed:?} instead of {want:?}");
        grant_ingress(&mut bench)?;
        let renewed_too = bench.entry(key)?;
        ensure!(
            renewed_too.ingress_until > both.ingress_until,
            "{renewed_too:?} after {both:?}"
        );
        let want = Flow {
            ingress_until: renewed_too.ingress_until,
            ..renewed
        };
        ensure!(renewed_too == want, "{renewed_too:?} instead of {want:?}");
        Ok(())
    })
}

/// Returns when the clock of the permits is past `time`.
fn wait_for_tick(time: Duration) -> Result<()> {
    let deadline = now()? + Duration::from_secs(5);
    while now()? <= time {
        ensure!(now()? < deadline, "the coarse clock does not tick");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn a_flow_that_changed_its_node_or_generation_starts_over_in_both_directions<F: Oddities>()
-> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let packet = F::TUNNELLED.from_pod(TRANSPORTS[0]);
        let key = packet.flow(Local::Source);
        let moved = |fixture: &mut Fixture<F>| {
            let route = RouteEntry {
                node: F::ROUTED.index,
                ..RouteEntry::default()
            };
            fixture
                .routes
                .insert((F::TUNNELLED.subnet, F::SUBNET_LEN), route);
        };
        let flushed = |fixture: &mut Fixture<F>| fixture.config.generation += 1;
        let passed_on = |fixture: &mut Fixture<F>| {
            if let Some(flow) = fixture.flows.get_mut(&key) {
                flow.id ^= 1;
            }
        };
        let changes: [Edit<'_, Fixture<F>>; 3] = [&moved, &flushed, &passed_on];
        for (change, node) in changes
            .into_iter()
            .zip([F::ROUTED, F::TUNNELLED, F::TUNNELLED])
        {
            let mut fixture = Fixture::new(interfaces);
            fixture.grant(key, &F::TUNNELLED);
            change(&mut fixture);
            bench.set(&fixture)?;
            let run = bench.run(
                Hook::Confirm,
                &sent_frame(&node, &packet),
                &at_underlay(&fixture, key),
            )?;
            ensure!(
                run.outcomes() == [(Hook::Confirm, Outcome::PermitGranted)],
                "{run:?}"
            );
            let flow = bench.entry(key)?;
            ensure!(
                flow.ingress_until == 0 && flow.pod_mac == MacAddr::ZERO && flow.pod_ifindex == 0,
                "{flow:?}"
            );
            ensure!(
                flow.node == node.node_index() && flow.generation == fixture.config.generation,
                "{flow:?}"
            );
        }
        Ok(())
    })
}

fn opening_or_closing_a_connection_ends_its_permits<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        for (flags, outcome) in [
            (TCP_SYN, Outcome::Handshake),
            (TCP_SYN | TCP_ACK, Outcome::Handshake),
            (TCP_FIN | TCP_ACK, Outcome::FlowClosed),
            (TCP_RST, Outcome::FlowClosed),
        ] {
            for (hook, packet, local, surroundings) in [
                (
                    Hook::Confirm,
                    F::TUNNELLED.from_pod(tcp(flags)),
                    Local::Source,
                    outward(&interfaces, &F::TUNNELLED),
                ),
                (
                    Hook::Deliver,
                    as_delivered(&F::TUNNELLED, tcp(flags)),
                    Local::Destination,
                    inward(&interfaces, &F::TUNNELLED),
                ),
            ] {
                let key = packet.flow(local);
                let mut fixture = Fixture::new(interfaces);
                fixture.grant(key, &F::TUNNELLED);
                bench.set(&fixture)?;
                // A packet that was translated says nothing about this flow.
                bench.run(hook, &packet.bytes(), &surroundings)?;
                bench.entry(key)?;
                let stamped = Surroundings {
                    hash: fixture.stamp(key),
                    ..surroundings
                };
                let run = bench.run(hook, &F::hop(&packet.bytes()), &stamped)?;
                ensure!(run.outcomes() == [(hook, outcome)], "{run:?}");
                let left = bench.flow(key)?;
                ensure!(left.is_none(), "{outcome:?} at {hook:?} left {left:?}");
            }
        }
        Ok(())
    })
}

fn a_permit_earned_with_one_hop_less_serves_the_next_packet<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        fixture.seen_at(LOOPBACK);
        bench.set(&fixture)?;
        // The kernel decrements the TTL and writes its own MAC addresses between the two hooks: the
        // stamp is of the former, and does not depend on the latter.
        let packet = F::TUNNELLED.from_pod(TRANSPORTS[0]);
        let inner = with_macs(&F::hop(&packet.bytes()), F::TUNNELLED.vtep_mac, POD_MAC);
        let none = Surroundings::default();
        let hash = bench.left_by(Hook::Egress, &packet.bytes(), &none)?.hash;
        let stamped = Surroundings {
            hash,
            ..outward(&interfaces, &F::TUNNELLED)
        };
        let run = bench.run(Hook::Confirm, &inner, &stamped)?;
        ensure!(
            run.outcomes() == [(Hook::Confirm, Outcome::Leaving)],
            "{run:?}"
        );
        let port = source_port(hash, 32_768, 60_999 - 32_768);
        let sent = Surroundings {
            ifindex: interfaces.underlay,
            tc_index: LEAVING,
            ..stamped
        };
        let run = bench.run(
            Hook::Confirm,
            &F::TUNNELLED.sent(port).around(&inner),
            &sent,
        )?;
        ensure!(
            run.outcomes() == [(Hook::Confirm, Outcome::PermitGranted)],
            "{run:?}"
        );
        let next = bench.run(Hook::Egress, &packet.bytes(), &Surroundings::default())?;
        ensure!(next.verdict == Verdict::Redirect, "{next:?}");
        Ok(())
    })
}

fn a_pod_that_moves_to_another_port_ends_the_ingress_permits_of_its_address_alone<F: Oddities>()
-> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        let arriving = |transport| {
            let packet = F::TUNNELLED.to_pod(transport);
            let frame = F::TUNNELLED.outer().around(&packet.bytes());
            (packet.flow(Local::Destination), frame)
        };
        let (key, frame) = arriving(TRANSPORTS[0]);
        let (other_key, other_frame) = arriving(TRANSPORTS[1]);
        fixture.grant(key, &F::TUNNELLED);
        // Of another pod, as its MAC tells.
        fixture.grant(other_key, &F::TUNNELLED).pod_mac.octets[5] ^= 0xff;
        fixture.seen_at(interfaces.pod);
        bench.set(&fixture)?;
        let underlay = Surroundings {
            ifindex: interfaces.underlay,
            ingress_ifindex: interfaces.underlay,
            ..Surroundings::default()
        };
        let come = |bench: &mut Bench<F>, frame: &[u8]| -> Result<Vec<(Hook, Outcome)>> {
            Ok(bench.run(Hook::Ingress, frame, &underlay)?.outcomes())
        };
        let fast = [(Hook::Ingress, Outcome::FastTunnel)];
        let before = come(&mut bench, &frame)?;
        ensure!(before == fast, "{before:?}");
        // Not fast, so it is looked at where it comes from: the loopback device.
        let leaving = F::TUNNELLED.from_pod(TRANSPORTS[2]);
        bench.run(Hook::Egress, &leaving.bytes(), &Surroundings::default())?;
        let come_after = [come(&mut bench, &frame)?, come(&mut bench, &other_frame)?];
        ensure!(
            come_after == [vec![(Hook::Ingress, Outcome::PodMoved)], fast.to_vec()],
            "{come_after:?}"
        );
        Ok(())
    })
}

in_both_families! {
    a_flow_that_leaves_untranslated_is_fast_from_the_next_packet_on,
    a_protocol_without_a_permit_time_earns_nothing,
    a_first_packet_earns_nothing_and_the_second_does,
    a_flow_that_is_delivered_untranslated_is_fast_from_the_next_packet_on,
    the_two_directions_of_a_flow_share_an_entry_and_renew_their_permits_apart,
    a_flow_that_changed_its_node_or_generation_starts_over_in_both_directions,
    opening_or_closing_a_connection_ends_its_permits,
    a_permit_earned_with_one_hop_less_serves_the_next_packet,
    a_pod_that_moves_to_another_port_ends_the_ingress_permits_of_its_address_alone,
}
