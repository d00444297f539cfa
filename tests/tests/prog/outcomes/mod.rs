//! Every outcome of every program, on the simplest packet that has it.

mod arrive;
mod confirm;
mod deliver;
mod egress;
mod ingress;
mod injection;
mod observers;
mod short;
mod table;

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use overlay_common::{
    family::{V4, V6},
    outcome::{Hook, Outcome},
};
use overlay_tests::{
    document::{document, rows, section},
    in_both_families,
    prog::{
        Bench, Row, check_rows,
        fixture::{LEAVING, POD_MAC, SOURCE_PORT},
        node::{GATEWAY_MAC, Interfaces, on_node},
        oddities::Oddities,
        packet::{Local, Packet},
    },
};

use self::{
    arrive::arrive,
    confirm::{confirm, leaving},
    deliver::deliver,
    egress::egress,
    ingress::ingress,
    table::{TCP, Table, UDP},
};

/// Rows for a flow table that takes one flow and is full.
fn full_table<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut rows = Vec::new();
    let out = leaving(&F::TUNNELLED);
    let sent = F::TUNNELLED.sent(SOURCE_PORT).around(&out.bytes());
    let straight = leaving(&F::DIRECT);
    let back = F::TUNNELLED
        .to_pod(TCP)
        .macs(POD_MAC, GATEWAY_MAC)
        .with(|p| p.ttl -= 1);
    let (underlay, pod) = (interfaces.underlay, interfaces.pod);
    for (hook, frame, key, device, tc_index) in [
        (
            Hook::Confirm,
            sent,
            out.flow(Local::Source),
            underlay,
            LEAVING,
        ),
        (
            Hook::Confirm,
            straight.bytes(),
            straight.flow(Local::Source),
            underlay,
            0,
        ),
        (
            Hook::Deliver,
            back.bytes(),
            back.flow(Local::Destination),
            pod,
            0,
        ),
    ] {
        let mut table = Table::new(hook, interfaces);
        let stamp = table.fixture.stamp(key);
        table.pass(
            Outcome::TableFull,
            "the flow table is full",
            frame,
            |fixture, surroundings| {
                surroundings.hash = stamp;
                surroundings.ifindex = device;
                surroundings.tc_index = tc_index;
                surroundings.leaving = Some(fixture.noted(key));
                let other = Packet::<F>::new(F::POD, F::DIRECT.pod, UDP).flow(Local::Source);
                fixture.grant(other, &F::DIRECT);
            },
        );
        rows.append(&mut table.rows);
    }
    rows
}

/// The rows of a program.
type Rows<F> = fn(Interfaces) -> Vec<Row<F>>;

fn check<F: Oddities>(rows: Rows<F>) -> Result<()> {
    on_node(|interfaces| check_rows(&mut Bench::load()?, &rows(interfaces)))
}

fn egress_takes_or_declines_each_packet_for_the_right_reason<F: Oddities>() -> Result<()> {
    check::<F>(egress)
}

fn confirm_grants_or_refuses_an_egress_permit_for_the_right_reason<F: Oddities>() -> Result<()> {
    check::<F>(confirm)
}

fn ingress_takes_or_declines_each_packet_for_the_right_reason<F: Oddities>() -> Result<()> {
    check::<F>(ingress)
}

fn arrive_stamps_what_may_earn_a_permit_and_nothing_else<F: Oddities>() -> Result<()> {
    check::<F>(arrive)
}

fn deliver_grants_or_refuses_an_ingress_permit_for_the_right_reason<F: Oddities>() -> Result<()> {
    check::<F>(deliver)
}

fn a_flow_that_the_table_refuses_stays_with_the_kernel<F: Oddities>() -> Result<()> {
    on_node(|interfaces| {
        check_rows(
            &mut Bench::load_with_refusing_flow_table()?,
            &full_table::<F>(interfaces),
        )
    })
}

in_both_families! {
    egress_takes_or_declines_each_packet_for_the_right_reason,
    confirm_grants_or_refuses_an_egress_permit_for_the_right_reason,
    ingress_takes_or_declines_each_packet_for_the_right_reason,
    arrive_stamps_what_may_earn_a_permit_and_nothing_else,
    deliver_grants_or_refuses_an_ingress_permit_for_the_right_reason,
    a_flow_that_the_table_refuses_stays_with_the_kernel,
}

/// An outcome that no row reaches although the documents list it: it needs the mark that
/// `overlay_egress` leaves, and the tests of permits run both programs.
const CHAINED: (Hook, Outcome) = (Hook::Confirm, Outcome::Forwarded);

/// What the rows of a family reach.
fn reached<F: Oddities>(interfaces: Interfaces) -> Vec<(Hook, Outcome)> {
    let tables: [Rows<F>; 6] = [egress, confirm, ingress, arrive, deliver, full_table];
    let rows = tables.iter().flat_map(|rows| rows(interfaces));
    rows.map(|row| (row.hook, row.expected.outcome())).collect()
}

#[test]
fn every_outcome_that_the_documents_list_for_a_hook_has_a_row_and_no_other_has() -> Result<()> {
    let interfaces = Interfaces {
        underlay: 2,
        tunnel: 3,
        wire: 4,
        gateway: 5,
        pod: 6,
        eth0: 7,
    };
    let reached: BTreeSet<(Hook, Outcome)> = reached::<V4>(interfaces)
        .into_iter()
        .chain(reached::<V6>(interfaces))
        .collect();
    let datapath = document("datapath.md")?;
    for (&outcome, cells) in Outcome::ALL
        .iter()
        .zip(rows(section(&datapath, "Outcomes")?))
    {
        ensure!(cells[0] == format!("`{}`", outcome.name()), "{cells:?}");
        for (&hook, &mark) in Hook::ALL.iter().zip(&cells[3..]) {
            let pair = (hook, outcome);
            ensure!(
                hook == Hook::Guard || pair == CHAINED || reached.contains(&pair) == (mark == "x"),
                "{outcome:?} at {hook:?}: marked {mark:?}, reached: {}",
                reached.contains(&pair)
            );
        }
    }
    Ok(())
}
