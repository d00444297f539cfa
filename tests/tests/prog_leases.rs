//! How flows earn their leases: what is stamped, what a lease remembers, and what ends it.
//!
//! Two programs run one after the other on the same packet, as they would with the kernel's
//! forwarding between them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use overlay_common::{
    addr::{Address as _, MacAddr},
    flow::{Flow, FlowKey, FlowWords},
    node::{MODE_DIRECT, MODE_NONE, MODE_TUNNEL, Nexthop},
    outcome::{Hook, Outcome},
    route::Route,
};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench, Surroundings, Verdict,
        fixture::{Cluster, Fixture, POD_MAC, Remote, SOURCE_PORT, delivered},
        node::{GATEWAY_MAC, Interfaces, POD_VETH_MTU, UNDERLAY_MAC, on_node},
        oddities::Oddities,
        packet::{Local, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Transport, with_macs},
    },
};

/// The interface of a program run that names none.
const LOOPBACK: u32 = 1;

/// A way to alter something.
type Change<'a, T> = &'a dyn Fn(&mut T);

const TRANSPORTS: [Transport; 4] = [
    tcp(TCP_ACK),
    Transport::Udp {
        src: 5_353,
        dst: 53,
    },
    Transport::EchoRequest { id: 77 },
    Transport::EchoReply { id: 78 },
];

const fn tcp(flags: u8) -> Transport {
    Transport::Tcp {
        src: 40_000,
        dst: 80,
        flags,
        options: 0,
    }
}

/// How a packet from a pod goes through the host.
fn outward<F: Cluster>(interfaces: &Interfaces, remote: &Remote<F>) -> Surroundings {
    Surroundings {
        ifindex: if remote.mode == MODE_DIRECT {
            interfaces.underlay
        } else {
            interfaces.tunnel
        },
        ingress_ifindex: interfaces.gateway,
        ..Surroundings::default()
    }
}

/// How a packet to a pod goes through the host.
fn inward<F: Cluster>(interfaces: &Interfaces, remote: &Remote<F>) -> Surroundings {
    Surroundings {
        ifindex: interfaces.pod,
        ingress_ifindex: if remote.mode == MODE_DIRECT {
            interfaces.underlay
        } else {
            interfaces.tunnel
        },
        ..Surroundings::default()
    }
}

/// A packet to the pod with the MAC addresses that the kernel gives it on its last hop. The stamp
/// does not depend on them.
fn as_delivered<F: Cluster>(remote: &Remote<F>, transport: Transport) -> Packet<F> {
    remote.to_pod(transport).macs(POD_MAC, GATEWAY_MAC)
}

/// The entry of `key`, or an error.
fn entry<F: Cluster>(bench: &mut Bench<F>, key: FlowKey<F>) -> Result<Flow> {
    bench
        .flow(key)?
        .with_context(|| format!("no entry for {key:?}"))
}

/// The only outcome of `hook` in a run of several programs.
fn outcomes(run: &overlay_tests::prog::Run) -> Vec<(Hook, Outcome)> {
    run.counted
        .iter()
        .map(|&(hook, outcome, _)| (hook, outcome))
        .collect()
}

/// The clock of the leases.
fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?.into())
}

