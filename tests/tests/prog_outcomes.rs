//! Every outcome of every program, on the simplest packet that has it.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use overlay_common::{
    addr::{Address as _, MacAddr},
    config::{Config, FASTPATH_OFF, FASTPATH_STRICT},
    family::{V4, V6},
    flow::{Flow, FlowKey, REWRITE_DESTINATION},
    maps::MAX_NODES,
    node::{
        Leaving, MODE_DIRECT, MODE_NONE, MODE_TUNNEL, NODE_DIRECT, NODE_ZERO_CHECKSUM, Nexthop,
        Node,
    },
    outcome::{Hook, Outcome},
    slow::EVERY_FLOW,
};
use overlay_tests::{
    document::{document, rows, section},
    in_both_families,
    prog::{
        Bench, Expected, Row, Seen, Surroundings, check_rows,
        fixture::{
            Fixture, LEAVING, POD_MAC, Remote, SOURCE_PORT, VTEP_MAC, VXLAN_PORT, delivered,
            remember,
        },
        node::{GATEWAY_MAC, Interfaces, POD_VETH_MTU, UNDERLAY_MAC, on_node},
        oddities::Oddities,
        packet::{ETH_LEN, Local, Packet, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN, Transport},
    },
};

/// A name, and how the entries of a flow, its node and the node's next hop differ.
type Entries<F> = (
    &'static str,
    fn(&mut Flow),
    fn(&mut Node<F>),
    fn(&mut Nexthop),
);

