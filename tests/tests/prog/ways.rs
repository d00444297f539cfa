//! The way that an egress permit remembers is the one that the kernel's own packet left by, or there is
//! no permit.

use anyhow::{Result, ensure};
use overlay_common::{
    addr::MacAddr,
    node::{Leaving, MODE_DIRECT, Nexthop},
    outcome::{Hook, Outcome},
};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench,
        Step::Program,
        Surroundings, Verdict,
        fixture::{Fixture, LEAVING, OUTER_TTL, PATH_CHANGES, Remote, SOURCE_PORT, VTEP_MAC},
        node::{UNDERLAY_MAC, on_node},
        oddities::Oddities,
        packet::{IpNumber, Local, Outer, Packet, Transport, with_macs},
        passage::{at_underlay, earn, outward, sent_frame},
    },
};

use crate::packets::{Edit, LOOPBACK, TRANSPORTS};

/// A MAC address that the underlay does not have.
const OLD_UNDERLAY_MAC: MacAddr = MacAddr::new([0x02, 0xaa, 0, 0, 0, 0x99]);

fn a_permit_remembers_the_way_of_the_very_packet<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        for remote in [F::TUNNELLED, F::DIRECT, F::ROUTED] {
            bench.set(&fixture)?;
            let packet = remote.from_pod(TRANSPORTS[0]);
            let key = packet.flow(Local::Source);
            // As if the interface had had another address when the packet was made.
            let frame = sent_frame(&remote, &packet);
            let frame = with_macs(&frame, remote.neighbour, OLD_UNDERLAY_MAC);
            let surroundings = if remote.mode == MODE_DIRECT {
                Surroundings {
                    hash: fixture.stamp(key),
                    ..outward(&interfaces, &remote)
                }
            } else {
                at_underlay(&fixture, key)
            };
            let run = bench.run(Hook::Confirm, &frame, &surroundings)?;
            ensure!(
                run.outcomes() == [(Hook::Confirm, Outcome::PermitGranted)],
                "{run:?}"
            );
            let got = bench.entry(key)?;
            ensure!(
                got.underlay_mac == OLD_UNDERLAY_MAC && got.next_hop_mac == remote.neighbour,
                "{got:?}"
            );
            // The kernel derives the port from the hash, which is the program's; whatever it is, it is
            // taken from the packet.
            let port = if remote.mode == MODE_DIRECT {
                0
            } else {
                SOURCE_PORT
            };
            ensure!(got.source_port == port.to_be_bytes(), "{got:?}");
        }
        Ok(())
    })
}

fn a_mark_and_a_priority_of_the_kernels_packet_are_on_fast_packets<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        for remote in [F::TUNNELLED, F::DIRECT, F::ROUTED] {
            fixture.seen_at(outward(&interfaces, &remote).ifindex);
            bench.set(&fixture)?;
            let packet = remote.from_pod(TRANSPORTS[0]);
            for (mark, priority) in [(0x1234_5678, 0x0001_0007), (0, 6), (9, 0), (0, 0)] {
                let given = Surroundings {
                    mark,
                    priority,
                    ..Surroundings::default()
                };
                let renewed = fixture.clone();
                bench.set(&renewed)?;
                earn(&mut bench, &interfaces, &remote, &packet, given)?;
                let got = bench.entry(packet.flow(Local::Source))?;
                ensure!((got.mark, got.priority) == (mark, priority), "{got:?}");
                // What the pod or its veth gave the packet, rules would have changed just so.
                let from_pod = Surroundings {
                    mark: 0xffff,
                    priority: 3,
                    ..outward(&interfaces, &remote)
                };
                let next = bench.run(Hook::Egress, &packet.bytes(), &from_pod)?;
                ensure!(next.verdict == Verdict::Redirect, "{next:?}");
                ensure!(
                    (next.mark, next.priority) == (mark, priority),
                    "mark {:#x}, priority {:#x} instead of {mark:#x}, {priority:#x}",
                    next.mark,
                    next.priority
                );
            }
        }
        Ok(())
    })
}