fn what_egress_declines_is_stamped_if_it_is_for_a_remote_pod<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        fixture.grant(
            F::TUNNELLED.from_pod(TRANSPORTS[0]).flow(Local::Source),
            &F::TUNNELLED,
        );
        fixture.seen_at(LOOPBACK);
        bench.set(&fixture)?;
        let mut stamped: Vec<Packet<F>> = TRANSPORTS
            .into_iter()
            .map(|transport| F::DIRECT.from_pod(transport))
            .collect();
        // With a lease, but declined.
        stamped.push(F::TUNNELLED.from_pod(tcp(TCP_SYN)));
        stamped.push(F::TUNNELLED.from_pod(TRANSPORTS[0]).with(|p| p.ttl = 1));
        stamped.push(F::TUNNELLED.from_pod(TRANSPORTS[0]).sized(1451));
        for packet in stamped {
            let stale = Surroundings {
                hash: 0x5555_aaaa,
                ..Surroundings::default()
            };
            let hash = bench.hash_after(&[Hook::Egress], &packet.bytes(), &stale)?;
            let want = fixture.stamp(packet.flow(Local::Source));
            ensure!(hash == want, "{hash:#x} instead of {want:#x}: {packet:?}");
        }
        let to_internet = F::TUNNELLED
            .from_pod(TRANSPORTS[0])
            .with(|p| p.dst = F::INTERNET.into());
        let odd = F::without_flow(&F::TUNNELLED.from_pod(TRANSPORTS[0]));
        let odd = odd.into_iter().map(|(_, _, packet)| packet);
        for packet in odd.chain([to_internet]) {
            let hash =
                bench.hash_after(&[Hook::Egress], &packet.bytes(), &Surroundings::default())?;
            ensure!(hash == 0, "{hash:#x}: {packet:?}");
        }
        Ok(())
    })
}

fn what_comes_from_a_peer_by_the_kernel_is_stamped<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        bench.set(&fixture)?;
        let on_underlay = Surroundings {
            ifindex: interfaces.underlay,
            ..Surroundings::default()
        };
        for transport in TRANSPORTS {
            for (hook, packet) in [
                (Hook::Arrive, F::TUNNELLED.to_pod(transport)),
                (Hook::Ingress, F::DIRECT.to_pod(transport)),
            ] {
                let hash = bench.hash_after(&[hook], &packet.bytes(), &on_underlay)?;
                let want = fixture.stamp(packet.flow(Local::Destination));
                ensure!(hash == want, "{hash:#x} instead of {want:#x}: {packet:?}");
            }
        }
        Ok(())
    })
}

fn a_flow_that_leaves_untranslated_is_fast_from_the_next_packet_on<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        // What the programs have to find out.
        fixture.nexthops.clear();
        for remote in [F::TUNNELLED, F::DIRECT, F::ROUTED] {
            fixture.seen_at(outward(&interfaces, &remote).ifindex);
            for transport in TRANSPORTS {
                bench.set(&fixture)?;
                let packet = remote.from_pod(transport);
                let key = packet.flow(Local::Source);
                let started = now()?;
                let first = bench.chain(
                    &[Hook::Egress, Hook::Confirm],
                    &remote.leaving(&packet).bytes(),
                    &outward(&interfaces, &remote),
                )?;
                ensure!(
                    outcomes(&first)
                        == [
                            (Hook::Egress, Outcome::NoLease),
                            (Hook::Confirm, Outcome::LeaseGranted)
                        ],
                    "{first:?}"
                );
                let got = entry(&mut bench, key)?;
                let until = Duration::from_nanos(got.egress_until);
                let lease = Duration::from_nanos(fixture.config.lease_ns);
                ensure!(
                    (started..=now()?).contains(&(until.saturating_sub(lease))),
                    "granted at {started:?} until {until:?}"
                );
                let source_port = kernel_source_port(fixture.stamp(key), 32_768, 60_999);
                let want = Flow {
                    id: FlowWords::from(key).id(),
                    egress_until: got.egress_until,
                    generation: fixture.config.generation,
                    node: remote.index,
                    gateway_mac: GATEWAY_MAC,
                    source_port: source_port.to_be_bytes(),
                    egress_mode: remote.mode,
                    ingress_mode: MODE_NONE,
                    ..Flow::default()
                };
                ensure!(got == want, "{got:?} instead of {want:?}");

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

/// `udp_flow_src_port` of the kernel's `include/net/udp.h`.
fn kernel_source_port(hash: u32, min: u16, max: u16) -> u16 {
    let hash = hash ^ hash << 16;
    let port = (u64::from(hash) * u64::from(max - min)) >> 32;
    u16::try_from(port).expect("less than max - min") + min
}

fn a_lease_remembers_the_way_that_the_kernels_routes_say<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        fixture.nexthops.clear();
        // The routed peer has an MTU of 1400, less the tunnel's headers.
        for (remote, mtu) in [
            (F::TUNNELLED, F::POD_MTU),
            (F::DIRECT, 1500),
            (F::ROUTED, 1400 - F::OVERHEAD),
        ] {
            fixture.seen_at(outward(&interfaces, &remote).ifindex);
            bench.set(&fixture)?;
            let packet = remote.from_pod(TRANSPORTS[0]);
            bench.chain(
                &[Hook::Egress, Hook::Confirm],
                &remote.leaving(&packet).bytes(),
                &outward(&interfaces, &remote),
            )?;
            let want = Nexthop {
                vtep: F::be(remote.vtep).tag(),
                ifindex: interfaces.underlay,
                dst_mac: remote.neighbour,
                mtu,
                src_mac: UNDERLAY_MAC,
                mode: remote.mode,
                ..Nexthop::default()
            };
            let got = bench.nexthop(remote.index)?;
            ensure!(got == want, "{got:?} instead of {want:?}");
        }
        Ok(())
    })
}

