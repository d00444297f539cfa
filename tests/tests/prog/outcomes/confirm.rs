//! Pods' packets on their way out, as the kernel has routed them.

use overlay_common::{
    addr::MacAddr,
    node::{Leaving, NODE_ZERO_CHECKSUM},
    outcome::{Hook, Outcome},
};
use overlay_tests::prog::{
    Row, Surroundings,
    fixture::{Fixture, LEAVING, Remote, SOURCE_PORT, VTEP_MAC},
    node::{Interfaces, UNDERLAY_MAC},
    oddities::Oddities,
    packet::{Local, Packet},
};

use super::{
    observers::{observer_rows, stamp_rows},
    short,
    table::{TCP, Table, cut},
};

pub fn confirm<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut rows = at_tunnel(interfaces);
    rows.extend(encapsulated(interfaces));
    rows.extend(direct(interfaces));
    rows.extend(short::outward(interfaces));
    rows.extend(short::opening(interfaces));
    rows
}

/// Pods' packets at the vxlan device.
fn at_tunnel<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Confirm, interfaces);
    let packet = leaving(&F::TUNNELLED);
    observer_rows(&mut table, &packet, &outward_strangers(&packet));
    stamp_rows(&mut table, &packet, Local::Source);

    let mut leaves = |outcome,
                      name: &str,
                      remote: &Remote<F>,
                      arrange: &dyn Fn(&mut Fixture<F>, &mut Surroundings)| {
        let packet = leaving(remote).macs(remote.vtep_mac, VTEP_MAC);
        let stamp = table.fixture.stamp(packet.flow(Local::Source));
        table.pass(outcome, name, packet.bytes(), |fixture, surroundings| {
            surroundings.hash = stamp;
            arrange(fixture, surroundings);
        });
    };
    for (name, remote) in [
        ("to a node", F::TUNNELLED),
        ("to a node that a router separates", F::ROUTED),
        ("to a node that may be reached directly", F::DIRECT),
        ("to a node for which no neighbour answers", F::SILENT),
    ] {
        leaves(Outcome::Leaving, name, &remote, &|_, _| {});
    }
    leaves(
        Outcome::Leaving,
        "of a protocol without a permit time",
        &F::TUNNELLED,
        &|fixture, _| fixture.config.tcp_permit_ns = 0,
    );
    leaves(
        Outcome::OtherPath,
        "to another VTEP than the node's",
        &F::TUNNELLED,
        &|fixture, _| {
            if let Some(node) = fixture.nodes.get_mut(&F::TUNNELLED.index) {
                node.vtep_mac = F::ROUTED.vtep_mac;
            }
        },
    );
    let without_flag = if F::NODE_FLAGS & NODE_ZERO_CHECKSUM != 0 {
        Outcome::PeerChecksum
    } else {
        Outcome::Leaving
    };
    for remote in [F::TUNNELLED, F::ROUTED] {
        leaves(
            without_flag,
            "to a node that does not say that it takes UDP checksum 0",
            &remote,
            &|fixture, _| {
                if let Some(node) = fixture.nodes.get_mut(&remote.index) {
                    node.flags &= !NODE_ZERO_CHECKSUM;
                }
            },
        );
    }
    leaves(
        Outcome::NoGateway,
        "from an interface that is no gateway",
        &F::TUNNELLED,
        &|_, surroundings| surroundings.ingress_ifindex = interfaces.pod,
    );
    leaves(
        Outcome::Nexthop,
        "to a subnet that nobody leases",
        &F::TUNNELLED,
        &|fixture, _| {
            fixture.routes.remove(&(F::TUNNELLED.subnet, F::SUBNET_LEN));
        },
    );
    leaves(
        Outcome::Nexthop,
        "to a node that is gone",
        &F::TUNNELLED,
        &|fixture, _| {
            fixture.nodes.remove(&F::TUNNELLED.index);
        },
    );
    table.rows
}