fn what_leaves_in_another_form_or_another_way_earns_nothing<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        fixture.seen_at(interfaces.tunnel);
        let remote = F::TUNNELLED;
        let packet = remote.from_pod(TRANSPORTS[0]);
        let key = packet.flow(Local::Source);
        let other = remote.from_pod(TRANSPORTS[1]);
        let outer = remote.sent(SOURCE_PORT);
        let inner = remote.leaving(&packet).bytes();
        let sent = outer.around(&inner);
        let with = |change: Edit<'_, Outer<F>>| {
            let mut outer = outer.clone();
            change(&mut outer);
            outer.around(&inner)
        };
        let esp = Packet::<F>::new(F::VTEP, remote.vtep, Transport::Other(IpNumber(50)))
            .macs(remote.neighbour, UNDERLAY_MAC)
            .sized(sent.len());
        // The way it is sent, a tunnel packet and all its surroundings.
        let usual: Edit<'_, Surroundings> = &|_| {};
        let cases: [(&str, Vec<u8>, Edit<'_, Surroundings>, Outcome); 17] = [
            ("as ESP", esp.bytes(), usual, Outcome::OtherPath),
            (
                "to another node",
                with(&|outer| outer.dst = F::ROUTED.vtep.into()),
                usual,
                Outcome::OtherPath,
            ),
            (
                "from another address",
                with(&|outer| outer.src = F::STRANGER.into()),
                usual,
                Outcome::OtherPath,
            ),
            (
                "to another port",
                with(&|outer| outer.dst_port += 1),
                usual,
                Outcome::OtherPath,
            ),
            (
                "in another network",
                with(&|outer| outer.vni += 1),
                usual,
                Outcome::OtherPath,
            ),
            (
                "with a group policy",
                with(&|outer| outer.vxlan_flags |= 0x80),
                usual,
                Outcome::OtherPath,
            ),
            (
                "to another VTEP of the node",
                outer.around(&with_macs(&inner, F::ROUTED.vtep_mac, VTEP_MAC)),
                usual,
                Outcome::OtherPath,
            ),
            (
                "with another packet in it",
                outer.around(&remote.leaving(&other).bytes()),
                usual,
                Outcome::OtherPath,
            ),
            (
                "as part of another family's tunnel",
                {
                    let mut frame = sent.clone();
                    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
                    frame
                },
                usual,
                Outcome::OtherPath,
            ),
            (
                "bare",
                with_macs(&inner, remote.neighbour, UNDERLAY_MAC),
                usual,
                Outcome::OtherPath,
            ),
            (
                "by another device",
                sent.clone(),
                &|around| around.ifindex = interfaces.wire,
                Outcome::OtherPath,
            ),
            (
                "to another next hop",
                with(&|outer| outer.eth_dst = F::ROUTED.neighbour),
                usual,
                Outcome::OtherPath,
            ),
            (
                "without a note",
                sent.clone(),
                &|around| around.leaving = Some(Leaving::default()),
                Outcome::OtherPath,
            ),
            (
                "with the note of another flow",
                sent.clone(),
                &|around| around.leaving = Some(fixture.noted(other.flow(Local::Source))),
                Outcome::OtherPath,
            ),
            (
                "across a flush",
                sent.clone(),
                &|around| {
                    let mut noted = fixture.noted(key);
                    noted.generation -= 1;
                    around.leaving = Some(noted);
                },
                Outcome::OtherPath,
            ),
            (
                "without the mark that goes with the note",
                sent.clone(),
                &|around| around.tc_index = 0,
                Outcome::NotOverlay,
            ),
            (
                "with another program's mark",
                sent.clone(),
                &|around| around.tc_index = LEAVING + 0x100,
                Outcome::NotOverlay,
            ),
        ];
        for (name, frame, change, want) in cases {
            bench.set(&fixture)?;
            let mut around = at_underlay(&fixture, key);
            change(&mut around);
            let run = bench.run(Hook::Confirm, &frame, &around)?;
            ensure!(
                run.outcomes() == [(Hook::Confirm, want)] && run.verdict == Verdict::Pass,
                "{name}: {run:?}"
            );
            for packet in [&packet, &other] {
                let left = bench.flow(packet.flow(Local::Source))?;
                ensure!(left.is_none(), "{name}: {left:?}");
            }
        }
        // The same packet earns the permit as it is.
        let run = bench.run(Hook::Confirm, &sent, &at_underlay(&fixture, key))?;
        ensure!(
            run.outcomes() == [(Hook::Confirm, Outcome::PermitGranted)],
            "{run:?}"
        );
        Ok(())
    })
}