fn a_route_that_takes_less_than_its_device_counts_for_tunnel_packets<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        for (remote, route_mtu, mtu) in [
            (F::TUNNELLED, 1380, 1380 - F::OVERHEAD),
            (F::TUNNELLED, 9000, F::POD_MTU),
            // That route has a locked MTU of its own, 1400.
            (F::ROUTED, 1300, 1300 - F::OVERHEAD),
            (F::ROUTED, 1450, 1400 - F::OVERHEAD),
            (F::DIRECT, 1380, 1500),
        ] {
            let mut fixture = Fixture::new(interfaces);
            fixture.nexthops.clear();
            fixture.seen_at(outward(&interfaces, &remote).ifindex);
            if let Some(node) = fixture.nodes.get_mut(&remote.index) {
                node.route_mtu = route_mtu;
            }
            bench.set(&fixture)?;
            let packet = remote.from_pod(TRANSPORTS[0]);
            bench.chain(
                &[Hook::Egress, Hook::Confirm],
                &remote.leaving(&packet).bytes(),
                &outward(&interfaces, &remote),
            )?;
            let got = bench.nexthop(remote.index)?.mtu;
            ensure!(
                got == mtu,
                "{got} instead of {mtu} with a route of {route_mtu}"
            );
        }
        Ok(())
    })
}

fn a_next_hop_whose_neighbour_is_gone_is_not_used_any_more<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        let packet = F::SILENT.from_pod(TRANSPORTS[0]);
        fixture.grant(packet.flow(Local::Source), &F::SILENT);
        bench.set(&fixture)?;
        let out = outward(&interfaces, &F::SILENT);
        let before = bench.run(Hook::Egress, &packet.bytes(), &out)?;
        ensure!(before.verdict == Verdict::Redirect, "{before:?}");
        let stamped = Surroundings {
            hash: fixture.stamp(packet.flow(Local::Source)),
            ..out
        };
        bench.run(Hook::Confirm, &packet.bytes(), &stamped)?;
        let after = bench.run(Hook::Egress, &packet.bytes(), &out)?;
        ensure!(
            outcomes(&after) == [(Hook::Egress, Outcome::Nexthop)],
            "{after:?}"
        );
        Ok(())
    })
}

