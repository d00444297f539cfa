//! Packets of pods that pretend to be a node's.

use overlay_common::{
    config::{FASTPATH_OFF, FASTPATH_STRICT},
    outcome::Outcome,
};
use overlay_tests::prog::{
    Expected,
    fixture::{Remote, VXLAN_PORT},
    oddities::Oddities,
    packet::{TCP_ACK, Transport},
};

use super::table::{Table, UDP, ethertype};

/// What a pod of another node might send to make this one believe it is a node.
pub fn arriving_injection<F: Oddities>(table: &mut Table<F>, remote: &Remote<F>) {
    let from_pod = remote.to_pod(Transport::Udp {
        src: 4_789,
        dst: VXLAN_PORT,
    });
    let to = |address: F::Octets| from_pod.clone().with(|p| p.dst = address.into());
    for fastpath in [FASTPATH_STRICT, FASTPATH_OFF] {
        for (name, address) in [("the bridge", F::GATEWAY), ("all hosts", F::ALL_HOSTS)] {
            table.row(
                &format!("a tunnel packet of another node's pod to {name}, in mode {fastpath}"),
                to(address).bytes(),
                Expected::Drop(Outcome::PodTunnel),
                |fixture, _| fixture.config.fastpath = fastpath,
            );
        }
        for injection in F::injections(&to(F::GATEWAY)) {
            table.row(
                &format!("the same, {}, in mode {fastpath}", injection.0),
                injection.1.bytes(),
                Expected::Drop(Outcome::PodTunnel),
                |fixture, _| fixture.config.fastpath = fastpath,
            );
        }
    }
}

/// What a pod might send to make a peer, or this node, believe it is a node.
pub fn tunnel_injection<F: Oddities>(table: &mut Table<F>) {
    let to = |vtep: F::Octets, dst: u16| {
        F::TUNNELLED
            .from_pod(Transport::Udp { src: 4_789, dst })
            .with(|p| p.dst = vtep.into())
    };
    let injection = to(F::TUNNELLED.vtep, VXLAN_PORT);
    let dropped = [
        ("to a peer", injection.clone()),
        ("to a direct peer", to(F::DIRECT.vtep, VXLAN_PORT)),
        ("to this node", to(F::VTEP, VXLAN_PORT)),
        ("to the bridge of the pods", to(F::GATEWAY, VXLAN_PORT)),
        ("to all hosts", to(F::ALL_HOSTS, VXLAN_PORT)),
    ];
    for (name, address) in [("pod here", F::OTHER_POD), ("group", F::GROUP)] {
        table.pass(
            Outcome::NotOverlay,
            &format!("a pod's own tunnel to another {name}"),
            to(address, VXLAN_PORT).bytes(),
            |_, _| {},
        );
    }
    let dropped = dropped.into_iter().chain(F::injections(&injection));
    for (name, packet) in dropped {
        for fastpath in [FASTPATH_STRICT, FASTPATH_OFF] {
            let name = format!("a pod's tunnel packet, {name}, in mode {fastpath}");
            let dropped = Expected::Drop(Outcome::PodTunnel);
            table.row(&name, packet.bytes(), dropped, |fixture, _| {
                fixture.config.fastpath = fastpath;
            });
        }
    }
    let under_tag = |tci: u16, tag: [u8; 4]| {
        let frame = injection.bytes();
        let frame = [&frame[..12], &tag, &frame[12..]].concat();
        (tci, frame)
    };
    let dropped_tagged = [
        ("under a priority tag", (0, injection.bytes())),
        ("in a VLAN", (5, injection.bytes())),
        ("under two priority tags", under_tag(0, [0x81, 0, 0, 0])),
        (
            "under priority tags of both types and a priority",
            under_tag(0xe000, [0x88, 0xa8, 0, 0]),
        ),
    ];
    for (name, (tci, frame)) in dropped_tagged {
        let name = format!("a pod's tunnel packet, {name}");
        let dropped = Expected::Drop(Outcome::PodTunnel);
        table.row(&name, frame, dropped, |_, surroundings| {
            surroundings.vlan = Some(tci);
        });
    }
    let passed_tagged = [
        (
            "ARP under a priority tag",
            (0, ethertype(injection.bytes(), 0x0806)),
        ),
        (
            "a VLAN in a VLAN: no priority tag for the kernel to take off",
            under_tag(5, [0x81, 0, 0, 0]),
        ),
        (
            "a packet to the internet under a priority tag",
            (
                0,
                F::TUNNELLED
                    .from_pod(UDP)
                    .with(|p| p.dst = F::INTERNET.into())
                    .bytes(),
            ),
        ),
    ];
    for (name, (tci, frame)) in passed_tagged {
        table.pass(Outcome::Vlan, name, frame, |_, surroundings| {
            surroundings.vlan = Some(tci);
        });
    }
    let passed = [
        (
            Outcome::NotOverlay,
            "the tunnel's port at no peer",
            to(F::STRANGER, VXLAN_PORT),
        ),
        (
            Outcome::NotOverlay,
            "a peer at another port",
            to(F::TUNNELLED.vtep, 53),
        ),
        (
            Outcome::NotOverlay,
            "TCP to the tunnel's port of a peer",
            to(F::TUNNELLED.vtep, VXLAN_PORT).with(|p| {
                p.transport = Transport::Tcp {
                    src: 4_789,
                    dst: VXLAN_PORT,
                    flags: TCP_ACK,
                    options: 0,
                }
            }),
        ),
    ];
    let passed = passed.into_iter().chain(F::harmless(&injection));
    for (outcome, name, packet) in passed {
        table.pass(outcome, name, packet.bytes(), |_, _| {});
    }
}