fn an_outer_packet_with_another_tos_or_ttl_than_the_fast_paths_earns_nothing<F: Oddities>()
-> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        let remote = F::TUNNELLED;
        for (inner_tos, outer_tos, ttl, is_usual) in [
            (0, 0, OUTER_TTL, true),
            (1, 1, OUTER_TTL, true),
            (2, 2, OUTER_TTL, true),
            // Congestion experienced is sent as ECN-capable.
            (3, 2, OUTER_TTL, true),
            (0xba, 2, OUTER_TTL, true),
            (0xb8, 0xb8, OUTER_TTL, false),
            (0, 0xb8, OUTER_TTL, false),
            (0, 3, OUTER_TTL, false),
            (3, 3, OUTER_TTL, false),
            (0, 0, OUTER_TTL - 1, false),
            (0, 0, 255, false),
        ] {
            bench.set(&fixture)?;
            let packet = remote.from_pod(TRANSPORTS[0]).with(|p| p.tos = inner_tos);
            let key = packet.flow(Local::Source);
            let mut outer = remote.sent(SOURCE_PORT);
            (outer.tos, outer.ttl) = (outer_tos, ttl);
            let frame = outer.around(&remote.leaving(&packet).bytes());
            let run = bench.run(Hook::Confirm, &frame, &at_underlay(&fixture, key))?;
            let want = if is_usual {
                Outcome::PermitGranted
            } else {
                Outcome::OtherPath
            };
            ensure!(
                run.outcomes() == [(Hook::Confirm, want)],
                "TOS {inner_tos:#x} in {outer_tos:#x}, TTL {ttl}: {run:?}"
            );
            let granted = bench.flow(key)?.is_some();
            ensure!(granted == is_usual, "TOS {inner_tos:#x} in {outer_tos:#x}");
        }
        Ok(())
    })
}

fn what_is_noted_of_a_packet_counts_for_its_flow_until_another_passes<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        bench.set(&fixture)?;
        let remote = F::TUNNELLED;
        let [packet, other] =
            [0, 1].map(|index| remote.leaving(&remote.from_pod(TRANSPORTS[index])));
        let pass = |bench: &mut Bench<F>, packet: &Packet<F>| -> Result<()> {
            let key = packet.flow(Local::Source);
            let stamped = Surroundings {
                hash: fixture.stamp(key),
                ..outward(&interfaces, &remote)
            };
            let run = bench.run(Hook::Confirm, &packet.bytes(), &stamped)?;
            ensure!(
                run.outcomes() == [(Hook::Confirm, Outcome::Leaving)],
                "{run:?}"
            );
            let noted = bench.leaving()?;
            let of_flow = Leaving {
                flow: noted.flow,
                gateway_mac: noted.gateway_mac,
                generation: noted.generation,
                stamp: noted.stamp,
                ..Leaving::default()
            };
            ensure!(of_flow == fixture.noted(key), "{noted:?}");
            Ok(())
        };
        let send = |bench: &mut Bench<F>, packet: &Packet<F>| -> Result<Vec<(Hook, Outcome)>> {
            let as_noted = Surroundings {
                leaving: None,
                ..at_underlay(&fixture, packet.flow(Local::Source))
            };
            let frame = remote.sent(SOURCE_PORT).around(&packet.bytes());
            Ok(bench.run(Hook::Confirm, &frame, &as_noted)?.outcomes())
        };
        let granted = [(Hook::Confirm, Outcome::PermitGranted)];
        pass(&mut bench, &packet)?;
        // What does not pass takes nothing from what did.
        let to_internet = packet.clone().with(|p| p.dst = F::INTERNET.into());
        let odd = F::without_flow(&packet);
        let refused = odd.into_iter().map(|(_, _, packet)| packet);
        for refused in refused.chain([packet.clone(), to_internet]) {
            let unstamped = outward(&interfaces, &remote);
            bench.run(Hook::Confirm, &refused.bytes(), &unstamped)?;
        }
        // Two packets of the flow were under way at once.
        for _ in 0..2 {
            let outcomes = send(&mut bench, &packet)?;
            ensure!(outcomes == granted, "{outcomes:?}");
        }
        pass(&mut bench, &other)?;
        let outcomes = [send(&mut bench, &packet)?, send(&mut bench, &other)?];
        let overtaken = [(Hook::Confirm, Outcome::OtherPath)];
        ensure!(outcomes == [overtaken, granted], "{outcomes:?}");
        Ok(())
    })
}