fn a_flow_that_is_delivered_untranslated_is_fast_from_the_next_packet_on<F: Oddities>() -> Result<()>
{
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        for remote in [F::TUNNELLED, F::DIRECT, F::ROUTED] {
            for transport in TRANSPORTS {
                bench.set(&fixture)?;
                let packet = as_delivered(&remote, transport);
                let key = packet.flow(Local::Destination);
                let started = now()?;
                let first = bench.chain(
                    &[Hook::Arrive, Hook::Deliver],
                    &packet.bytes(),
                    &inward(&interfaces, &remote),
                )?;
                ensure!(
                    outcomes(&first)
                        == [
                            (Hook::Arrive, Outcome::Stamped),
                            (Hook::Deliver, Outcome::LeaseGranted)
                        ],
                    "{first:?}"
                );
                let got = entry(&mut bench, key)?;
                let until = Duration::from_nanos(got.ingress_until);
                let lease = Duration::from_nanos(fixture.config.lease_ns);
                ensure!(
                    (started..=now()?).contains(&(until.saturating_sub(lease))),
                    "granted at {started:?} until {until:?}"
                );
                let want = Flow {
                    id: FlowWords::from(key).id(),
                    ingress_until: got.ingress_until,
                    generation: fixture.config.generation,
                    node: remote.index,
                    pod_mac: POD_MAC,
                    pod_mtu: POD_VETH_MTU,
                    deliver_mac: GATEWAY_MAC,
                    egress_mode: MODE_NONE,
                    ingress_mode: remote.mode,
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

fn the_two_directions_of_a_flow_share_an_entry_and_renew_their_leases_apart<F: Oddities>()
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
            let surroundings = Surroundings {
                hash: fixture.stamp(key),
                ..outward(&interfaces, &F::TUNNELLED)
            };
            bench.run(
                Hook::Confirm,
                &F::TUNNELLED.leaving(&out).bytes(),
                &surroundings,
            )
        };
        let grant_ingress = |bench: &mut Bench<F>| {
            let surroundings = Surroundings {
                hash: fixture.stamp(key),
                ..inward(&interfaces, &F::TUNNELLED)
            };
            bench.run(Hook::Deliver, &back.bytes(), &surroundings)
        };
        grant_egress(&mut bench)?;
        let egress = entry(&mut bench, key)?;
        grant_ingress(&mut bench)?;
        let both = entry(&mut bench, key)?;
        let want = Flow {
            ingress_until: both.ingress_until,
            pod_mac: POD_MAC,
            pod_mtu: POD_VETH_MTU,
            deliver_mac: GATEWAY_MAC,
            ingress_mode: MODE_TUNNEL,
            pod_ifindex: interfaces.pod,
            ..egress
        };
        ensure!(both == want, "{both:?} instead of {want:?}");
        ensure!(both.ingress_until != 0, "{both:?}");

        let granted = Duration::from_nanos(both.egress_until.max(both.ingress_until));
        wait_for_tick(granted.saturating_sub(Duration::from_nanos(fixture.config.lease_ns)))?;
        grant_egress(&mut bench)?;
        let renewed = entry(&mut bench, key)?;
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
        let renewed_too = entry(&mut bench, key)?;
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

/// Returns when the clock of the leases is past `time`.
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
            let route = Route {
                node: F::ROUTED.index,
                ..Route::default()
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
        let changes: [Change<'_, Fixture<F>>; 3] = [&moved, &flushed, &passed_on];
        for (change, node) in changes
            .into_iter()
            .zip([F::ROUTED, F::TUNNELLED, F::TUNNELLED])
        {
            let mut fixture = Fixture::new(interfaces);
            fixture.grant(key, &F::TUNNELLED);
            change(&mut fixture);
            bench.set(&fixture)?;
            let surroundings = Surroundings {
                hash: fixture.stamp(key),
                ..outward(&interfaces, &F::TUNNELLED)
            };
            bench.run(Hook::Confirm, &node.leaving(&packet).bytes(), &surroundings)?;
            let flow = entry(&mut bench, key)?;
            ensure!(
                flow.ingress_until == 0 && flow.pod_mac == MacAddr::ZERO && flow.pod_ifindex == 0,
                "{flow:?}"
            );
            ensure!(
                flow.node == node.index && flow.generation == fixture.config.generation,
                "{flow:?}"
            );
        }
        Ok(())
    })
}

fn opening_or_closing_a_connection_ends_its_leases<F: Oddities>() -> Result<()> {
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
                entry(&mut bench, key)?;
                let stamped = Surroundings {
                    hash: fixture.stamp(key),
                    ..surroundings
                };
                let run = bench.run(hook, &packet.bytes(), &stamped)?;
                ensure!(outcomes(&run) == [(hook, outcome)], "{run:?}");
                let left = bench.flow(key)?;
                ensure!(left.is_none(), "{outcome:?} at {hook:?} left {left:?}");
            }
        }
        Ok(())
    })
}

