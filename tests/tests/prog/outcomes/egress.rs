//! Packets that pods send.

use overlay_common::{
    addr::{Address as _, MacAddr},
    flow::{Flow, FlowKey},
    maps::MAX_NODES,
    node::{Gateway, MODE_DIRECT, MODE_NONE, NODE_DIRECT, NODE_ZERO_CHECKSUM, Nexthop, Node},
    outcome::{Hook, Outcome},
};
use overlay_tests::prog::{
    Expected, Row,
    fixture::{Fixture, POD_MAC, SOURCE_PORT, remember},
    node::{GATEWAY_MAC, Interfaces},
    oddities::Oddities,
    packet::{ETH_LEN, Local, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN},
};

use super::{
    injection::tunnel_injection,
    table::{
        OTHER_HEADERS, OTHER_MAC, TCP, Table, UDP, cut, ethertype, other_version, padded, rewrite,
    },
};
use crate::packets::tcp;

/// A name, and how the entries of a flow, its node and the node's next hop differ.
type Entries<F> = (
    &'static str,
    fn(&mut Flow),
    fn(&mut Node<F>),
    fn(&mut Nexthop),
);

pub fn egress<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Egress, interfaces);
    let packet = F::TUNNELLED.from_pod(TCP);
    let frame = packet.bytes();
    let key = packet.flow(Local::Source);
    let direct = F::DIRECT.from_pod(TCP);
    let direct_key = direct.flow(Local::Source);

    table.row(
        "a permitted flow to a tunnelled peer",
        frame.clone(),
        Expected::Redirect(
            Outcome::FastTunnel,
            F::TUNNELLED.encapsulated(&frame, SOURCE_PORT),
        ),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        },
    );
    table.row(
        "a permitted flow to a peer behind a router",
        F::ROUTED.from_pod(UDP).bytes(),
        Expected::Redirect(
            Outcome::FastTunnel,
            F::ROUTED.encapsulated(&F::ROUTED.from_pod(UDP).bytes(), SOURCE_PORT),
        ),
        |fixture, _| {
            fixture.grant(F::ROUTED.from_pod(UDP).flow(Local::Source), &F::ROUTED);
        },
    );
    table.row(
        "a permitted flow to a direct peer",
        direct.bytes(),
        Expected::Redirect(Outcome::FastDirect, F::DIRECT.routed(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &F::DIRECT);
        },
    );
    let asked = packet.clone().with(|p| p.dst = F::ELSEWHERE.into());
    let asked_key = asked.flow(Local::Source);
    table.row(
        "a permitted flow to a service",
        asked.bytes(),
        Expected::Redirect(
            Outcome::FastTranslated,
            F::TUNNELLED.encapsulated(&packet.bytes(), SOURCE_PORT),
        ),
        |fixture, _| rewrite::<F>(fixture.grant(asked_key, &F::TUNNELLED), packet.dst),
    );
    table.row(
        "a TTL that is enough for one hop",
        packet.clone().with(|p| p.ttl = 2).bytes(),
        Expected::Redirect(
            Outcome::FastTunnel,
            F::TUNNELLED.encapsulated(&packet.clone().with(|p| p.ttl = 2).bytes(), SOURCE_PORT),
        ),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).egress_ttl = 1;
        },
    );

    table.switched_off(&frame, key);
    table.pass(
        Outcome::Truncated,
        "an Ethernet header alone",
        cut(&frame, 14),
        |_, _| {},
    );
    table.pass(
        Outcome::Truncated,
        "an IP header less a byte",
        cut(&frame, ETH_LEN + F::IP_LEN - 1),
        |_, _| {},
    );
    table.pass(
        Outcome::Truncated,
        "TCP without its flags",
        cut(&frame, ETH_LEN + F::IP_LEN + 13),
        |_, _| {},
    );
    table.pass(
        Outcome::Vlan,
        "a VLAN tag",
        frame.clone(),
        |fixture, surroundings| {
            fixture.grant(key, &F::TUNNELLED);
            surroundings.vlan = Some(5);
        },
    );
    table.pass(F::ARP, "ARP", ethertype(frame.clone(), 0x0806), |_, _| {});
    table.pass(
        Outcome::NotIp,
        "the other version than the type says",
        other_version(frame.clone()),
        |_, _| {},
    );
    for (outcome, name, packet) in F::without_flow(&packet) {
        table.pass(outcome, name, packet.bytes(), |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    for (name, dst) in [
        ("to the internet", F::INTERNET),
        ("to a pod of this node", F::OTHER_POD),
        ("to a peer's own address", F::TUNNELLED.vtep),
    ] {
        table.pass(
            Outcome::NotOverlay,
            name,
            packet.clone().with(|p| p.dst = dst.into()).bytes(),
            |_, _| {},
        );
    }

    tunnel_injection(&mut table);

    table.pass(
        Outcome::NoPermit,
        "a flow without an entry",
        frame.clone(),
        |_, _| {},
    );
    table.pass(
        Outcome::NoPermit,
        "a permit that ran out",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).egress_until = 1;
        },
    );
    table.pass(
        Outcome::NoPermit,
        "a permit for the other direction only",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).egress_until = 0;
        },
    );
    table.pass(
        Outcome::NoPermit,
        "an entry that was passed on to another flow",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).id ^= 1;
        },
    );
    table.pass(
        Outcome::NoPermit,
        "a permit for no way at all",
        frame.clone(),
        |fixture, _| fixture.grant(key, &F::TUNNELLED).egress_mode = MODE_NONE,
    );
    for (name, flags) in [
        ("SYN", TCP_SYN),
        ("SYN and ACK", TCP_SYN | TCP_ACK),
        ("FIN", TCP_FIN | TCP_ACK),
        ("RST", TCP_RST),
        ("no TCP flag at all", 0),
        ("PSH alone", TCP_PSH),
    ] {
        table.pass(
            Outcome::TcpControl,
            name,
            F::TUNNELLED.from_pod(tcp(flags)).bytes(),
            |fixture, _| {
                fixture.grant(key, &F::TUNNELLED);
            },
        );
    }
    table.pass(
        Outcome::Generation,
        "a permit of before the flush",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
            fixture.config.generation += 1;
        },
    );
    table.pass(
        Outcome::NotGateway,
        "a frame for another MAC than the gateway's",
        packet.clone().macs(OTHER_MAC, POD_MAC).bytes(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        },
    );
    let mut group = POD_MAC;
    group.octets[0] |= 1;
    for (name, source) in [
        ("a frame from a group's address", group),
        ("a frame from no address", MacAddr::ZERO),
    ] {
        table.pass(
            Outcome::NotGateway,
            name,
            packet.clone().macs(GATEWAY_MAC, source).bytes(),
            |fixture, _| {
                fixture.grant(key, &F::TUNNELLED);
            },
        );
    }
    // A pod on a netkit in mode L3.
    let bare = packet.clone().macs(MacAddr::ZERO, MacAddr::ZERO).bytes();
    let none = |fixture: &mut Fixture<F>| {
        fixture.grant(key, &F::TUNNELLED).gateway_mac = MacAddr::ZERO;
    };
    table.row(
        "without addresses where frames have none",
        bare.clone(),
        Expected::Redirect(
            Outcome::FastTunnel,
            F::TUNNELLED.encapsulated(&bare, SOURCE_PORT),
        ),
        |fixture, _| {
            none(fixture);
            fixture.gateways.insert(interfaces.pod, Gateway::default());
        },
    );
    for (name, ifindex) in [
        (
            "without addresses where frames have some",
            interfaces.gateway,
        ),
        ("without addresses at a port of a bridge", interfaces.pod),
    ] {
        table.pass(Outcome::NotGateway, name, bare.clone(), |fixture, _| {
            none(fixture);
            let gateway = fixture.gateways[&interfaces.gateway];
            fixture.gateways = [(ifindex, gateway)].into();
        });
    }
    for (name, change) in OTHER_HEADERS {
        let mut other = packet.clone();
        (other.tos, other.ttl) = change;
        table.pass(Outcome::OtherHeader, name, other.bytes(), |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
        table.row(
            name,
            other.bytes(),
            Expected::Redirect(
                Outcome::FastTunnel,
                F::TUNNELLED.encapsulated(&other.bytes(), SOURCE_PORT),
            ),
            |fixture, _| remember(fixture.grant(key, &F::TUNNELLED), &other),
        );
    }
    for ttl in [0, 1] {
        table.pass(
            Outcome::Ttl,
            "a TTL that ends here",
            packet.clone().with(|p| p.ttl = ttl).bytes(),
            |fixture, _| {
                fixture.grant(key, &F::TUNNELLED);
            },
        );
    }
    nexthop(&mut table, &frame, key);
    sizes(&mut table);
    table.rows
}