/// The same packets in tunnel packets at the underlay.
fn encapsulated<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Confirm, interfaces);
    table.surroundings.ifindex = interfaces.underlay;
    table.surroundings.tc_index = LEAVING;
    let tunnelled = |remote: &Remote<F>| {
        let inner = leaving(remote).macs(remote.vtep_mac, VTEP_MAC);
        (inner.flow(Local::Source), remote.sent(SOURCE_PORT), inner)
    };
    for (outcome, name, remote) in [
        (Outcome::PermitGranted, "to a node", F::TUNNELLED),
        (
            Outcome::PermitGranted,
            "to a node that a router separates",
            F::ROUTED,
        ),
        (
            Outcome::PermitGranted,
            "to a node that may be reached directly",
            F::DIRECT,
        ),
        (
            Outcome::OtherPath,
            "to a node for which no neighbour answers",
            F::SILENT,
        ),
    ] {
        let (key, outer, inner) = tunnelled(&remote);
        let name = format!("sent {name}");
        let frame = outer.around(&inner.bytes());
        table.pass(outcome, &name, frame, |fixture, surroundings| {
            surroundings.leaving = Some(fixture.noted(key));
        });
    }

    let (key, outer, inner) = tunnelled(&F::TUNNELLED);
    let frame = outer.around(&inner.bytes());
    for (name, len) in [
        ("an Ethernet header", 14),
        (
            "a header less a byte of the inner IP header",
            usize::from(F::OVERHEAD) + 13 + F::IP_LEN,
        ),
    ] {
        table.pass(
            Outcome::OtherPath,
            &format!("sent, {name}"),
            cut(&frame, len),
            |fixture, surroundings| surroundings.leaving = Some(fixture.noted(key)),
        );
    }
    for (_, name, outer) in F::outers(&outer) {
        table.pass(
            Outcome::OtherPath,
            &format!("sent with an odd header: {name}"),
            outer.around(&inner.bytes()),
            |fixture, surroundings| surroundings.leaving = Some(fixture.noted(key)),
        );
    }
    for (_, name, inner) in F::without_flow(&inner) {
        table.pass(
            Outcome::OtherPath,
            &format!("sent with another packet in it: {name}"),
            outer.around(&inner.bytes()),
            |fixture, surroundings| surroundings.leaving = Some(fixture.noted(key)),
        );
    }
    let mut sent = |outcome, name: &str, arrange: &dyn Fn(&mut Fixture<F>, &mut Surroundings)| {
        let name = format!("sent {name}");
        table.pass(outcome, &name, frame.clone(), |fixture, surroundings| {
            surroundings.leaving = Some(fixture.noted(key));
            arrange(fixture, surroundings);
        });
    };
    sent(
        Outcome::PermitGranted,
        "from an interface that is no gateway since",
        &|_, around| {
            around.ingress_ifindex = interfaces.pod;
        },
    );
    sent(Outcome::OtherPath, "without a note", &|_, around| {
        around.leaving = Some(Leaving::default());
    });
    sent(Outcome::OtherPath, "by another device", &|_, around| {
        around.ifindex = interfaces.wire;
    });
    sent(Outcome::OtherPath, "across a flush", &|fixture, _| {
        fixture.config.generation += 1;
    });
    sent(
        Outcome::OtherPath,
        "to a node that moved since",
        &|fixture, _| {
            let node = fixture.nodes.entry(F::TUNNELLED.index);
            node.and_modify(|node| node.vtep = F::be(F::STRANGER));
        },
    );
    sent(
        Outcome::Nexthop,
        "to a subnet that nobody leases since",
        &|fixture, _| {
            fixture.routes.remove(&(F::TUNNELLED.subnet, F::SUBNET_LEN));
        },
    );
    sent(
        Outcome::Nexthop,
        "to a node that is gone since",
        &|fixture, _| {
            fixture.nodes.remove(&F::TUNNELLED.index);
        },
    );
    sent(
        Outcome::NoPermit,
        "of a protocol without a permit time",
        &|fixture, _| {
            fixture.config.tcp_permit_ns = 0;
        },
    );
    sent(Outcome::NotOverlay, "by somebody else", &|_, around| {
        around.tc_index = 0;
    });
    table.rows
}