fn a_translated_packet_earns_nothing<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        let before = F::TUNNELLED.from_pod(TRANSPORTS[0]);
        let hash = fixture.stamp(before.flow(Local::Source));
        let translations: [Change<'_, Packet<F>>; 4] = [
            &|p| p.src = F::OTHER_POD.into(),
            &|p| p.dst = F::UNLEASED.into(),
            &|p| {
                p.transport = Transport::Tcp {
                    src: 40_001,
                    dst: 80,
                    flags: TCP_ACK,
                    options: 0,
                }
            },
            &|p| {
                p.transport = Transport::Tcp {
                    src: 40_000,
                    dst: 8080,
                    flags: TCP_ACK,
                    options: 0,
                }
            },
        ];
        for translate in translations {
            bench.set(&fixture)?;
            let after = before.clone().with(translate);
            let surroundings = Surroundings {
                hash,
                ..outward(&interfaces, &F::TUNNELLED)
            };
            let run = bench.run(Hook::Confirm, &after.bytes(), &surroundings)?;
            ensure!(
                outcomes(&run) == [(Hook::Confirm, Outcome::Translated)],
                "{run:?}"
            );
            for packet in [&before, &after] {
                let left = bench.flow(packet.flow(Local::Source))?;
                ensure!(left.is_none(), "{packet:?} got {left:?}");
            }
        }
        Ok(())
    })
}

fn a_lease_earned_with_one_hop_less_serves_the_next_packet<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        fixture.seen_at(LOOPBACK);
        bench.set(&fixture)?;
        // The kernel decrements the TTL and writes its own MAC addresses between the two hooks:
        // neither is part of the stamp.
        let packet = F::TUNNELLED.from_pod(TRANSPORTS[0]);
        let leaving = with_macs(&F::hop(&packet.bytes()), F::TUNNELLED.vtep_mac, POD_MAC);
        let hash = bench.hash_after(&[Hook::Egress], &packet.bytes(), &Surroundings::default())?;
        let stamped = Surroundings {
            hash,
            ..outward(&interfaces, &F::TUNNELLED)
        };
        let run = bench.run(Hook::Confirm, &leaving, &stamped)?;
        ensure!(
            outcomes(&run) == [(Hook::Confirm, Outcome::LeaseGranted)],
            "{run:?}"
        );
        let next = bench.run(Hook::Egress, &packet.bytes(), &Surroundings::default())?;
        ensure!(next.verdict == Verdict::Redirect, "{next:?}");
        Ok(())
    })
}

fn a_fast_packet_that_leaves_by_the_underlay_is_not_taken_for_the_kernels<F: Oddities>()
-> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        for (remote, fast) in [
            (F::TUNNELLED, Outcome::FastTunnel),
            (F::DIRECT, Outcome::FastDirect),
        ] {
            let packet = remote.from_pod(TRANSPORTS[0]);
            let key = packet.flow(Local::Source);
            let mut fixture = Fixture::new(interfaces);
            let granted = *fixture.grant(key, &remote);
            bench.set(&fixture)?;
            let surroundings = Surroundings {
                ifindex: interfaces.underlay,
                ..outward(&interfaces, &remote)
            };
            let run = bench.chain(
                &[Hook::Egress, Hook::Confirm],
                &packet.bytes(),
                &surroundings,
            )?;
            ensure!(
                outcomes(&run) == [(Hook::Egress, fast), (Hook::Confirm, Outcome::Forwarded)],
                "{run:?}"
            );
            ensure!(run.verdict == Verdict::Pass, "{run:?}");
            let left = entry(&mut bench, key)?;
            ensure!(left == granted, "{left:?} instead of {granted:?}");
        }
        Ok(())
    })
}