/// A name, and how a packet differs.
type Alteration<F> = (&'static str, fn(&mut Packet<F>));

/// Data of an established connection, with the timestamp option.
const TCP: Transport = Transport::Tcp {
    src: 40_000,
    dst: 80,
    flags: TCP_ACK | TCP_PSH,
    options: 12,
};
const UDP: Transport = Transport::Udp {
    src: 5_353,
    dst: 53,
};
/// TOS and TTL with which packets do not fall under the lease of the others.
const OTHER_HEADERS: [(&str, (u8, u8)); 4] = [
    ("another DSCP than the lease was earned with", (46 << 2, 64)),
    ("the smallest other DSCP", (4, 64)),
    ("a smaller TTL than the lease was earned with", (0, 63)),
    ("a larger TTL than the lease was earned with", (0, 65)),
];
const OTHER_MAC: MacAddr = MacAddr::new([0x02, 0x77, 0, 0, 0, 7]);
const fn tcp(flags: u8) -> Transport {
    Transport::Tcp {
        src: 40_000,
        dst: 80,
        flags,
        options: 0,
    }
}

/// Has the entry rewrite the remote end's address to this one; its port stays.
fn rewrite<F: Oddities>(flow: &mut Flow, address: F::Address) {
    let address: F::Be = address.into();
    flow.rewrite = REWRITE_DESTINATION;
    flow.rewrite_address = bytemuck::cast(address.wide());
    flow.rewrite_port = 80_u16.to_be_bytes();
}

/// The rows of one program.
struct Table<F: Oddities> {
    hook: Hook,
    fixture: Fixture<F>,
    surroundings: Surroundings,
    rows: Vec<Row<F>>,
}

impl<F: Oddities> Table<F> {
    fn new(hook: Hook, interfaces: Interfaces) -> Self {
        let (ifindex, ingress_ifindex) = match hook {
            Hook::Egress => (interfaces.pod, interfaces.pod),
            Hook::Confirm => (interfaces.tunnel, interfaces.gateway),
            Hook::Ingress => (interfaces.underlay, interfaces.underlay),
            Hook::Arrive => (interfaces.tunnel, interfaces.tunnel),
            Hook::Deliver => (interfaces.pod, interfaces.tunnel),
            Hook::Guard => unreachable!("the guard is no TC program"),
        };
        Self {
            hook,
            fixture: Fixture::new(interfaces),
            surroundings: Surroundings {
                ifindex,
                ingress_ifindex,
                ..Surroundings::default()
            },
            rows: Vec::new(),
        }
    }

    fn row(
        &mut self,
        name: &str,
        frame: Vec<u8>,
        expected: Expected,
        arrange: impl FnOnce(&mut Fixture<F>, &mut Surroundings),
    ) {
        let mut row = Row {
            name: name.to_owned(),
            hook: self.hook,
            frame,
            surroundings: self.surroundings,
            fixture: self.fixture.clone(),
            expected,
        };
        arrange(&mut row.fixture, &mut row.surroundings);
        self.rows.push(row);
    }

    /// A row in which the kernel goes on with the packet.
    fn pass(
        &mut self,
        outcome: Outcome,
        name: &str,
        frame: Vec<u8>,
        arrange: impl FnOnce(&mut Fixture<F>, &mut Surroundings),
    ) {
        self.row(name, frame, Expected::Pass(outcome), arrange);
    }
}

/// The frame with another Ethernet type.
fn ethertype(mut frame: Vec<u8>, ethertype: u16) -> Vec<u8> {
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

/// The frame with the byte at `offset` set.
fn byte(mut frame: Vec<u8>, offset: usize, value: u8) -> Vec<u8> {
    frame[offset] = value;
    frame
}

/// The frame with an IP header of version 6 instead of 4, or 4 instead of 6.
fn other_version(mut frame: Vec<u8>) -> Vec<u8> {
    frame[ETH_LEN] ^= 0x20;
    frame
}

/// The frame with bytes behind what the IP header announces.
fn padded(frame: Vec<u8>, count: usize) -> Vec<u8> {
    [frame, vec![0; count]].concat()
}

fn cut(frame: &[u8], len: usize) -> Vec<u8> {
    frame[..len].to_vec()
}

fn egress<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Egress, interfaces);
    let packet = F::TUNNELLED.from_pod(TCP);
    let frame = packet.bytes();
    let key = packet.flow(Local::Source);
    let direct = F::DIRECT.from_pod(TCP);
    let direct_key = direct.flow(Local::Source);

    table.row(
        "a leased flow to a tunnelled peer",
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
        "a leased flow to a peer behind a router",
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
        "a leased flow to a direct peer",
        direct.bytes(),
        Expected::Redirect(Outcome::FastDirect, F::DIRECT.routed(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &F::DIRECT);
        },
    );
    let asked = packet.clone().with(|p| p.dst = F::ELSEWHERE.into());
    let asked_key = asked.flow(Local::Source);
    table.row(
        "a leased flow to a service",
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

    table.pass(
        Outcome::Disabled,
        "a leased flow while the fast path is off",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
            fixture.config.fastpath = FASTPATH_OFF;
        },
    );
    table.pass(
        Outcome::Unserved,
        "a node without pods of the family",
        frame.clone(),
        |fixture, _| fixture.config = Config::default(),
    );
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
        Outcome::NoLease,
        "a flow without an entry",
        frame.clone(),
        |_, _| {},
    );
    table.pass(
        Outcome::NoLease,
        "a lease that ran out",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).egress_until = 1;
        },
    );
    table.pass(
        Outcome::NoLease,
        "a lease for the other direction only",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).egress_until = 0;
        },
    );
    table.pass(
        Outcome::NoLease,
        "an entry that was passed on to another flow",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).id ^= 1;
        },
    );
    table.pass(
        Outcome::NoLease,
        "a lease for no way at all",
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
        "a lease of before the flush",
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
    egress_nexthop(&mut table, &frame, key);
    egress_sizes(&mut table);
    table.rows
}

