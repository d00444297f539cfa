//! SCTP: which chunks are fast, and which the kernel has to see.

use anyhow::{Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench, Surroundings,
        fixture::{Fixture, SOURCE_PORT},
        node::on_node,
        oddities::Oddities,
        packet::{Local, Packet},
    },
};

use crate::{
    packets::{DATA, SACK, sctp},
    translated::Translated,
};

const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const I_DATA: u8 = 64;
/// What opens and ends an association, and what else there is.
const OPENING: [u8; 4] = [1, 2, 10, 11];
const CLOSING: [u8; 4] = [6, 7, 8, 14];
const OTHER: [u8; 4] = [9, 128, 130, 192];

/// An acknowledgement, without its type, and the chunk of type `next` behind it.
fn bundle(gaps: usize, next: u8) -> impl Fn(&mut Vec<u8>) {
    move |payload| {
        // The length in its header is that of the whole payload: here it ends before the next chunk.
        payload.clear();
        payload.extend([7; 12]);
        payload.extend(vec![7; gaps * 4]);
        payload.extend([next, 3, 0, 8, 1, 2, 3, 4]);
    }
}

/// The frame, with the length that the first chunk has.
fn with_chunk_len<F: Oddities>(packet: &Packet<F>, len: u16) -> Vec<u8> {
    let mut frame = packet.bytes();
    let at = frame.len() - packet.payload.len() - 2;
    frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
    frame
}

fn data_and_what_acknowledges_it_is_fast_and_the_rest_is_the_kernels<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let remote = F::TUNNELLED;
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        fixture.grant(remote.from_pod(sctp(DATA)).flow(Local::Source), &remote);
        bench.set(&fixture)?;
        let mut check = |name: &str, frame: &[u8], want| -> Result<()> {
            let run = bench.run(Hook::Egress, frame, &Surroundings::default())?;
            let outcome = run.outcome(Hook::Egress, frame.len())?;
            ensure!(outcome == want, "{name}: {outcome:?}");
            if want == Outcome::FastTunnel {
                ensure!(
                    run.frame == remote.encapsulated(frame, SOURCE_PORT),
                    "{name}"
                );
            }
            Ok(())
        };
        for chunk in [DATA, SACK, HEARTBEAT, HEARTBEAT_ACK, I_DATA] {
            let packet = remote.from_pod(sctp(chunk));
            check(
                &format!("chunk {chunk}"),
                &packet.bytes(),
                Outcome::FastTunnel,
            )?;
        }
        for chunk in [OPENING, CLOSING, OTHER].concat() {
            let packet = remote.from_pod(sctp(chunk));
            check(
                &format!("chunk {chunk}"),
                &packet.bytes(),
                Outcome::TcpControl,
            )?;
        }
        for (name, gaps, next, want) in [
            (
                "data behind an acknowledgement",
                0,
                DATA,
                Outcome::FastTunnel,
            ),
            ("a shutdown behind one", 0, 7, Outcome::TcpControl),
            ("data behind gaps", 1, DATA, Outcome::TcpControl),
        ] {
            let packet = remote.from_pod(sctp(SACK));
            let packet = packet.with(|p| bundle(gaps, next)(&mut p.payload));
            let len = u16::try_from(16 + gaps * 4)?;
            check(name, &with_chunk_len(&packet, len), want)?;
        }
        Ok(())
    })
}

/// Its checksum is over ports, and of a kind that cannot be updated by differences.
fn translated_associations_stay_in_the_kernel<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        let flow = Translated::<F> {
            remote: F::TUNNELLED,
            transport: sctp(DATA),
        };
        let mut bench = Bench::<F>::load()?;
        bench.set(&Fixture::new(interfaces))?;
        let outcome = flow.send(&mut bench, &interfaces, &flow.sent())?;
        ensure!(outcome == Outcome::Translated, "{outcome:?}");
        ensure!(bench.flow(flow.asked().flow(Local::Source))?.is_none());
        Ok(())
    })
}

in_both_families! {
    data_and_what_acknowledges_it_is_fast_and_the_rest_is_the_kernels,
    translated_associations_stay_in_the_kernel,
}