fn nexthop<F: Oddities>(table: &mut Table<F>, frame: &[u8], key: FlowKey<F>) {
    table.pass(
        Outcome::Nexthop,
        "a node that is gone",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
            fixture.nodes.remove(&F::TUNNELLED.index);
        },
    );
    table.pass(
        Outcome::Nexthop,
        "a node index beyond the table",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).node = u16::try_from(MAX_NODES).expect("fits");
        },
    );
    let changes: [Entries<F>; 5] = [
        (
            "a node that moved since the permit was granted",
            |_| {},
            |node| node.vtep = F::be(F::STRANGER),
            |_| {},
        ),
        (
            "a way to another address",
            |flow| flow.vtep = F::be(F::STRANGER).tag(),
            |_| {},
            |_| {},
        ),
        (
            "a way that became another since the permit was granted",
            |_| {},
            |_| {},
            |nexthop| nexthop.path_changes += 1,
        ),
        (
            "a way of before the node's first",
            |flow| flow.path_changes = 0,
            |_| {},
            |_| {},
        ),
        (
            "a direct way to a node that is not to be reached directly",
            |flow| flow.egress_mode = MODE_DIRECT,
            |_| {},
            |_| {},
        ),
    ];
    for (name, change_flow, change_node, change_nexthop) in changes {
        table.pass(Outcome::Nexthop, name, frame.to_vec(), |fixture, _| {
            let node = F::TUNNELLED.index;
            change_flow(fixture.grant(key, &F::TUNNELLED));
            fixture.nodes.entry(node).and_modify(change_node);
            fixture.nexthops.entry(node).and_modify(change_nexthop);
        });
    }
    // What people are shown of a node decides nothing.
    table.row(
        "a permit for another way than the last one to the node",
        frame.to_vec(),
        Expected::Redirect(
            Outcome::FastTunnel,
            F::TUNNELLED.encapsulated(frame, SOURCE_PORT),
        ),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
            let nexthop = fixture.nexthops.entry(F::TUNNELLED.index);
            nexthop.and_modify(|nexthop| {
                nexthop.vtep = F::be(F::STRANGER).tag();
                nexthop.dst_mac = OTHER_MAC;
                nexthop.mode = MODE_DIRECT;
            });
        },
    );
    let direct = F::DIRECT.from_pod(TCP);
    table.pass(
        Outcome::Nexthop,
        "a direct way to a node that is not to be reached directly any more",
        direct.bytes(),
        |fixture, _| {
            fixture.grant(direct.flow(Local::Source), &F::DIRECT);
            let node = fixture.nodes.entry(F::DIRECT.index);
            node.and_modify(|node| node.flags &= !NODE_DIRECT);
        },
    );
    if F::NODE_FLAGS & NODE_ZERO_CHECKSUM != 0 {
        table.pass(
            Outcome::Nexthop,
            "a node that does not take UDP checksum 0 any more",
            frame.to_vec(),
            |fixture, _| {
                fixture.grant(key, &F::TUNNELLED);
                let node = fixture.nodes.entry(F::TUNNELLED.index);
                node.and_modify(|node| node.flags &= !NODE_ZERO_CHECKSUM);
            },
        );
    }
}

