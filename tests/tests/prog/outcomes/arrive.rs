//! Packets out of the tunnel.

use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::prog::{
    Row,
    fixture::VXLAN_PORT,
    node::Interfaces,
    oddities::Oddities,
    packet::{TCP_SYN, Transport},
};

use super::{
    injection::arriving_injection,
    observers::observer_rows,
    table::{TCP, Table, UDP},
};
use crate::packets::tcp;

pub fn arrive<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Arrive, interfaces);
    let packet = F::TUNNELLED.to_pod(TCP);
    let strangers = [
        (
            "to this node",
            packet.clone().with(|p| p.dst = F::VTEP.into()),
        ),
        (
            "from this node's own network",
            packet.clone().with(|p| p.src = F::OTHER_POD.into()),
        ),
        (
            "from outside the pod network",
            packet.clone().with(|p| p.src = F::INTERNET.into()),
        ),
    ];
    observer_rows(&mut table, &packet, &strangers);
    arriving_injection(&mut table, &F::TUNNELLED);
    let own_tunnel = Transport::Udp {
        src: 4_789,
        dst: VXLAN_PORT,
    };
    for transport in [
        TCP,
        tcp(TCP_SYN),
        UDP,
        own_tunnel,
        Transport::EchoRequest { id: 9 },
    ] {
        table.pass(
            Outcome::Stamped,
            "from a remote pod to a local one",
            packet.clone().with(|p| p.transport = transport).bytes(),
            |_, _| {},
        );
    }
    table.rows
}
