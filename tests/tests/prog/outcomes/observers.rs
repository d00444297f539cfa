//! What `confirm`, `arrive` and `deliver` share.

use overlay_common::{
    config::{Config, FASTPATH_OFF},
    outcome::Outcome,
    slow::EVERY_FLOW,
};
use overlay_tests::prog::{
    Seen,
    oddities::Oddities,
    packet::{ETH_LEN, Local, Packet, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN},
};

use super::table::{Table, cut, ethertype, other_version};
use crate::packets::tcp;

/// A name, and how a packet differs.
type Alteration<F> = (&'static str, fn(&mut Packet<F>));

/// The rows that `confirm`, `arrive` and `deliver` share: what is no packet of a flow between a
/// local and a remote pod.
pub fn observer_rows<F: Oddities>(
    table: &mut Table<F>,
    packet: &Packet<F>,
    strangers: &[(&str, Packet<F>)],
) {
    let frame = packet.bytes();
    table.pass(
        Outcome::Disabled,
        "while the fast path is off",
        frame.clone(),
        |fixture, _| fixture.config.fastpath = FASTPATH_OFF,
    );
    table.pass(
        Outcome::Unserved,
        "on a node without pods of the family",
        frame.clone(),
        |fixture, _| fixture.config = Config::default(),
    );
    let ip = ETH_LEN + F::IP_LEN;
    for len in [14, ip - 1, ip + 13] {
        table.pass(
            Outcome::Truncated,
            "not all of the headers",
            cut(&frame, len),
            |_, _| {},
        );
    }
    table.pass(F::ARP, "ARP", ethertype(frame.clone(), 0x0806), |_, _| {});
    table.pass(
        Outcome::NotIp,
        "the other version than the type says",
        other_version(frame),
        |_, _| {},
    );
    for (outcome, name, packet) in F::without_flow(packet) {
        table.pass(outcome, name, packet.bytes(), |_, _| {});
    }
    for (name, packet) in strangers {
        table.pass(Outcome::NotOverlay, name, packet.bytes(), |_, _| {});
    }
}

/// Rows in which the stamp decides, and the TCP flags.
pub fn stamp_rows<F: Oddities>(table: &mut Table<F>, packet: &Packet<F>, local: Local) {
    let key = packet.flow(local);
    let stamp = table.fixture.stamp(key);
    for (name, hash) in [
        ("without a stamp", 0),
        ("with the stamp of another flow", stamp ^ 1),
    ] {
        table.pass(
            Outcome::Translated,
            name,
            packet.bytes(),
            |_, surroundings| surroundings.hash = hash,
        );
    }
    table.pass(
        Outcome::Translated,
        "stamped before a flush",
        packet.bytes(),
        |fixture, surroundings| {
            surroundings.hash = stamp;
            fixture.config.generation += 1;
        },
    );
    for (outcome, name, flags) in [
        (Outcome::Handshake, "SYN", TCP_SYN),
        (Outcome::Handshake, "SYN and ACK", TCP_SYN | TCP_ACK),
        (Outcome::FlowClosed, "FIN", TCP_FIN | TCP_ACK),
        (Outcome::FlowClosed, "RST", TCP_RST),
    ] {
        let packet = packet.clone().with(|p| p.transport = tcp(flags));
        table.pass(outcome, name, packet.bytes(), |fixture, surroundings| {
            surroundings.hash = stamp;
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    let changes: [Alteration<F>; 4] = [
        ("another TOS than it is stamped with", |p| p.tos = 0xb8),
        ("another ECN mark", |p| p.tos = 1),
        ("no hop since it was stamped", |p| p.ttl += 1),
        ("two hops since it was stamped", |p| p.ttl -= 1),
    ];
    for (name, change) in changes {
        let packet = packet.clone().with(change);
        table.pass(
            Outcome::Translated,
            name,
            packet.bytes(),
            |_, surroundings| surroundings.hash = stamp,
        );
    }
    for (name, flags) in [("no TCP flag at all", 0), ("PSH alone", TCP_PSH)] {
        let packet = packet.clone().with(|p| p.transport = tcp(flags));
        table.pass(
            Outcome::TcpControl,
            name,
            packet.bytes(),
            |_, surroundings| {
                surroundings.hash = stamp;
            },
        );
    }
    table.pass(
        Outcome::FirstPacket,
        "the first of its flow",
        packet.bytes(),
        |_, surroundings| {
            surroundings.hash = stamp;
            surroundings.seen = Seen::Never;
        },
    );
    table.pass(
        Outcome::PerPacketRule,
        "of a flow that the packet filter judges packet by packet",
        packet.bytes(),
        |fixture, surroundings| {
            surroundings.hash = stamp;
            (fixture.slow.ipv4_count, fixture.slow.ipv6_count) = (EVERY_FLOW, EVERY_FLOW);
        },
    );
    table.pass(
        Outcome::SlowMark,
        "with the mark that keeps its flow slow",
        packet.bytes(),
        |fixture, surroundings| {
            surroundings.hash = stamp;
            surroundings.mark = 0x1234_5678;
            (fixture.config.slow_mark, fixture.config.slow_mask) = (0x0034_0000, 0x00ff_0000);
        },
    );
}
