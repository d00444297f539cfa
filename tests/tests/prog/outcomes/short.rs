//! Packets past the tunnel device.

use overlay_common::{
    ecn::CE,
    node::Leaving,
    outcome::{Hook, Outcome},
    short::closed,
    slow::{EGRESS, INGRESS},
    stamp::source_port,
};
use overlay_tests::prog::{
    Expected, Row, Surroundings,
    fixture::{Fixture, OPENING, VTEP_MAC},
    node::Interfaces,
    oddities::Oddities,
    packet::{Local, Packet, TCP_ACK, TCP_SYN, with_macs},
};

use super::table::{OTHER_MAC, Table};
use crate::packets::tcp;

const SYN: u8 = TCP_SYN;
/// Hash of the packets.
const HASH: u32 = 0x0123_4567;

/// Changes what the maps hold and what is around the packet.
type Arrange<F> = fn(&mut Fixture<F>, &mut Surroundings);

/// The pod's packet as it gets to the tunnel device, of a new connection.
fn syn<F: Oddities>() -> Packet<F> {
    F::TUNNELLED.from_pod(tcp(SYN))
}

/// The UDP source port of tunnel packets with such a hash.
fn port<F: Oddities>(fixture: &Fixture<F>, hash: u32) -> u16 {
    source_port(
        hash,
        fixture.config.source_port_min,
        fixture.config.source_port_span,
    )
}

/// Packets at the tunnel device.
pub fn outward<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Confirm, interfaces);
    let packet = syn::<F>();
    let arrived = F::TUNNELLED
        .leaving(&packet)
        .macs(F::TUNNELLED.vtep_mac, VTEP_MAC);
    let stamp = table.fixture.stamp(packet.flow(Local::Source));
    let sent = |fixture: &Fixture<F>, packet: &Packet<F>, hash| {
        F::TUNNELLED.encapsulated(&packet.bytes(), port(fixture, hash))
    };
    let of_others = packet.clone().with(|p| p.src = F::ELSEWHERE.into());
    let arrived_of_others = F::TUNNELLED
        .leaving(&of_others)
        .macs(F::TUNNELLED.vtep_mac, VTEP_MAC);
    for (name, packet, arrived, hash) in [
        ("SYN to a node with the short way", &packet, &arrived, stamp),
        (
            "of the host to a node with the short way",
            &of_others,
            &arrived_of_others,
            HASH,
        ),
    ] {
        let expected = Expected::Redirect(Outcome::ShortWay, sent(&table.fixture, packet, hash));
        table.row(name, arrived.bytes(), expected, |fixture, surroundings| {
            fixture.open(&F::TUNNELLED, |_| {});
            surroundings.hash = hash;
        });
    }
    let marked = Expected::Redirect(Outcome::ShortWay, sent(&table.fixture, &packet, stamp));
    table.row(
        "with the mark and priority of the packet that got it",
        arrived.bytes(),
        marked,
        |fixture, surroundings| {
            fixture.open(&F::TUNNELLED, |short| {
                (short.inner_mark, short.inner_priority) = (5, 6);
            });
            (surroundings.hash, surroundings.mark, surroundings.priority) = (stamp, 5, 6);
        },
    );
    let not_open: [(&str, Arrange<F>); 14] = [
        ("which has none", |fixture, _| fixture.short.clear()),
        ("which ran out", |fixture, _| {
            fixture.open(&F::TUNNELLED, |short| short.egress_until = 1);
        }),
        ("from before a flush", |fixture, _| {
            fixture.open(&F::TUNNELLED, |short| short.generation -= 1);
        }),
        ("to another address of the node", |fixture, _| {
            fixture.open(&F::TUNNELLED, |short| short.vtep = [9; 4]);
        }),
        ("from before the way changed", |fixture, _| {
            fixture.open(&F::TUNNELLED, |short| short.path_changes -= 1);
        }),
        ("of another mark", |_, around| around.mark = 5),
        ("of another priority", |_, around| around.priority = 5),
        (
            "with the mark of flows that stay away",
            |fixture, around| {
                fixture.open(&F::TUNNELLED, |short| short.inner_mark = 5);
                (fixture.config.slow_mask, fixture.config.slow_mark) = (0xff, 5);
                around.mark = 5;
            },
        ),
        ("which is being written", |fixture, _| {
            fixture.open(&F::TUNNELLED, |_| {}).mark ^= 1;
        }),
        ("which is too narrow", |fixture, _| {
            fixture.open(&F::TUNNELLED, |short| short.mtu = 30);
        }),
        ("where rules tell tunnel packets apart", |fixture, _| {
            fixture.slow.outer = EGRESS.into();
        }),
        ("past what others have of tc", |fixture, _| {
            fixture.config.closed = closed::OUTWARDS & !closed::INWARDS;
        }),
        ("in a GSO packet too large for it", |_, around| {
            around.gso_size = 9_000;
        }),
        ("under a VLAN tag", |_, around| around.vlan = Some(5)),
    ];
    for (name, arrange) in not_open {
        let name = format!("SYN to a node with the short way, {name}");
        table.pass(
            Outcome::Handshake,
            &name,
            arrived.bytes(),
            |fixture, around| {
                fixture.open(&F::TUNNELLED, |_| {});
                around.hash = stamp;
                arrange(fixture, around);
            },
        );
    }
    for (name, frame) in [
        (
            "to another MAC address",
            with_macs(&arrived.bytes(), OTHER_MAC, VTEP_MAC),
        ),
        (
            "from another MAC address",
            with_macs(&arrived.bytes(), F::TUNNELLED.vtep_mac, OTHER_MAC),
        ),
    ] {
        let name = format!("SYN to a node with the short way, {name}");
        table.pass(Outcome::Handshake, &name, frame, |fixture, around| {
            fixture.open(&F::TUNNELLED, |_| {});
            around.hash = stamp;
        });
    }
    table.rows
}

