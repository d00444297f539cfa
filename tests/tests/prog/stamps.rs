//! What is stamped, and that a packet which does not leave as it was stamped earns nothing.

use anyhow::{Result, ensure};
use overlay_common::{
    outcome::{Hook, Outcome},
    stamp::Header,
};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench, Surroundings,
        fixture::{Cluster, Fixture, Remote},
        node::{UNDERLAY_MAC, on_node},
        oddities::Oddities,
        packet::{Local, Packet, TCP_ACK, TCP_SYN, Transport},
        passage::{as_delivered, inward, outward},
    },
};

use crate::packets::{Edit, LOOPBACK, TRANSPORTS, tcp};

fn what_egress_declines_is_stamped_if_it_is_for_a_remote_pod_or_a_service<F: Oddities>()
-> Result<()> {
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
        // With a permit, but declined.
        stamped.push(F::TUNNELLED.from_pod(tcp(TCP_SYN)));
        stamped.push(F::TUNNELLED.from_pod(TRANSPORTS[0]).with(|p| p.ttl = 1));
        stamped.push(F::TUNNELLED.from_pod(TRANSPORTS[0]).sized(1451));
        for (tos, ttl) in [(0, 255), (0xb8, 64), (0xff, 0), (1, 2)] {
            let packet = F::DIRECT.from_pod(TRANSPORTS[1]);
            stamped.push(packet.with(|p| (p.tos, p.ttl) = (tos, ttl)));
        }
        // What netfilter may translate.
        for transport in [TRANSPORTS[0], TRANSPORTS[1]] {
            let packet = F::TUNNELLED.from_pod(transport);
            stamped.push(packet.with(|p| p.dst = F::INTERNET.into()));
        }
        for packet in stamped {
            let stale = Surroundings {
                hash: 0x5555_aaaa,
                ..Surroundings::default()
            };
            let hash = bench.left_by(Hook::Egress, &packet.bytes(), &stale)?.hash;
            let header = Header::before_hop(packet.tos, packet.ttl);
            let want = fixture.stamp_of(packet.flow(Local::Source), header);
            ensure!(hash == want, "{hash:#x} instead of {want:#x}: {packet:?}");
        }
        let elsewhere = [
            (TRANSPORTS[2], F::POD, F::INTERNET),
            (TRANSPORTS[0], F::POD, F::OTHER_POD),
            (TRANSPORTS[0], F::STRANGER, F::INTERNET),
        ];
        let elsewhere = elsewhere.map(|(transport, src, dst)| {
            let packet = F::TUNNELLED.from_pod(transport);
            packet.with(|p| (p.src, p.dst) = (src.into(), dst.into()))
        });
        let odd = F::without_flow(&F::TUNNELLED.from_pod(TRANSPORTS[0]));
        let odd = odd.into_iter().map(|(_, _, packet)| packet);
        for packet in odd.chain(elsewhere) {
            let none = Surroundings::default();
            let hash = bench.left_by(Hook::Egress, &packet.bytes(), &none)?.hash;
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
        let headers = [(0, 64), (0xb8, 64), (0, 255), (3, 1)];
        for (transport, header) in TRANSPORTS.into_iter().zip(headers) {
            for (hook, packet) in [
                (Hook::Arrive, F::TUNNELLED.to_pod(transport)),
                (Hook::Ingress, F::DIRECT.to_pod(transport)),
            ] {
                let packet = packet.with(|p| (p.tos, p.ttl) = header);
                let hash = bench.left_by(hook, &packet.bytes(), &on_underlay)?.hash;
                let header = Header::before_hop(packet.tos, packet.ttl);
                let want = fixture.stamp_of(packet.flow(Local::Destination), header);
                ensure!(hash == want, "{hash:#x} instead of {want:#x}: {packet:?}");
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
        let translations: [Edit<'_, Packet<F>>; 4] = [
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
            let after = F::TUNNELLED.leaving(&before).with(translate);
            let surroundings = Surroundings {
                hash,
                ..outward(&interfaces, &F::TUNNELLED)
            };
            let run = bench.run(Hook::Confirm, &after.bytes(), &surroundings)?;
            ensure!(
                run.outcomes() == [(Hook::Confirm, Outcome::Translated)],
                "{run:?}"
            );
            for packet in [&before, &after] {
                let left = bench.flow(packet.flow(Local::Source))?;
                ensure!(left.is_none(), "{packet:?} got {left:?}");
            }
            let noted = bench.leaving()?;
            ensure!(noted.flow == 0, "{noted:?}");
        }
        Ok(())
    })
}

/// A program that stamps, the one that compares, and a packet between them.
struct Crossing<F: Cluster> {
    hooks: [Hook; 2],
    packet: Packet<F>,
    local: Local,
    surroundings: Surroundings,
    /// What an unchanged packet gets.
    unchanged: Outcome,
}

fn a_packet_whose_tos_or_ttl_was_changed_earns_nothing<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        let outward = |remote: Remote<F>, unchanged| Crossing {
            hooks: [Hook::Egress, Hook::Confirm],
            packet: remote.addressed(&remote.from_pod(TRANSPORTS[0])),
            local: Local::Source,
            surroundings: outward(&interfaces, &remote),
            unchanged,
        };
        let inward = |stamps, remote: Remote<F>| Crossing {
            hooks: [stamps, Hook::Deliver],
            packet: as_delivered(&remote, TRANSPORTS[0]),
            local: Local::Destination,
            surroundings: inward(&interfaces, &remote),
            unchanged: Outcome::PermitGranted,
        };
        let crossings = [
            outward(F::TUNNELLED, Outcome::Leaving),
            outward(F::DIRECT, Outcome::PermitGranted),
            inward(Hook::Arrive, F::TUNNELLED),
            inward(Hook::Ingress, F::DIRECT),
        ];
        let changes = [
            ((0, 64), (0, 63), true),
            ((0xb8, 2), (0xb8, 1), true),
            ((0, 64), (0xb8, 63), false),
            ((0xb8, 64), (0, 63), false),
            ((0, 64), (1, 63), false),
            ((2, 64), (3, 63), false),
            ((0, 64), (0, 64), false),
            ((0, 64), (0, 62), false),
            ((0, 64), (0, 254), false),
            ((0, 64), (63, 0), false),
        ];
        for Crossing {
            hooks: [stamps, compares],
            packet,
            local,
            surroundings,
            unchanged,
        } in &crossings
        {
            for (before, after, is_unchanged) in changes {
                bench.set(&fixture)?;
                let entering = packet.clone().with(|p| (p.tos, p.ttl) = before);
                let came_in = Surroundings {
                    ifindex: surroundings.ingress_ifindex,
                    ..*surroundings
                };
                // A direct packet comes in addressed to the underlay.
                let entering = if *stamps == Hook::Ingress {
                    entering.macs(UNDERLAY_MAC, F::DIRECT.neighbour)
                } else {
                    entering
                };
                let hash = bench.left_by(*stamps, &entering.bytes(), &came_in)?.hash;
                let leaving = packet.clone().with(|p| (p.tos, p.ttl) = after);
                let stamped = Surroundings {
                    hash,
                    ..*surroundings
                };
                bench.set(&fixture)?;
                let run = bench.run(*compares, &leaving.bytes(), &stamped)?;
                let want = if is_unchanged {
                    *unchanged
                } else {
                    Outcome::Translated
                };
                ensure!(
                    run.outcomes() == [(*compares, want)],
                    "{stamps:?}, TOS and TTL from {before:?} to {after:?}: {run:?}"
                );
                let granted = bench.flow(packet.flow(*local))?.is_some();
                ensure!(
                    granted == (want == Outcome::PermitGranted),
                    "{stamps:?}, TOS and TTL from {before:?} to {after:?}: {granted}"
                );
            }
        }
        Ok(())
    })
}

in_both_families! {
    what_egress_declines_is_stamped_if_it_is_for_a_remote_pod_or_a_service,
    what_comes_from_a_peer_by_the_kernel_is_stamped,
    a_translated_packet_earns_nothing,
    a_packet_whose_tos_or_ttl_was_changed_earns_nothing,
}