fn sizes<F: Oddities>(table: &mut Table<F>) {
    let tunnelled = F::TUNNELLED.from_pod(UDP);
    let direct = F::DIRECT.from_pod(UDP);
    let mtu = usize::from(F::POD_MTU);
    for (len, fits) in [(mtu - 1, true), (mtu, true), (mtu + 1, false)] {
        let frame = tunnelled.clone().sized(len).bytes();
        let expected = if fits {
            let sent = F::TUNNELLED.encapsulated(&frame, SOURCE_PORT);
            Expected::Redirect(Outcome::FastTunnel, sent)
        } else {
            Expected::Pass(Outcome::Mtu)
        };
        let name = format!("{len} bytes where {mtu} fit, by tunnel");
        table.row(&name, frame, expected, |fixture, _| {
            fixture.grant(tunnelled.flow(Local::Source), &F::TUNNELLED);
        });
    }
    for (len, fits) in [(1499, true), (1500, true), (1501, false)] {
        let frame = direct.clone().sized(len).bytes();
        let expected = if fits {
            Expected::Redirect(Outcome::FastDirect, F::DIRECT.routed(&frame))
        } else {
            Expected::Pass(Outcome::Mtu)
        };
        let name = format!("{len} bytes where 1500 fit, directly");
        table.row(&name, frame, expected, |fixture, _| {
            fixture.grant(direct.flow(Local::Source), &F::DIRECT);
        });
    }
    // The IP header, and 32 bytes of TCP with the timestamp option.
    let headers = u32::try_from(F::IP_LEN + 32).expect("short");
    let fit = 1500 - headers;
    for (gso_size, fits) in [(fit - 1, true), (fit, true), (fit + 1, false)] {
        let packet = F::DIRECT.from_pod(TCP).sized(3000);
        let frame = packet.bytes();
        let expected = if fits {
            Expected::Redirect(Outcome::FastDirect, F::DIRECT.routed(&frame))
        } else {
            Expected::Pass(Outcome::Mtu)
        };
        let name = format!("segments of {gso_size} bytes where {fit} fit, directly");
        table.row(&name, frame, expected, |fixture, surroundings| {
            fixture.grant(packet.flow(Local::Source), &F::DIRECT);
            surroundings.gso_size = gso_size;
        });
    }
    // A test run cannot say which protocol the segments are of, and the kernel encapsulates no
    // others than TCP and UDP: what fits gets as far as the call that is refused.
    let fit = u32::from(F::POD_MTU) - headers;
    for (gso_size, outcome) in [(fit, Outcome::AdjustRoom), (fit + 1, Outcome::Mtu)] {
        let packet = F::TUNNELLED.from_pod(TCP).sized(3000);
        let name = format!("segments of {gso_size} bytes where {fit} fit, by tunnel");
        table.pass(outcome, &name, packet.bytes(), |fixture, surroundings| {
            fixture.grant(packet.flow(Local::Source), &F::TUNNELLED);
            surroundings.gso_size = gso_size;
        });
    }
    let frame = tunnelled.bytes();
    for (name, frame) in [
        ("a byte behind the IP packet", padded(frame.clone(), 1)),
        ("an IP length one too long", F::longer(&frame, 1)),
        ("an IP length one too short", F::longer(&frame, -1)),
        ("an IP length of 0", F::without_length(&frame)),
    ] {
        table.pass(Outcome::Length, name, frame, |fixture, _| {
            fixture.grant(tunnelled.flow(Local::Source), &F::TUNNELLED);
        });
    }
}
