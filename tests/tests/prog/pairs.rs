//! Trusted mode: which pairs of pods have one permit for all of their flows, and which a translation connects.

use anyhow::{Result, ensure};
use overlay_common::{
    config::{FASTPATH_LEARNING, FASTPATH_STRICT, FASTPATH_TRUSTED},
    flow::{REWRITE_DESTINATION, REWRITE_SOURCE},
    outcome::{Hook, Outcome},
};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench, Surroundings,
        fixture::{Fixture, Remote},
        model::pair,
        node::{Interfaces, on_node},
        oddities::Oddities,
        packet::{Local, Packet, TCP_ACK, TCP_SYN},
        passage::{as_delivered, earn, inward, outward},
    },
};

use crate::{
    packets::{TRANSPORTS, tcp},
    translated::{Translated, flows},
};

fn trusted<F: Oddities>(interfaces: Interfaces) -> Fixture<F> {
    let mut fixture = Fixture::new(interfaces);
    fixture.config.fastpath = FASTPATH_TRUSTED;
    fixture
}

/// What comes of the frame at a hook.
fn outcome<F: Oddities>(
    bench: &mut Bench<F>,
    hook: Hook,
    frame: &[u8],
    surroundings: &Surroundings,
) -> Result<Outcome> {
    bench
        .run(hook, frame, surroundings)?
        .outcome(hook, frame.len())
}

/// What comes of a packet from the pod on `remote` on the underlay.
fn taken<F: Oddities>(
    bench: &mut Bench<F>,
    interfaces: &Interfaces,
    remote: &Remote<F>,
    packet: &Packet<F>,
) -> Result<Outcome> {
    let frame = if *remote == F::DIRECT {
        packet.bytes()
    } else {
        remote.outer().around(&packet.bytes())
    };
    let wire = Surroundings {
        ifindex: interfaces.underlay,
        ..Surroundings::default()
    };
    outcome(bench, Hook::Ingress, &frame, &wire)
}

fn all_flows_of_a_pair_share_what_one_of_them_earned<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for remote in [F::TUNNELLED, F::DIRECT] {
            for transport in TRANSPORTS {
                let mut bench = Bench::<F>::load()?;
                let mut fixture = trusted(interfaces);
                fixture.seen_at(outward(&interfaces, &remote).ifindex);
                bench.set(&fixture)?;
                let packet = remote.from_pod(transport);
                let key = packet.flow(Local::Source);
                earn(
                    &mut bench,
                    &interfaces,
                    &remote,
                    &packet,
                    Surroundings::default(),
                )?;
                ensure!(bench.flow(key)?.is_none() && !bench.is_translated(key)?);
                bench.entry(pair(key))?;
                let handshake = remote.from_pod(tcp(TCP_SYN)).bytes();
                let got = outcome(
                    &mut bench,
                    Hook::Egress,
                    &handshake,
                    &Surroundings::default(),
                )?;
                ensure!(
                    matches!(got, Outcome::FastTunnel | Outcome::FastDirect),
                    "{got:?}"
                );
            }
        }
        Ok(())
    })
}

/// Before its packet leaves the host: the answer may be the next packet there is.
fn the_first_translated_packet_parts_the_flows_of_its_pair<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for flow in flows::<F>() {
            let mut bench = Bench::<F>::load()?;
            let mut fixture = trusted(interfaces);
            let pods = pair(flow.sent().flow(Local::Source));
            let entry = fixture.grant(pods, &flow.remote);
            (entry.egress_ttl, entry.ingress_ttl) = (0, 0);
            bench.set(&fixture)?;
            let got = taken(&mut bench, &interfaces, &flow.remote, &flow.answer())?;
            ensure!(
                matches!(got, Outcome::FastTunnel | Outcome::FastDirect),
                "an answer of a direct flow: {got:?}"
            );

            let got = flow.send(&mut bench, &interfaces, &flow.sent())?;
            ensure!(got == Outcome::Translated, "the first packet: {got:?}");
            ensure!(bench.is_translated(pods)?);
            let got = taken(&mut bench, &interfaces, &flow.remote, &flow.answer())?;
            ensure!(got == Outcome::NoPermit, "its answer: {got:?}");
            let direct = flow.sent().bytes();
            let got = outcome(&mut bench, Hook::Egress, &direct, &Surroundings::default())?;
            ensure!(got == Outcome::NoPermit, "a direct packet: {got:?}");

            let got = flow.send(&mut bench, &interfaces, &flow.sent())?;
            ensure!(got == Outcome::PermitGranted, "the next packet: {got:?}");
            let got = flow.receive(&mut bench, &interfaces, &flow.received())?;
            ensure!(got == Outcome::PermitGranted, "its answer: {got:?}");
            let out = bench.entry(flow.asked().flow(Local::Source))?;
            let back = bench.entry(flow.answer().flow(Local::Destination))?;
            ensure!(
                (out.rewrite, back.rewrite) == (REWRITE_DESTINATION, REWRITE_SOURCE),
                "{out:?} and {back:?}"
            );
        }
        Ok(())
    })
}