fn only_what_passed_to_the_vxlan_device_is_marked_and_only_up_to_the_underlay<F: Oddities>()
-> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let fixture = Fixture::new(interfaces);
        bench.set(&fixture)?;
        let remote = F::TUNNELLED;
        let packet = remote.leaving(&remote.from_pod(TRANSPORTS[0]));
        let key = packet.flow(Local::Source);
        let tunnel = outward(&interfaces, &remote);
        let stamped = Surroundings {
            hash: fixture.stamp(key),
            ..tunnel
        };
        let left = bench.left_by(Hook::Confirm, &packet.bytes(), &stamped)?;
        ensure!(
            left.hash == stamped.hash && left.tc_index == u32::from(LEAVING),
            "{left:?}"
        );
        // A mark of another node's program, in a namespace of the same host, is taken off.
        let marked = Surroundings {
            tc_index: LEAVING,
            ..tunnel
        };
        let sent = remote.sent(SOURCE_PORT).around(&packet.bytes());
        let other = Surroundings {
            leaving: Some(Leaving::default()),
            ..at_underlay(&fixture, key)
        };
        for (frame, surroundings) in [
            (packet.bytes(), tunnel),
            (packet.bytes(), marked),
            (sent.clone(), at_underlay(&fixture, key)),
            (sent, other),
        ] {
            let left = bench.left_by(Hook::Confirm, &frame, &surroundings)?;
            ensure!(left.tc_index == 0, "{surroundings:?}: {left:?}");
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
            fixture.seen_at(outward(&interfaces, &remote).ifindex);
            if let Some(node) = fixture.nodes.get_mut(&remote.index) {
                node.route_mtu = route_mtu;
            }
            bench.set(&fixture)?;
            let packet = remote.from_pod(TRANSPORTS[0]);
            let none = Surroundings::default();
            earn(&mut bench, &interfaces, &remote, &packet, none)?;
            let got = bench.entry(packet.flow(Local::Source))?.path_mtu;
            ensure!(
                got == mtu,
                "{got} instead of {mtu} with a route of {route_mtu}"
            );
        }
        Ok(())
    })
}

fn a_way_whose_neighbour_is_gone_is_not_earned_again<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        let packet = F::SILENT.from_pod(TRANSPORTS[0]);
        let key = packet.flow(Local::Source);
        let granted = *fixture.grant(key, &F::SILENT);
        bench.set(&fixture)?;
        let run = bench.run(
            Hook::Confirm,
            &sent_frame(&F::SILENT, &packet),
            &at_underlay(&fixture, key),
        )?;
        ensure!(
            run.outcomes() == [(Hook::Confirm, Outcome::OtherPath)],
            "{run:?}"
        );
        let after = bench.entry(key)?;
        ensure!(after == granted, "{after:?} instead of {granted:?}");
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
                &[Program(Hook::Egress), Program(Hook::Confirm)],
                &packet.bytes(),
                &surroundings,
            )?;
            ensure!(
                run.outcomes() == [(Hook::Egress, fast), (Hook::Confirm, Outcome::Forwarded)],
                "{run:?}"
            );
            ensure!(run.verdict == Verdict::Pass, "{run:?}");
            let left = bench.entry(key)?;
            ensure!(left == granted, "{left:?} instead of {granted:?}");
        }
        Ok(())
    })
}

fn flows_to_a_node_earn_their_way_again_when_a_router_finds_packets_to_it_too_large<F: Oddities>()
-> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        let flow = F::ROUTED.from_pod(TRANSPORTS[0]).flow(Local::Source);
        fixture.grant(flow, &F::ROUTED);
        fixture.seen_at(LOOPBACK);
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
        let packet = F::ROUTED.from_pod(TRANSPORTS[0]);
        for (name, message, changed) in [
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
                run.outcomes() == [(Hook::Ingress, Outcome::NotOverlay)],
                "{name}: {run:?}"
            );
            ensure!(
                run.verdict == Verdict::Pass && run.frame == frame,
                "{name}: {run:?}"
            );
            for (&index, before) in &fixture.nexthops {
                let after = bench.nexthop(index)?;
                let want = Nexthop {
                    path_changes: PATH_CHANGES + u32::from(changed && index == F::ROUTED.index),
                    ..*before
                };
                ensure!(after == want, "{name}: next hop {index}: {after:?}");
            }
            let next = bench.run(Hook::Egress, &packet.bytes(), &Surroundings::default())?;
            let outcome = if changed {
                Outcome::Nexthop
            } else {
                Outcome::FastTunnel
            };
            ensure!(
                next.outcomes() == [(Hook::Egress, outcome)],
                "{name}: {next:?}"
            );
        }
        Ok(())
    })
}

in_both_families! {
    a_permit_remembers_the_way_of_the_very_packet,
    a_mark_and_a_priority_of_the_kernels_packet_are_on_fast_packets,
    what_leaves_in_another_form_or_another_way_earns_nothing,
    an_outer_packet_with_another_tos_or_ttl_than_the_fast_paths_earns_nothing,
    what_is_noted_of_a_packet_counts_for_its_flow_until_another_passes,
    only_what_passed_to_the_vxlan_device_is_marked_and_only_up_to_the_underlay,
    a_route_that_takes_less_than_its_device_counts_for_tunnel_packets,
    a_way_whose_neighbour_is_gone_is_not_earned_again,
    a_fast_packet_that_leaves_by_the_underlay_is_not_taken_for_the_kernels,
    flows_to_a_node_earn_their_way_again_when_a_router_finds_packets_to_it_too_large,
}