/// Pods' packets at the underlay.
fn direct<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Confirm, interfaces);
    table.surroundings.ifindex = interfaces.underlay;
    let packet = leaving(&F::DIRECT);
    observer_rows(&mut table, &packet, &outward_strangers(&packet));
    stamp_rows(&mut table, &packet, Local::Source);

    let mut leaves = |outcome,
                      name: &str,
                      remote: &Remote<F>,
                      neighbour: MacAddr,
                      arrange: &dyn Fn(&mut Fixture<F>, &mut Surroundings)| {
        let packet = leaving(remote).macs(neighbour, UNDERLAY_MAC);
        let stamp = table.fixture.stamp(packet.flow(Local::Source));
        let name = format!("straight {name}");
        table.pass(outcome, &name, packet.bytes(), |fixture, surroundings| {
            surroundings.hash = stamp;
            arrange(fixture, surroundings);
        });
    };
    let neighbour = F::DIRECT.neighbour;
    leaves(
        Outcome::PermitGranted,
        "to a direct peer",
        &F::DIRECT,
        neighbour,
        &|_, _| {},
    );
    leaves(
        Outcome::PermitGranted,
        "to a direct peer that does not say that it takes UDP checksum 0",
        &F::DIRECT,
        neighbour,
        &|fixture, _| {
            let node = fixture.nodes.entry(F::DIRECT.index);
            node.and_modify(|node| node.flags &= !NODE_ZERO_CHECKSUM);
        },
    );
    for (name, remote) in [
        ("to a peer that has to be tunnelled to", F::TUNNELLED),
        (
            "to a peer to which the kernel's route is the tunnel",
            F::ROUTED,
        ),
    ] {
        leaves(
            Outcome::OtherPath,
            name,
            &remote,
            remote.neighbour,
            &|_, _| {},
        );
    }
    leaves(
        Outcome::OtherPath,
        "to another neighbour than the kernel's route says",
        &F::DIRECT,
        F::TUNNELLED.neighbour,
        &|_, _| {},
    );
    leaves(
        Outcome::OtherPath,
        "by another device than the kernel's route says",
        &F::DIRECT,
        neighbour,
        &|_, around| around.ifindex = interfaces.wire,
    );
    leaves(
        Outcome::NoPermit,
        "of a protocol without a permit time",
        &F::DIRECT,
        neighbour,
        &|fixture, _| fixture.config.tcp_permit_ns = 0,
    );
    leaves(
        Outcome::NoGateway,
        "from an interface that is no gateway",
        &F::DIRECT,
        neighbour,
        &|_, around| around.ingress_ifindex = interfaces.pod,
    );
    leaves(
        Outcome::Nexthop,
        "to a subnet that nobody leases",
        &F::DIRECT,
        neighbour,
        &|fixture, _| {
            fixture.routes.remove(&(F::DIRECT.subnet, F::SUBNET_LEN));
        },
    );
    leaves(
        Outcome::Nexthop,
        "to a node that is gone",
        &F::DIRECT,
        neighbour,
        &|fixture, _| {
            fixture.nodes.remove(&F::DIRECT.index);
        },
    );
    table.rows
}

/// A packet as the kernel hands it to a device on its way out: one hop further.
pub fn leaving<F: Oddities>(remote: &Remote<F>) -> Packet<F> {
    remote.leaving(&remote.from_pod(TCP))
}

/// What is no pod's packet to another node, on its way out.
fn outward_strangers<F: Oddities>(packet: &Packet<F>) -> [(&'static str, Packet<F>); 4] {
    [
        (
            "from another network",
            packet.clone().with(|p| p.src = F::ELSEWHERE.into()),
        ),
        (
            "from a pod of another node",
            packet.clone().with(|p| p.src = F::ROUTED.pod.into()),
        ),
        (
            "to the internet",
            packet.clone().with(|p| p.dst = F::INTERNET.into()),
        ),
        (
            "to a pod of this node",
            packet.clone().with(|p| p.dst = F::OTHER_POD.into()),
        ),
    ]
}