/// The kernel's tunnel packets at the underlay, by which a node gets the short way.
pub fn opening<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Confirm, interfaces);
    table.surroundings.ifindex = interfaces.underlay;
    table.surroundings.tc_index = OPENING;
    let inner = F::TUNNELLED
        .leaving(&syn::<F>())
        .macs(F::TUNNELLED.vtep_mac, VTEP_MAC);
    let noted = Leaving {
        hash_generation: table.fixture.config.generation,
        hash: HASH,
        node: F::TUNNELLED.index,
        ..Leaving::default()
    };
    let right = port(&table.fixture, HASH);
    let mut row =
        |outcome, name: &str, port, arrange: &dyn Fn(&mut Fixture<F>, &mut Surroundings)| {
            let frame = F::TUNNELLED.sent(port).around(&inner.bytes());
            let name = format!("the kernel's tunnel packet {name}");
            table.pass(outcome, &name, frame, |fixture, around| {
                around.hash = HASH;
                around.leaving = Some(noted);
                arrange(fixture, around);
            });
        };
    row(Outcome::WayOpened, "in clear", right, &|_, _| {});
    row(
        Outcome::OtherPath,
        "with another source port",
        right ^ 1,
        &|_, _| {},
    );
    row(Outcome::OtherPath, "without a note", right, &|_, around| {
        around.leaving = Some(Leaving::default());
    });
    row(
        Outcome::OtherPath,
        "of another packet",
        right,
        &|_, around| {
            around.hash = HASH ^ 1;
        },
    );
    row(
        Outcome::OtherPath,
        "across a flush",
        right,
        &|fixture, _| {
            fixture.config.generation += 1;
        },
    );
    row(
        Outcome::OtherPath,
        "by another device",
        right,
        &|_, around| {
            around.ifindex = interfaces.wire;
        },
    );
    row(
        Outcome::Nexthop,
        "to a node that is gone",
        right,
        &|fixture, _| {
            fixture.nodes.remove(&F::TUNNELLED.index);
        },
    );
    for (_, name, outer) in F::outers(&F::TUNNELLED.sent(right)) {
        let frame = outer.around(&inner.bytes());
        let name = format!("the kernel's tunnel packet with an odd header: {name}");
        table.pass(Outcome::OtherPath, &name, frame, |_, around| {
            around.hash = HASH;
            around.leaving = Some(noted);
        });
    }
    table.rows
}

/// Tunnel packets at the underlay.
pub fn inward<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Ingress, interfaces);
    let inner = F::TUNNELLED.to_pod(tcp(SYN | TCP_ACK));
    let outer = F::TUNNELLED.outer();
    let frame = outer.around(&inner.bytes());
    for (name, inner) in [
        ("SYN", inner.clone()),
        (
            "to the host's own address",
            inner.clone().with(|p| p.dst = F::GATEWAY.into()),
        ),
    ] {
        table.row(
            &format!("{name}, from a node with the short way"),
            outer.around(&inner.bytes()),
            Expected::Redirect(Outcome::ShortWay, inner.bytes()),
            |fixture, _| {
                fixture.open(&F::TUNNELLED, |_| {});
            },
        );
    }
    let not_open: [(&str, Arrange<F>); 8] = [
        ("which has none", |fixture, _| fixture.short.clear()),
        ("which ran out", |fixture, _| {
            let short = fixture.open(&F::TUNNELLED, |_| {});
            short.ingress_owner ^= short.ingress_until ^ 1;
            short.ingress_until = 1;
        }),
        ("from before a flush", |fixture, _| {
            fixture.open(&F::TUNNELLED, |_| {}).ingress_owner ^= 1 << 32;
        }),
        ("of another address of the node", |fixture, _| {
            fixture.open(&F::TUNNELLED, |_| {}).ingress_owner ^= 1;
        }),
        ("with a mark", |_, around| around.mark = 5),
        ("where rules tell tunnel packets apart", |fixture, _| {
            fixture.slow.outer = INGRESS.into();
        }),
        ("past what others have of tc", |fixture, _| {
            fixture.config.closed = closed::INWARDS & !closed::OUTWARDS;
        }),
        ("merged by GRO", |_, around| around.gso_size = 1_000),
    ];
    for (name, arrange) in not_open {
        let name = format!("SYN from a node with the short way, {name}");
        table.pass(
            Outcome::NoPermit,
            &name,
            frame.clone(),
            |fixture, around| {
                fixture.open(&F::TUNNELLED, |_| {});
                arrange(fixture, around);
            },
        );
    }
    let odd: [(&str, Vec<u8>); 5] = [
        ("from a pod of another node", {
            let inner = inner.clone().with(|p| p.src = F::ROUTED.pod.into());
            outer.around(&inner.bytes())
        }),
        ("to another network", {
            let inner = inner.clone().with(|p| p.dst = F::ELSEWHERE.into());
            outer.around(&inner.bytes())
        }),
        ("with a congestion mark to drop it for", {
            let mut outer = outer.clone();
            outer.tos = CE;
            outer.around(&inner.bytes())
        }),
        ("with a congestion mark to keep", {
            let mut outer = outer.clone();
            outer.tos = CE;
            outer.around(&inner.clone().with(|p| p.tos = 2).bytes())
        }),
        ("with bytes behind it", [frame.clone(), vec![0; 3]].concat()),
    ];
    for (name, frame) in odd {
        let name = format!("SYN from a node with the short way, {name}");
        table.pass(Outcome::NoPermit, &name, frame, |fixture, _| {
            fixture.open(&F::TUNNELLED, |_| {});
        });
    }
    table.rows
}
