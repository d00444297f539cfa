//! Packets to pods, as the kernel has routed them.

use overlay_common::{
    addr::MacAddr,
    node::Gateway,
    outcome::{Hook, Outcome},
};
use overlay_tests::prog::{
    Row,
    fixture::POD_MAC,
    node::{GATEWAY_MAC, Interfaces},
    oddities::Oddities,
    packet::Local,
};

use super::{
    observers::{observer_rows, stamp_rows},
    table::{TCP, Table},
};

pub fn deliver<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Deliver, interfaces);
    let packet = F::TUNNELLED
        .to_pod(TCP)
        .macs(POD_MAC, GATEWAY_MAC)
        .with(|p| p.ttl = 63);
    let strangers = [
        (
            "from a pod of this node",
            packet.clone().with(|p| p.src = F::OTHER_POD.into()),
        ),
        (
            "from outside the pod network",
            packet.clone().with(|p| p.src = F::INTERNET.into()),
        ),
        (
            "to an address outside this node's subnet",
            packet.clone().with(|p| p.dst = F::ELSEWHERE.into()),
        ),
    ];
    observer_rows(&mut table, &packet, &strangers);
    stamp_rows(&mut table, &packet, Local::Destination);
    let stamp = table.fixture.stamp(packet.flow(Local::Destination));
    table.pass(
        Outcome::NotGateway,
        "flooded by the bridge",
        packet
            .clone()
            .macs(MacAddr::new([0xff; 6]), GATEWAY_MAC)
            .bytes(),
        |_, surroundings| surroundings.hash = stamp,
    );
    table.pass(
        Outcome::UnknownPod,
        "at a port where the address was not seen: the bridge floods",
        packet.bytes(),
        |fixture, surroundings| {
            surroundings.hash = stamp;
            for port in fixture.pods.values_mut() {
                port.ifindex += 1;
            }
        },
    );
    table.pass(
        Outcome::UnknownPod,
        "to a pod that has sent nothing yet",
        packet.bytes(),
        |fixture, surroundings| {
            surroundings.hash = stamp;
            fixture.pods.clear();
        },
    );
    let bare = packet.clone().macs(MacAddr::ZERO, MacAddr::ZERO).bytes();
    table.pass(
        Outcome::UnknownPod,
        "without addresses where frames have some",
        bare.clone(),
        |_, surroundings| surroundings.hash = stamp,
    );
    table.pass(
        Outcome::PermitGranted,
        "without addresses where frames have none",
        bare,
        |fixture, surroundings| {
            surroundings.hash = stamp;
            fixture.gateways.insert(interfaces.pod, Gateway::default());
        },
    );
    table.pass(
        Outcome::UnknownPeer,
        "from a subnet that nobody leases",
        packet.bytes(),
        |fixture, surroundings| {
            surroundings.hash = stamp;
            fixture.routes.remove(&(F::TUNNELLED.subnet, F::SUBNET_LEN));
        },
    );
    table.pass(
        Outcome::PermitGranted,
        "as it came out of the tunnel",
        packet.bytes(),
        |_, surroundings| surroundings.hash = stamp,
    );
    table.pass(
        Outcome::NoPermit,
        "of a protocol without a permit time",
        packet.bytes(),
        |fixture, surroundings| {
            surroundings.hash = stamp;
            fixture.config.tcp_permit_ns = 0;
        },
    );
    table.pass(
        Outcome::PermitGranted,
        "as it came directly",
        packet.bytes(),
        |_, surroundings| {
            surroundings.hash = stamp;
            surroundings.ingress_ifindex = interfaces.underlay;
        },
    );
    table.rows
}