/// What a pod of another node might send to make this one believe it is a node.
fn arriving_injection<F: Oddities>(table: &mut Table<F>, remote: &Remote<F>) {
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
fn tunnel_injection<F: Oddities>(table: &mut Table<F>) {
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

fn egress_nexthop<F: Oddities>(table: &mut Table<F>, frame: &[u8], key: FlowKey<F>) {
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
            "a node that moved since the lease was granted",
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
            "a way that became another since the lease was granted",
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
        "a lease for another way than the last one to the node",
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

fn egress_sizes<F: Oddities>(table: &mut Table<F>) {
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

fn ingress<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Ingress, interfaces);
    let inner = F::TUNNELLED.to_pod(TCP);
    let key = inner.flow(Local::Destination);
    let outer = F::TUNNELLED.outer();
    let frame = outer.around(&inner.bytes());
    let direct = F::DIRECT.to_pod(TCP);
    let direct_key = direct.flow(Local::Destination);

    arriving_injection(&mut table, &F::DIRECT);
    table.pass(
        Outcome::PodMoved,
        "a leased flow whose pod's MAC was seen elsewhere since",
        frame.clone(),
        |fixture, _| fixture.grant(key, &F::TUNNELLED).moves = 7,
    );
    table.row(
        "a leased flow through a tunnel",
        frame.clone(),
        Expected::Redirect(Outcome::FastTunnel, delivered::<F>(&inner.bytes())),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        },
    );
    table.row(
        "a leased flow that came directly",
        direct.bytes(),
        Expected::Redirect(Outcome::FastDirect, delivered::<F>(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &F::DIRECT);
        },
    );
    table.row(
        "a peer that may be reached directly, but used the tunnel when it got its lease",
        F::DIRECT
            .outer()
            .around(&direct.clone().macs(VTEP_MAC, F::DIRECT.vtep_mac).bytes()),
        Expected::Redirect(Outcome::FastTunnel, delivered::<F>(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &F::DIRECT).ingress_mode = MODE_TUNNEL;
        },
    );

    table.pass(
        Outcome::Disabled,
        "a leased flow while the fast path is off",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
            fixture.config.fastpath = FASTPATH_OFF;
        },
    );
    table.pass(
        Outcome::Unserved,
        "a node without pods of the family",
        frame.clone(),
        |fixture, _| fixture.config = Config::default(),
    );
    let udp = ETH_LEN + F::IP_LEN;
    let inner_ip = ETH_LEN + usize::from(F::OVERHEAD);
    for (name, len) in [
        ("an Ethernet header alone", 14),
        ("an outer IP header less a byte", udp - 1),
        ("an outer UDP header less a byte", udp + 7),
        (
            "headers less a byte of the inner Ethernet header",
            inner_ip - 1,
        ),
        (
            "headers less a byte of the inner IP header",
            inner_ip + F::IP_LEN - 1,
        ),
        ("inner TCP without its flags", inner_ip + F::IP_LEN + 13),
    ] {
        table.pass(Outcome::Truncated, name, cut(&frame, len), |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    table.pass(F::ARP, "ARP", ethertype(frame.clone(), 0x0806), |_, _| {});
    table.pass(
        Outcome::NotIp,
        "ARP in the tunnel",
        outer.around(&ethertype(inner.bytes(), 0x0806)),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        },
    );
    table.pass(
        Outcome::NotIp,
        "the other version than the type says, in the tunnel",
        outer.around(&other_version(inner.bytes())),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        },
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
    ingress_not_overlay(&mut table, &frame, key);
    for (outcome, name, outer) in F::outers(&outer) {
        let name = format!("a tunnel packet with an odd header: {name}");
        let frame = outer.around(&inner.bytes());
        table.pass(outcome, &name, frame, |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    for (outcome, name, packet) in F::without_flow(&inner) {
        let name = format!("in the tunnel: {name}");
        let frame = outer.around(&packet.bytes());
        table.pass(outcome, &name, frame, |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    for (outcome, name, packet) in F::without_flow(&direct) {
        let name = format!("directly: {name}");
        table.pass(outcome, &name, packet.bytes(), |fixture, _| {
            fixture.grant(direct_key, &F::DIRECT);
        });
    }
    ingress_vxlan(&mut table, &inner, key);
    ingress_leases(&mut table, &frame, key);
    ingress_peers(&mut table, &inner, key);

    for (name, by, frame, remote, key) in [
        ("a tunnel packet", MODE_DIRECT, &frame, &F::TUNNELLED, key),
        (
            "a direct packet",
            MODE_TUNNEL,
            &direct.bytes(),
            &F::DIRECT,
            direct_key,
        ),
    ] {
        let name = format!("{name} of a flow whose packets came the other way");
        table.pass(Outcome::OtherMode, &name, frame.clone(), |fixture, _| {
            fixture.grant(key, remote).ingress_mode = by;
        });
    }
    let received = inner.clone().with(|p| {
        p.src = F::ELSEWHERE.into();
        p.transport = p.transport.with_ports(|(_, dst)| (80, dst));
    });
    table.row(
        "a leased flow from a service",
        frame.clone(),
        Expected::Redirect(Outcome::FastTranslated, delivered::<F>(&received.bytes())),
        |fixture, _| rewrite::<F>(fixture.grant(key, &F::TUNNELLED), received.src),
    );
    table.pass(
        Outcome::NoLease,
        "a direct packet without a lease",
        direct.bytes(),
        |_, _| {},
    );
    ingress_sizes(&mut table);
    for (inner_tos, outer_tos) in [(0, 3), (0xb8, 0xbb)] {
        let inner = inner.clone().with(|p| p.tos = inner_tos).bytes();
        let mut outer = outer.clone();
        outer.tos = outer_tos;
        table.pass(
            Outcome::Ecn,
            "congestion on the way of a sender that does not know of it",
            outer.around(&inner),
            |fixture, _| {
                fixture.grant(key, &F::TUNNELLED).ingress_mode |= inner_tos;
            },
        );
    }
    table.pass(
        Outcome::AdjustRoom,
        "segments of no protocol, which the kernel refuses to decapsulate",
        frame,
        |fixture, surroundings| {
            fixture.grant(key, &F::TUNNELLED);
            surroundings.gso_size = 1000;
        },
    );
    let datagrams = F::TUNNELLED.to_pod(UDP);
    table.pass(
        Outcome::UdpGso,
        "datagrams in one GSO packet out of the tunnel",
        outer.around(&datagrams.bytes()),
        |fixture, surroundings| {
            fixture.grant(datagrams.flow(Local::Destination), &F::TUNNELLED);
            surroundings.gso_size = 1000;
        },
    );
    table.rows
}

fn ingress_not_overlay<F: Oddities>(table: &mut Table<F>, frame: &[u8], key: FlowKey<F>) {
    let not_ours = overlay_tests::prog::packet::with_macs(frame, OTHER_MAC, F::TUNNELLED.neighbour);
    let mut other_port = F::TUNNELLED.outer();
    other_port.dst_port = VXLAN_PORT + 1;
    let mut other_node = F::TUNNELLED.outer();
    other_node.dst = F::STRANGER.into();
    let inner = F::TUNNELLED.to_pod(TCP);
    let host_tcp = Packet::<F>::new(F::TUNNELLED.vtep, F::VTEP, TCP)
        .macs(UNDERLAY_MAC, F::TUNNELLED.neighbour);
    let from_outside = F::DIRECT.to_pod(TCP).with(|p| p.src = F::INTERNET.into());
    let from_local = F::DIRECT.to_pod(TCP).with(|p| p.src = F::OTHER_POD.into());
    let to_remote = F::DIRECT.to_pod(TCP).with(|p| p.dst = F::UNLEASED.into());
    for (name, frame) in [
        ("a frame for another host", not_ours),
        (
            "UDP to this node at another port",
            other_port.around(&inner.bytes()),
        ),
        (
            "a tunnel packet to another address",
            other_node.around(&inner.bytes()),
        ),
        ("TCP to this node", host_tcp.bytes()),
        ("to a pod from outside", from_outside.bytes()),
        ("to a pod from an address of this node", from_local.bytes()),
        ("to a pod of another node", to_remote.bytes()),
    ] {
        table.pass(Outcome::NotOverlay, name, frame, |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
}

fn ingress_vxlan<F: Oddities>(table: &mut Table<F>, inner: &Packet<F>, key: FlowKey<F>) {
    let vxlan = ETH_LEN + F::IP_LEN + 8;
    let outer = F::TUNNELLED.outer();
    let frame = outer.around(&inner.bytes());
    let mut other_vni = outer.clone();
    other_vni.vni += 1;
    let rows = [
        ("no valid VNI", byte(frame.clone(), vxlan, 0)),
        ("a flag of an extension", byte(frame.clone(), vxlan, 0x0c)),
        ("a group policy id", byte(frame.clone(), vxlan + 3, 1)),
        ("the last reserved byte set", byte(frame, vxlan + 7, 1)),
        ("another VNI", other_vni.around(&inner.bytes())),
        (
            "an inner frame for another VTEP",
            outer.around(&inner.clone().macs(OTHER_MAC, F::TUNNELLED.vtep_mac).bytes()),
        ),
        (
            "an inner broadcast frame",
            outer.around(
                &inner
                    .clone()
                    .macs(MacAddr::new([0xff; 6]), F::TUNNELLED.vtep_mac)
                    .bytes(),
            ),
        ),
    ];
    for (name, frame) in rows {
        table.pass(Outcome::VxlanHeader, name, frame, |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
}

fn ingress_leases<F: Oddities>(table: &mut Table<F>, frame: &[u8], key: FlowKey<F>) {
    table.pass(
        Outcome::NoLease,
        "a flow without an entry",
        frame.to_vec(),
        |_, _| {},
    );
    table.pass(
        Outcome::NoLease,
        "a lease that ran out",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).ingress_until = 1;
        },
    );
    table.pass(
        Outcome::NoLease,
        "a lease for the other direction only",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).ingress_until = 0;
        },
    );
    table.pass(
        Outcome::NoLease,
        "an entry that was passed on to another flow",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).id ^= 1;
        },
    );
    table.pass(
        Outcome::Generation,
        "a lease of before the flush",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
            fixture.config.generation += 1;
        },
    );
    for (name, flags) in [
        ("SYN", TCP_SYN),
        ("SYN and ACK", TCP_SYN | TCP_ACK),
        ("FIN", TCP_FIN | TCP_ACK),
        ("RST", TCP_RST),
    ] {
        let frame = F::TUNNELLED
            .outer()
            .around(&F::TUNNELLED.to_pod(tcp(flags)).bytes());
        table.pass(Outcome::TcpControl, name, frame, |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    for (name, change) in OTHER_HEADERS {
        let mut inner = F::TUNNELLED.to_pod(TCP);
        (inner.tos, inner.ttl) = change;
        let inner = inner.bytes();
        let frame = F::TUNNELLED.outer().around(&inner);
        table.pass(Outcome::OtherHeader, name, frame, |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    for ttl in [0, 1] {
        let inner = F::TUNNELLED.to_pod(TCP).with(|p| p.ttl = ttl);
        table.pass(
            Outcome::Ttl,
            "a TTL that ends here",
            F::TUNNELLED.outer().around(&inner.bytes()),
            |fixture, _| {
                fixture.grant(key, &F::TUNNELLED);
            },
        );
    }
}

fn ingress_peers<F: Oddities>(table: &mut Table<F>, inner: &Packet<F>, key: FlowKey<F>) {
    let from = |address: F::Octets| {
        let mut outer = F::TUNNELLED.outer();
        outer.src = address.into();
        outer.around(&inner.bytes())
    };
    table.pass(
        Outcome::UnknownPeer,
        "a tunnel packet from no peer, of no flow",
        from(F::STRANGER),
        |_, _| {},
    );
    for (name, address) in [
        ("another peer", F::ROUTED.vtep),
        ("no peer", F::STRANGER),
        ("this node itself", F::VTEP),
    ] {
        let name = format!("a leased flow's packet from {name}");
        table.pass(Outcome::WrongPeer, &name, from(address), |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    table.pass(
        Outcome::WrongPeer,
        "a node that is gone",
        from(F::TUNNELLED.vtep),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
            fixture.nodes.remove(&F::TUNNELLED.index);
        },
    );
}

fn ingress_sizes<F: Oddities>(table: &mut Table<F>) {
    let arrive = |remote: &Remote<F>, packet: &Packet<F>| {
        if remote.mode == MODE_DIRECT {
            (Outcome::FastDirect, packet.bytes())
        } else {
            (Outcome::FastTunnel, remote.outer().around(&packet.bytes()))
        }
    };
    for remote in [F::TUNNELLED, F::DIRECT] {
        let key = remote.to_pod(UDP).flow(Local::Destination);
        for (len, fits) in [(1449, true), (1450, true), (1451, false)] {
            let packet = remote.to_pod(UDP).sized(len);
            let (fast, frame) = arrive(&remote, &packet);
            let expected = if fits {
                Expected::Redirect(fast, delivered::<F>(&packet.bytes()))
            } else {
                Expected::Pass(Outcome::Mtu)
            };
            let name = format!("{len} bytes to a pod that takes {POD_VETH_MTU}: {fast:?}");
            table.row(&name, frame, expected, |fixture, _| {
                fixture.grant(key, &remote);
            });
        }
        let whole = remote.to_pod(UDP).bytes();
        for (name, inner) in [
            ("a byte behind the IP packet", padded(whole.clone(), 1)),
            ("an IP length one too long", F::longer(&whole, 1)),
            ("an IP length one too short", F::longer(&whole, -1)),
        ] {
            let frame = if remote.mode == MODE_DIRECT {
                inner
            } else {
                remote.outer().around(&inner)
            };
            table.pass(Outcome::Length, name, frame, |fixture, _| {
                fixture.grant(key, &remote);
            });
        }
    }
    let key = F::TUNNELLED.to_pod(UDP).flow(Local::Destination);
    let frame = F::TUNNELLED
        .outer()
        .around(&F::TUNNELLED.to_pod(UDP).bytes());
    // The low byte.
    let udp_len = ETH_LEN + F::IP_LEN + 5;
    for (name, frame) in [
        ("an outer IP length one too long", F::longer(&frame, 1)),
        ("an outer IP length one too short", F::longer(&frame, -1)),
        (
            "an outer UDP length one too long",
            byte(frame.clone(), udp_len, frame[udp_len] + 1),
        ),
        (
            "an outer UDP length one too short",
            byte(frame.clone(), udp_len, frame[udp_len] - 1),
        ),
    ] {
        table.pass(Outcome::Length, name, frame, |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        });
    }
    let fit = u32::from(POD_VETH_MTU) - u32::try_from(F::IP_LEN + 32).expect("short");
    for (gso_size, fits) in [(fit, true), (fit + 1, false)] {
        let packet = F::DIRECT.to_pod(TCP).sized(3000);
        let expected = if fits {
            Expected::Redirect(Outcome::FastDirect, delivered::<F>(&packet.bytes()))
        } else {
            Expected::Pass(Outcome::Mtu)
        };
        let name = format!("segments of {gso_size} bytes where {fit} fit, directly");
        table.row(&name, packet.bytes(), expected, |fixture, surroundings| {
            fixture.grant(packet.flow(Local::Destination), &F::DIRECT);
            surroundings.gso_size = gso_size;
        });
    }
}

/// The rows that `confirm`, `arrive` and `deliver` share: what is no packet of a flow between a
/// local and a remote pod.
fn observer_rows<F: Oddities>(
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
fn stamp_rows<F: Oddities>(table: &mut Table<F>, packet: &Packet<F>, local: Local) {
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

/// A packet as the kernel hands it to a device on its way out: one hop further.
fn leaving<F: Oddities>(remote: &Remote<F>) -> Packet<F> {
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

fn confirm<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut rows = confirm_at_tunnel(interfaces);
    rows.extend(confirm_sent(interfaces));
    rows.extend(confirm_direct(interfaces));
    rows
}

/// Pods' packets at the vxlan device.
fn confirm_at_tunnel<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
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
        "of a protocol without a lease time",
        &F::TUNNELLED,
        &|fixture, _| fixture.config.tcp_lease_ns = 0,
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
fn confirm_sent<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
    let mut table = Table::new(Hook::Confirm, interfaces);
    table.surroundings.ifindex = interfaces.underlay;
    table.surroundings.tc_index = LEAVING;
    let tunnelled = |remote: &Remote<F>| {
        let inner = leaving(remote).macs(remote.vtep_mac, VTEP_MAC);
        (inner.flow(Local::Source), remote.sent(SOURCE_PORT), inner)
    };
    for (outcome, name, remote) in [
        (Outcome::LeaseGranted, "to a node", F::TUNNELLED),
        (
            Outcome::LeaseGranted,
            "to a node that a router separates",
            F::ROUTED,
        ),
        (
            Outcome::LeaseGranted,
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
        Outcome::LeaseGranted,
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
        Outcome::NoLease,
        "of a protocol without a lease time",
        &|fixture, _| {
            fixture.config.tcp_lease_ns = 0;
        },
    );
    sent(Outcome::NotOverlay, "by somebody else", &|_, around| {
        around.tc_index = 0;
    });
    table.rows
}

/// Pods' packets at the underlay.
fn confirm_direct<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
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
        Outcome::LeaseGranted,
        "to a direct peer",
        &F::DIRECT,
        neighbour,
        &|_, _| {},
    );
    leaves(
        Outcome::LeaseGranted,
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
        Outcome::NoLease,
        "of a protocol without a lease time",
        &F::DIRECT,
        neighbour,
        &|fixture, _| fixture.config.tcp_lease_ns = 0,
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

fn arrive<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
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

fn deliver<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
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
        Outcome::LeaseGranted,
        "as it came out of the tunnel",
        packet.bytes(),
        |_, surroundings| surroundings.hash = stamp,
    );
    table.pass(
        Outcome::NoLease,
        "of a protocol without a lease time",
        packet.bytes(),
        |fixture, surroundings| {
            surroundings.hash = stamp;
            fixture.config.tcp_lease_ns = 0;
        },
    );
    table.pass(
        Outcome::LeaseGranted,
        "as it came directly",
        packet.bytes(),
        |_, surroundings| {
            surroundings.hash = stamp;
            surroundings.ingress_ifindex = interfaces.underlay;
        },
    );
    table.rows
}

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

fn confirm_grants_or_refuses_an_egress_lease_for_the_right_reason<F: Oddities>() -> Result<()> {
    check::<F>(confirm)
}

fn ingress_takes_or_declines_each_packet_for_the_right_reason<F: Oddities>() -> Result<()> {
    check::<F>(ingress)
}

fn arrive_stamps_what_may_earn_a_lease_and_nothing_else<F: Oddities>() -> Result<()> {
    check::<F>(arrive)
}

fn deliver_grants_or_refuses_an_ingress_lease_for_the_right_reason<F: Oddities>() -> Result<()> {
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
    confirm_grants_or_refuses_an_egress_lease_for_the_right_reason,
    ingress_takes_or_declines_each_packet_for_the_right_reason,
    arrive_stamps_what_may_earn_a_lease_and_nothing_else,
    deliver_grants_or_refuses_an_ingress_lease_for_the_right_reason,
    a_flow_that_the_table_refuses_stays_with_the_kernel,
}

/// An outcome that no row reaches although the documents list it: it needs the mark that
/// `overlay_egress` leaves, and the tests of leases run both programs.
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