fn a_pod_that_moves_to_another_port_ends_the_ingress_leases_of_its_address_alone<F: Oddities>()
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
            Ok(outcomes(&bench.run(Hook::Ingress, frame, &underlay)?))
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

fn a_router_that_finds_packets_to_a_node_too_large_has_its_next_hop_resolved_again<F: Oddities>()
-> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        let from_router = |message: Vec<u8>| {
            Packet::<F>::new(F::STRANGER, F::VTEP, Transport::Icmp)
                .macs(UNDERLAY_MAC, F::ROUTED.neighbour)
                .with(|p| p.payload = message)
        };
        let tunnelled = |remote: Remote<F>| {
            remote.encapsulated(&remote.from_pod(TRANSPORTS[0]).bytes(), SOURCE_PORT)
        };
        let message = F::too_big(&tunnelled(F::ROUTED));
        let other_type = [&[1][..], &message[1..]].concat();
        let about_nobody = F::too_big(&F::TUNNELLED.from_pod(TRANSPORTS[0]).bytes());
        let cut = message[..8 + F::IP_LEN - 1].to_vec();
        for (name, message, invalidated) in [
            ("too big", message, true),
            ("another message", other_type, false),
            ("about a pod", about_nobody, false),
            ("cut short", cut, false),
        ] {
            bench.set(&fixture)?;
            let surroundings = Surroundings {
                ifindex: interfaces.underlay,
                ..Surroundings::default()
            };
            let frame = from_router(message).bytes();
            let run = bench.run(Hook::Ingress, &frame, &surroundings)?;
            ensure!(
                outcomes(&run) == [(Hook::Ingress, Outcome::NotOverlay)],
                "{name}: {run:?}"
            );
            ensure!(
                run.verdict == Verdict::Pass && run.frame == frame,
                "{name}: {run:?}"
            );
            for (&index, before) in &fixture.nexthops {
                let invalid = bench.nexthop(index)?.vtep != before.vtep;
                ensure!(
                    invalid == (invalidated && index == F::ROUTED.index),
                    "{name}: next hop {index}: {invalid}"
                );
            }
        }
        Ok(())
    })
}

in_both_families! {
    what_egress_declines_is_stamped_if_it_is_for_a_remote_pod,
    what_comes_from_a_peer_by_the_kernel_is_stamped,
    a_flow_that_leaves_untranslated_is_fast_from_the_next_packet_on,
    a_lease_remembers_the_way_that_the_kernels_routes_say,
    a_route_that_takes_less_than_its_device_counts_for_tunnel_packets,
    a_next_hop_whose_neighbour_is_gone_is_not_used_any_more,
    a_flow_that_is_delivered_untranslated_is_fast_from_the_next_packet_on,
    the_two_directions_of_a_flow_share_an_entry_and_renew_their_leases_apart,
    a_flow_that_changed_its_node_or_generation_starts_over_in_both_directions,
    opening_or_closing_a_connection_ends_its_leases,
    a_translated_packet_earns_nothing,
    a_lease_earned_with_one_hop_less_serves_the_next_packet,
    a_fast_packet_that_leaves_by_the_underlay_is_not_taken_for_the_kernels,
    a_pod_that_moves_to_another_port_ends_the_ingress_leases_of_its_address_alone,
    a_router_that_finds_packets_to_a_node_too_large_has_its_next_hop_resolved_again,
}