fn an_answer_that_is_translated_back_parts_the_flows_of_its_pair<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for flow in flows::<F>() {
            let mut bench = Bench::<F>::load()?;
            bench.set(&trusted(interfaces))?;
            let got = flow.receive(&mut bench, &interfaces, &flow.received())?;
            ensure!(
                bench.is_translated(flow.answer().flow(Local::Destination))?,
                "{got:?}"
            );
        }
        Ok(())
    })
}

/// A pod that serves by a port of its node answers the client's pod itself.
fn what_reaches_a_pod_by_another_address_parts_the_flows_of_its_pair<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for flow in flows::<F>() {
            let mut bench = Bench::<F>::load()?;
            bench.set(&trusted(interfaces))?;
            // Without a stamp: it entered for the node.
            let frame = F::hop(&as_delivered(&flow.remote, flow.back()).bytes());
            let into = inward(&interfaces, &flow.remote);
            let got = outcome(&mut bench, Hook::Deliver, &frame, &into)?;
            ensure!(got == Outcome::Translated, "{got:?}");
            ensure!(bench.is_translated(flow.answer().flow(Local::Destination))?);
        }
        Ok(())
    })
}

fn what_cannot_be_read_parts_the_flows_of_its_pair_if_it_may_have_ports<F: Oddities>() -> Result<()>
{
    on_node(|interfaces| {
        let remote = F::TUNNELLED;
        let packet = remote.from_pod(tcp(TCP_ACK));
        for (want, name, odd) in F::without_flow(&packet) {
            let mut bench = Bench::<F>::load()?;
            bench.set(&trusted(interfaces))?;
            let frame = remote.leaving(&odd).bytes();
            let got = outcome(
                &mut bench,
                Hook::Confirm,
                &frame,
                &outward(&interfaces, &remote),
            )?;
            let parts = matches!(want, Outcome::Fragment | Outcome::IpOptions);
            ensure!(
                bench.is_translated(packet.flow(Local::Source))? == parts,
                "{name}: {got:?}"
            );
        }
        Ok(())
    })
}

/// A flush, or a rule that writes the DSCP, leaves no stamp right; the note beside it tells that nothing was
/// translated. What the host itself sends is no pod's.
fn what_was_not_translated_parts_nothing<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        for remote in [F::TUNNELLED, F::DIRECT] {
            for transport in TRANSPORTS {
                let mut bench = Bench::<F>::load()?;
                let mut fixture = trusted(interfaces);
                bench.set(&fixture)?;
                let packet = remote.from_pod(transport);
                let entering = Surroundings {
                    ifindex: interfaces.pod,
                    ..Surroundings::default()
                };
                let hash = bench
                    .left_by(Hook::Egress, &packet.bytes(), &entering)?
                    .hash;
                let out = Surroundings {
                    hash,
                    ..outward(&interfaces, &remote)
                };
                let other = remote.leaving(&packet).with(|p| p.tos = 46 << 2).bytes();
                let got = outcome(&mut bench, Hook::Confirm, &other, &out)?;
                ensure!(got == Outcome::Translated, "with another DSCP: {got:?}");
                fixture.config.generation += 1;
                bench.set(&fixture)?;
                let frame = remote.leaving(&packet).bytes();
                let got = outcome(&mut bench, Hook::Confirm, &frame, &out)?;
                ensure!(got == Outcome::Translated, "behind a flush: {got:?}");
                let own = Surroundings {
                    hash: 0,
                    ingress_ifindex: 0,
                    ..out
                };
                let got = outcome(&mut bench, Hook::Confirm, &frame, &own)?;
                ensure!(got == Outcome::Translated, "the host's: {got:?}");
                ensure!(!bench.is_translated(packet.flow(Local::Source))?);
            }
        }
        Ok(())
    })
}

fn pairs_are_noted_before_they_are_used_and_not_at_all_in_strict_mode<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let flow = Translated::<F> {
            remote: F::TUNNELLED,
            transport: tcp(TCP_ACK),
        };
        for (fastpath, is_noted) in [(FASTPATH_LEARNING, true), (FASTPATH_STRICT, false)] {
            let mut bench = Bench::<F>::load()?;
            let mut fixture = Fixture::new(interfaces);
            fixture.config.fastpath = fastpath;
            let sent = flow.sent().flow(Local::Source);
            fixture.grant(pair(sent), &flow.remote);
            bench.set(&fixture)?;
            let got = taken(&mut bench, &interfaces, &flow.remote, &flow.answer())?;
            ensure!(got == Outcome::NoPermit, "a packet of the pair: {got:?}");
            let got = flow.send(&mut bench, &interfaces, &flow.sent())?;
            ensure!(got == Outcome::PermitGranted, "a translated one: {got:?}");
            ensure!(bench.is_translated(sent)? == is_noted);
        }
        Ok(())
    })
}

in_both_families! {
    all_flows_of_a_pair_share_what_one_of_them_earned,
    the_first_translated_packet_parts_the_flows_of_its_pair,
    an_answer_that_is_translated_back_parts_the_flows_of_its_pair,
    what_reaches_a_pod_by_another_address_parts_the_flows_of_its_pair,
    what_cannot_be_read_parts_the_flows_of_its_pair_if_it_may_have_ports,
    what_was_not_translated_parts_nothing,
    pairs_are_noted_before_they_are_used_and_not_at_all_in_strict_mode,
}
