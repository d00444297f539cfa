//! Every outcome of every program, on the simplest packet that has it.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use etherparse::IpNumber;
use overlay_common::{
    addr::{Ipv4Be, MacAddr},
    config::{Config, FASTPATH_OFF},
    flow::FlowKey4,
    maps::MAX_NODES,
    node::{MODE_DIRECT, MODE_NONE, MODE_TUNNEL, Nexthop},
    outcome::{Hook, Outcome},
};
use overlay_tests::{
    document::{document, rows, section},
    prog::{
        Bench, Expected, Row, Surroundings, check_rows,
        fixture::{
            DIRECT, Fixture, POD, POD_MAC, ROUTED, Remote, SILENT, SOURCE_PORT, TUNNELLED, VTEP,
            VTEP_MAC, VXLAN_PORT, delivered,
        },
        node::{GATEWAY_MAC, Interfaces, POD_VETH_MTU, UNDERLAY_MAC, on_node},
        packet::{
            ETH_LEN, Local, Packet, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN, Transport, edit_ip,
        },
    },
};

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
const SCTP: Transport = Transport::Other(IpNumber::SCTP);
/// With a payload whose first byte is 0 this is an echo reply; see [`unreachable`].
const ICMP: Transport = Transport::Other(IpNumber::ICMP);
const OTHER_MAC: MacAddr = MacAddr::new([0x02, 0x77, 0, 0, 0, 7]);
const STRANGER: [u8; 4] = [192, 168, 77, 50];

const fn tcp(flags: u8) -> Transport {
    Transport::Tcp {
        src: 40_000,
        dst: 80,
        flags,
        options: 0,
    }
}

/// The rows of one program.
struct Table {
    hook: Hook,
    fixture: Fixture,
    surroundings: Surroundings,
    rows: Vec<Row>,
}

impl Table {
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
        arrange: impl FnOnce(&mut Fixture, &mut Surroundings),
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
        arrange: impl FnOnce(&mut Fixture, &mut Surroundings),
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

/// The frame with bytes behind what the IP header announces.
fn padded(frame: Vec<u8>, count: usize) -> Vec<u8> {
    [frame, vec![0; count]].concat()
}

fn cut(frame: &[u8], len: usize) -> Vec<u8> {
    frame[..len].to_vec()
}

/// An ICMP destination-unreachable message.
fn unreachable(mut packet: Packet) -> Packet {
    packet.transport = ICMP;
    packet.payload.insert(0, 3);
    packet
}

/// A packet that none of the programs takes for one of a flow, and why.
fn without_flow(packet: &Packet) -> Vec<(Outcome, &'static str, Packet)> {
    let with = |change: fn(&mut Packet)| packet.clone().with(change);
    vec![
        (
            Outcome::IpOptions,
            "with a router alert option",
            with(|p| p.ip_options = vec![0x94, 4, 0, 0]),
        ),
        (
            Outcome::IpOptions,
            "with as many options as fit",
            with(|p| p.ip_options = vec![1; 40]),
        ),
        (
            Outcome::Fragment,
            "the first fragment",
            with(|p| {
                p.dont_fragment = false;
                p.more_fragments = true;
            }),
        ),
        (
            Outcome::Fragment,
            "the last fragment",
            with(|p| p.fragment_offset = 1),
        ),
        (
            Outcome::Fragment,
            "a fragment at the largest offset",
            with(|p| p.fragment_offset = 0x1fff),
        ),
        (Outcome::Protocol, "SCTP", with(|p| p.transport = SCTP)),
        (
            Outcome::Protocol,
            "an ICMP error message",
            unreachable(packet.clone()),
        ),
        (
            Outcome::Protocol,
            "an echo request with a code other than 0",
            with(|p| {
                p.transport = ICMP;
                p.payload = vec![8, 1, 0, 0, 0, 1, 0, 7];
            }),
        ),
    ]
}

fn egress(interfaces: Interfaces) -> Vec<Row> {
    let mut table = Table::new(Hook::Egress, interfaces);
    let packet = TUNNELLED.from_pod(TCP);
    let frame = packet.bytes();
    let key = packet.flow(Local::Source);
    let direct = DIRECT.from_pod(TCP);
    let direct_key = direct.flow(Local::Source);

    table.row(
        "a leased flow to a tunnelled peer",
        frame.clone(),
        Expected::Redirect(
            Outcome::FastTunnel,
            TUNNELLED.encapsulated(&frame, SOURCE_PORT),
        ),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        },
    );
    table.row(
        "a leased flow to a peer behind a router",
        ROUTED.from_pod(UDP).bytes(),
        Expected::Redirect(
            Outcome::FastTunnel,
            ROUTED.encapsulated(&ROUTED.from_pod(UDP).bytes(), SOURCE_PORT),
        ),
        |fixture, _| {
            fixture.grant(ROUTED.from_pod(UDP).flow(Local::Source), &ROUTED);
        },
    );
    table.row(
        "a leased flow to a direct peer",
        direct.bytes(),
        Expected::Redirect(Outcome::FastDirect, DIRECT.routed(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &DIRECT);
        },
    );
    table.row(
        "a TTL that is enough for one hop",
        packet.clone().with(|p| p.ttl = 2).bytes(),
        Expected::Redirect(
            Outcome::FastTunnel,
            TUNNELLED.encapsulated(&packet.clone().with(|p| p.ttl = 2).bytes(), SOURCE_PORT),
        ),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        },
    );

    table.pass(
        Outcome::Disabled,
        "a leased flow while the fast path is off",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
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
        cut(&frame, 33),
        |_, _| {},
    );
    table.pass(
        Outcome::Truncated,
        "TCP without its flags",
        cut(&frame, 47),
        |_, _| {},
    );
    table.pass(
        Outcome::Vlan,
        "a VLAN tag",
        frame.clone(),
        |fixture, surroundings| {
            fixture.grant(key, &TUNNELLED);
            surroundings.vlan = Some(5);
        },
    );
    table.pass(
        Outcome::NotIp,
        "ARP",
        ethertype(frame.clone(), 0x0806),
        |_, _| {},
    );
    table.pass(
        Outcome::NotIp,
        "version 6 under the type of IPv4",
        byte(frame.clone(), ETH_LEN, 0x65),
        |_, _| {},
    );
    for (outcome, name, packet) in without_flow(&packet) {
        table.pass(outcome, name, packet.bytes(), |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        });
    }
    for (name, dst) in [
        ("to the internet", [8, 8, 8, 8]),
        ("to a pod of this node", [10, 244, 1, 11]),
        ("to a peer's own address", TUNNELLED.vtep),
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
            fixture.grant(key, &TUNNELLED).egress_until = 1;
        },
    );
    table.pass(
        Outcome::NoLease,
        "a lease for the other direction only",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED).egress_until = 0;
        },
    );
    table.pass(
        Outcome::NoLease,
        "an entry that was passed on to another flow",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED).id ^= 1;
        },
    );
    table.pass(
        Outcome::NoLease,
        "a lease for no way at all",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED).egress_mode = MODE_NONE;
            fixture
                .nexthops
                .entry(TUNNELLED.index)
                .and_modify(|nexthop| nexthop.mode = MODE_NONE);
        },
    );
    for (name, flags) in [
        ("SYN", TCP_SYN),
        ("SYN and ACK", TCP_SYN | TCP_ACK),
        ("FIN", TCP_FIN | TCP_ACK),
        ("RST", TCP_RST),
    ] {
        table.pass(
            Outcome::TcpControl,
            name,
            TUNNELLED.from_pod(tcp(flags)).bytes(),
            |fixture, _| {
                fixture.grant(key, &TUNNELLED);
            },
        );
    }
    table.pass(
        Outcome::Generation,
        "a lease of before the flush",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
            fixture.config.generation += 1;
        },
    );
    table.pass(
        Outcome::NotGateway,
        "a frame for another MAC than the gateway's",
        packet.clone().macs(OTHER_MAC, POD_MAC).bytes(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        },
    );
    for ttl in [0, 1] {
        table.pass(
            Outcome::Ttl,
            "a TTL that ends here",
            packet.clone().with(|p| p.ttl = ttl).bytes(),
            |fixture, _| {
                fixture.grant(key, &TUNNELLED);
            },
        );
    }
    egress_nexthop(&mut table, &frame, key);
    egress_sizes(&mut table);
    table.rows
}

/// What a pod might send to make a peer, or this node, believe it is a node.
fn tunnel_injection(table: &mut Table) {
    let to = |vtep: [u8; 4], dst: u16| {
        TUNNELLED
            .from_pod(Transport::Udp { src: 4_789, dst })
            .with(|p| p.dst = vtep.into())
    };
    let injection = to(TUNNELLED.vtep, VXLAN_PORT);
    let first_fragment = |p: &mut Packet| {
        p.dont_fragment = false;
        p.more_fragments = true;
    };
    let dropped = [
        ("to a peer", injection.clone()),
        ("to a direct peer", to(DIRECT.vtep, VXLAN_PORT)),
        ("to this node", to(VTEP, VXLAN_PORT)),
        ("the first fragment", injection.clone().with(first_fragment)),
        (
            "with an IP option",
            injection.clone().with(|p| p.ip_options = vec![1; 4]),
        ),
        (
            "with as many IP options as fit",
            injection.clone().with(|p| p.ip_options = vec![1; 40]),
        ),
        (
            "the first fragment, with an IP option",
            injection.clone().with(|p| {
                first_fragment(p);
                p.ip_options = vec![1; 4];
            }),
        ),
        (
            "the first fragment with the UDP header alone",
            injection.clone().with(|p| {
                first_fragment(p);
                p.payload.clear();
            }),
        ),
    ];
    for (name, packet) in dropped {
        let name = format!("a pod's tunnel packet, {name}");
        let dropped = Expected::Drop(Outcome::PodTunnel);
        table.row(&name, packet.bytes(), dropped, |_, _| {});
    }
    table.row(
        "a pod's tunnel packet while the fast path is off",
        injection.bytes(),
        Expected::Drop(Outcome::PodTunnel),
        |fixture, _| fixture.config.fastpath = FASTPATH_OFF,
    );
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
                TUNNELLED
                    .from_pod(UDP)
                    .with(|p| p.dst = [8, 8, 8, 8].into())
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
            to(STRANGER, VXLAN_PORT),
        ),
        (
            Outcome::NotOverlay,
            "a peer at another port",
            to(TUNNELLED.vtep, 53),
        ),
        (
            Outcome::NotOverlay,
            "TCP to the tunnel's port of a peer",
            to(TUNNELLED.vtep, VXLAN_PORT).with(|p| {
                p.transport = Transport::Tcp {
                    src: 4_789,
                    dst: VXLAN_PORT,
                    flags: TCP_ACK,
                    options: 0,
                }
            }),
        ),
        (
            Outcome::Fragment,
            "a later fragment to a peer: without the first it is never whole",
            injection.with(|p| p.fragment_offset = 1),
        ),
    ];
    for (outcome, name, packet) in passed {
        table.pass(outcome, name, packet.bytes(), |_, _| {});
    }
}

fn egress_nexthop(table: &mut Table, frame: &[u8], key: FlowKey4) {
    let nexthop = |fixture: &mut Fixture, change: fn(&mut Nexthop)| {
        fixture.grant(key, &TUNNELLED);
        fixture.nexthops.entry(TUNNELLED.index).and_modify(change);
    };
    table.pass(
        Outcome::Nexthop,
        "a node that is gone",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
            fixture.nodes.remove(&TUNNELLED.index);
        },
    );
    table.pass(
        Outcome::Nexthop,
        "a node index beyond the table",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED).node = u32::try_from(MAX_NODES).expect("fits");
        },
    );
    table.pass(
        Outcome::Nexthop,
        "a next hop that is not resolved",
        frame.to_vec(),
        |fixture, _| nexthop(fixture, |nexthop| nexthop.vtep = [0; 4]),
    );
    table.pass(
        Outcome::Nexthop,
        "a node that moved since its next hop was resolved",
        frame.to_vec(),
        |fixture, _| {
            nexthop(fixture, |nexthop| {
                nexthop.vtep = STRANGER;
            });
        },
    );
    table.pass(
        Outcome::Nexthop,
        "a node that is reached another way than the lease says",
        frame.to_vec(),
        |fixture, _| nexthop(fixture, |nexthop| nexthop.mode = MODE_DIRECT),
    );
}

fn egress_sizes(table: &mut Table) {
    let tunnelled = TUNNELLED.from_pod(UDP);
    let direct = DIRECT.from_pod(UDP);
    for (len, fits) in [(1449, true), (1450, true), (1451, false)] {
        let frame = tunnelled.clone().sized(len).bytes();
        let expected = if fits {
            let sent = TUNNELLED.encapsulated(&frame, SOURCE_PORT);
            Expected::Redirect(Outcome::FastTunnel, sent)
        } else {
            Expected::Pass(Outcome::Mtu)
        };
        let name = format!("{len} bytes where 1450 fit, by tunnel");
        table.row(&name, frame, expected, |fixture, _| {
            fixture.grant(tunnelled.flow(Local::Source), &TUNNELLED);
        });
    }
    for (len, fits) in [(1499, true), (1500, true), (1501, false)] {
        let frame = direct.clone().sized(len).bytes();
        let expected = if fits {
            Expected::Redirect(Outcome::FastDirect, DIRECT.routed(&frame))
        } else {
            Expected::Pass(Outcome::Mtu)
        };
        let name = format!("{len} bytes where 1500 fit, directly");
        table.row(&name, frame, expected, |fixture, _| {
            fixture.grant(direct.flow(Local::Source), &DIRECT);
        });
    }
    // 20 bytes of IP, 32 of TCP with the timestamp option.
    for (gso_size, fits) in [(1447, true), (1448, true), (1449, false)] {
        let packet = DIRECT.from_pod(TCP).sized(3000);
        let frame = packet.bytes();
        let expected = if fits {
            Expected::Redirect(Outcome::FastDirect, DIRECT.routed(&frame))
        } else {
            Expected::Pass(Outcome::Mtu)
        };
        let name = format!("segments of {gso_size} bytes where 1448 fit, directly");
        table.row(&name, frame, expected, |fixture, surroundings| {
            fixture.grant(packet.flow(Local::Source), &DIRECT);
            surroundings.gso_size = gso_size;
        });
    }
    // A test run cannot say which protocol the segments are of, and the kernel encapsulates no
    // others than TCP and UDP: what fits gets as far as the call that is refused.
    for (gso_size, outcome) in [(1398, Outcome::AdjustRoom), (1399, Outcome::Mtu)] {
        let packet = TUNNELLED.from_pod(TCP).sized(3000);
        let name = format!("segments of {gso_size} bytes where 1398 fit, by tunnel");
        table.pass(outcome, &name, packet.bytes(), |fixture, surroundings| {
            fixture.grant(packet.flow(Local::Source), &TUNNELLED);
            surroundings.gso_size = gso_size;
        });
    }
    let frame = tunnelled.bytes();
    let len = u16::try_from(frame.len() - ETH_LEN).expect("short");
    for (name, frame) in [
        ("a byte behind the IP packet", padded(frame.clone(), 1)),
        (
            "an IP length one too long",
            edit_ip(&frame, |ip| ip.total_len = len + 1),
        ),
        (
            "an IP length one too short",
            edit_ip(&frame, |ip| ip.total_len = len - 1),
        ),
        ("an IP length of 0", edit_ip(&frame, |ip| ip.total_len = 0)),
    ] {
        table.pass(Outcome::Length, name, frame, |fixture, _| {
            fixture.grant(tunnelled.flow(Local::Source), &TUNNELLED);
        });
    }
}

fn ingress(interfaces: Interfaces) -> Vec<Row> {
    let mut table = Table::new(Hook::Ingress, interfaces);
    let inner = TUNNELLED.to_pod(TCP);
    let key = inner.flow(Local::Destination);
    let outer = TUNNELLED.outer();
    let frame = outer.around(&inner.bytes());
    let direct = DIRECT.to_pod(TCP);
    let direct_key = direct.flow(Local::Destination);

    table.row(
        "a leased flow through a tunnel",
        frame.clone(),
        Expected::Redirect(Outcome::FastTunnel, delivered(&inner.bytes())),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        },
    );
    table.row(
        "a leased flow that came directly",
        direct.bytes(),
        Expected::Redirect(Outcome::FastDirect, delivered(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &DIRECT);
        },
    );
    table.row(
        "a peer that may be reached directly, but used the tunnel when it got its lease",
        DIRECT
            .outer()
            .around(&direct.clone().macs(VTEP_MAC, DIRECT.vtep_mac).bytes()),
        Expected::Redirect(Outcome::FastTunnel, delivered(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &DIRECT).ingress_mode = MODE_TUNNEL;
        },
    );

    table.pass(
        Outcome::Disabled,
        "a leased flow while the fast path is off",
        frame.clone(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
            fixture.config.fastpath = FASTPATH_OFF;
        },
    );
    table.pass(
        Outcome::Unserved,
        "a node without pods of the family",
        frame.clone(),
        |fixture, _| fixture.config = Config::default(),
    );
    for (name, len) in [
        ("an Ethernet header alone", 14),
        ("an outer IP header less a byte", 33),
        ("an outer UDP header less a byte", 41),
        ("headers less a byte of the inner Ethernet header", 63),
        ("headers less a byte of the inner IP header", 83),
        ("inner TCP without its flags", 97),
    ] {
        table.pass(Outcome::Truncated, name, cut(&frame, len), |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        });
    }
    table.pass(
        Outcome::NotIp,
        "ARP",
        ethertype(frame.clone(), 0x0806),
        |_, _| {},
    );
    table.pass(
        Outcome::NotIp,
        "ARP in the tunnel",
        outer.around(&ethertype(inner.bytes(), 0x0806)),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        },
    );
    table.pass(
        Outcome::NotIp,
        "version 6 under the type of IPv4, in the tunnel",
        outer.around(&byte(inner.bytes(), ETH_LEN, 0x65)),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        },
    );
    table.pass(
        Outcome::Vlan,
        "a VLAN tag",
        frame.clone(),
        |fixture, surroundings| {
            fixture.grant(key, &TUNNELLED);
            surroundings.vlan = Some(5);
        },
    );
    ingress_not_overlay(&mut table, &frame, key);
    for (name, packet) in [
        (
            "outer IP options",
            edit_ip(&frame, |ip| ip.options = [1; 4].into()),
        ),
        (
            "inner IP options",
            outer.around(&inner.clone().with(|p| p.ip_options = vec![1; 4]).bytes()),
        ),
    ] {
        table.pass(Outcome::IpOptions, name, packet, |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        });
    }
    table.pass(
        Outcome::Fragment,
        "the first fragment of a tunnel packet",
        edit_ip(&frame, |ip| ip.more_fragments = true),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        },
    );
    for (outcome, name, packet) in without_flow(&inner) {
        let name = format!("in the tunnel: {name}");
        let frame = outer.around(&packet.bytes());
        table.pass(outcome, &name, frame, |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        });
    }
    for (outcome, name, packet) in without_flow(&direct) {
        let name = format!("directly: {name}");
        table.pass(outcome, &name, packet.bytes(), |fixture, _| {
            fixture.grant(direct_key, &DIRECT);
        });
    }
    ingress_vxlan(&mut table, &inner, key);
    ingress_leases(&mut table, &frame, key);
    ingress_peers(&mut table, &inner, key);

    for (name, by, frame, remote, key) in [
        ("a tunnel packet", MODE_DIRECT, &frame, &TUNNELLED, key),
        (
            "a direct packet",
            MODE_TUNNEL,
            &direct.bytes(),
            &DIRECT,
            direct_key,
        ),
    ] {
        let name = format!("{name} of a flow whose packets came the other way");
        table.pass(Outcome::OtherMode, &name, frame.clone(), |fixture, _| {
            fixture.grant(key, remote).ingress_mode = by;
        });
    }
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
                fixture.grant(key, &TUNNELLED);
            },
        );
    }
    table.pass(
        Outcome::AdjustRoom,
        "segments of no protocol, which the kernel refuses to decapsulate",
        frame,
        |fixture, surroundings| {
            fixture.grant(key, &TUNNELLED);
            surroundings.gso_size = 1000;
        },
    );
    let datagrams = TUNNELLED.to_pod(UDP);
    table.pass(
        Outcome::UdpGso,
        "datagrams in one GSO packet out of the tunnel",
        outer.around(&datagrams.bytes()),
        |fixture, surroundings| {
            fixture.grant(datagrams.flow(Local::Destination), &TUNNELLED);
            surroundings.gso_size = 1000;
        },
    );
    table.rows
}

fn ingress_not_overlay(table: &mut Table, frame: &[u8], key: FlowKey4) {
    let not_ours = overlay_tests::prog::packet::with_macs(frame, OTHER_MAC, TUNNELLED.neighbour);
    let mut other_port = TUNNELLED.outer();
    other_port.dst_port = VXLAN_PORT + 1;
    let mut other_node = TUNNELLED.outer();
    other_node.dst = STRANGER.into();
    let inner = TUNNELLED.to_pod(TCP);
    let host_tcp = Packet::new(TUNNELLED.vtep, VTEP, TCP).macs(UNDERLAY_MAC, TUNNELLED.neighbour);
    let from_outside = DIRECT.to_pod(TCP).with(|p| p.src = [8, 8, 8, 8].into());
    let from_local = DIRECT.to_pod(TCP).with(|p| p.src = [10, 244, 1, 11].into());
    let to_remote = DIRECT.to_pod(TCP).with(|p| p.dst = [10, 244, 9, 9].into());
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
            fixture.grant(key, &TUNNELLED);
        });
    }
}

fn ingress_vxlan(table: &mut Table, inner: &Packet, key: FlowKey4) {
    const VXLAN: usize = ETH_LEN + 20 + 8;

    let outer = TUNNELLED.outer();
    let frame = outer.around(&inner.bytes());
    let mut other_vni = outer.clone();
    other_vni.vni += 1;
    let rows = [
        ("no valid VNI", byte(frame.clone(), VXLAN, 0)),
        ("a flag of an extension", byte(frame.clone(), VXLAN, 0x0c)),
        ("a group policy id", byte(frame.clone(), VXLAN + 3, 1)),
        ("the last reserved byte set", byte(frame, VXLAN + 7, 1)),
        ("another VNI", other_vni.around(&inner.bytes())),
        (
            "an inner frame for another VTEP",
            outer.around(&inner.clone().macs(OTHER_MAC, TUNNELLED.vtep_mac).bytes()),
        ),
        (
            "an inner broadcast frame",
            outer.around(
                &inner
                    .clone()
                    .macs(MacAddr::new([0xff; 6]), TUNNELLED.vtep_mac)
                    .bytes(),
            ),
        ),
    ];
    for (name, frame) in rows {
        table.pass(Outcome::VxlanHeader, name, frame, |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        });
    }
}

fn ingress_leases(table: &mut Table, frame: &[u8], key: FlowKey4) {
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
            fixture.grant(key, &TUNNELLED).ingress_until = 1;
        },
    );
    table.pass(
        Outcome::NoLease,
        "a lease for the other direction only",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED).ingress_until = 0;
        },
    );
    table.pass(
        Outcome::NoLease,
        "an entry that was passed on to another flow",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED).id ^= 1;
        },
    );
    table.pass(
        Outcome::Generation,
        "a lease of before the flush",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
            fixture.config.generation += 1;
        },
    );
    for (name, flags) in [
        ("SYN", TCP_SYN),
        ("SYN and ACK", TCP_SYN | TCP_ACK),
        ("FIN", TCP_FIN | TCP_ACK),
        ("RST", TCP_RST),
    ] {
        let frame = TUNNELLED
            .outer()
            .around(&TUNNELLED.to_pod(tcp(flags)).bytes());
        table.pass(Outcome::TcpControl, name, frame, |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        });
    }
    for ttl in [0, 1] {
        let inner = TUNNELLED.to_pod(TCP).with(|p| p.ttl = ttl);
        table.pass(
            Outcome::Ttl,
            "a TTL that ends here",
            TUNNELLED.outer().around(&inner.bytes()),
            |fixture, _| {
                fixture.grant(key, &TUNNELLED);
            },
        );
    }
}

fn ingress_peers(table: &mut Table, inner: &Packet, key: FlowKey4) {
    let from = |address: [u8; 4]| {
        let mut outer = TUNNELLED.outer();
        outer.src = address.into();
        outer.around(&inner.bytes())
    };
    table.pass(
        Outcome::UnknownPeer,
        "a tunnel packet from no peer, of no flow",
        from(STRANGER),
        |_, _| {},
    );
    for (name, address) in [
        ("another peer", ROUTED.vtep),
        ("no peer", STRANGER),
        ("this node itself", VTEP),
    ] {
        let name = format!("a leased flow's packet from {name}");
        table.pass(Outcome::WrongPeer, &name, from(address), |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        });
    }
    table.pass(
        Outcome::WrongPeer,
        "a node that is gone",
        from(TUNNELLED.vtep),
        |fixture, _| {
            fixture.grant(key, &TUNNELLED);
            fixture.nodes.remove(&TUNNELLED.index);
        },
    );
}

fn ingress_sizes(table: &mut Table) {
    let arrive = |remote: &Remote, packet: &Packet| {
        if remote.mode == MODE_DIRECT {
            (Outcome::FastDirect, packet.bytes())
        } else {
            (Outcome::FastTunnel, remote.outer().around(&packet.bytes()))
        }
    };
    for remote in [TUNNELLED, DIRECT] {
        let key = remote.to_pod(UDP).flow(Local::Destination);
        for (len, fits) in [(1449, true), (1450, true), (1451, false)] {
            let packet = remote.to_pod(UDP).sized(len);
            let (fast, frame) = arrive(&remote, &packet);
            let expected = if fits {
                Expected::Redirect(fast, delivered(&packet.bytes()))
            } else {
                Expected::Pass(Outcome::Mtu)
            };
            let name = format!("{len} bytes to a pod that takes {POD_VETH_MTU}: {fast:?}");
            table.row(&name, frame, expected, |fixture, _| {
                fixture.grant(key, &remote);
            });
        }
        let whole = remote.to_pod(UDP).bytes();
        let len = u16::try_from(whole.len() - ETH_LEN).expect("short");
        for (name, inner) in [
            ("a byte behind the IP packet", padded(whole.clone(), 1)),
            (
                "an IP length one too long",
                edit_ip(&whole, |ip| ip.total_len = len + 1),
            ),
            (
                "an IP length one too short",
                edit_ip(&whole, |ip| ip.total_len = len - 1),
            ),
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
    let key = TUNNELLED.to_pod(UDP).flow(Local::Destination);
    let frame = TUNNELLED.outer().around(&TUNNELLED.to_pod(UDP).bytes());
    let len = u16::try_from(frame.len() - ETH_LEN).expect("short");
    for (name, frame) in [
        (
            "an outer IP length one too long",
            edit_ip(&frame, |ip| ip.total_len = len + 1),
        ),
        (
            "an outer IP length one too short",
            edit_ip(&frame, |ip| ip.total_len = len - 1),
        ),
        (
            "an outer UDP length one too long",
            byte(frame.clone(), ETH_LEN + 25, (len - 20 + 1).to_be_bytes()[1]),
        ),
        (
            "an outer UDP length one too short",
            byte(frame.clone(), ETH_LEN + 25, (len - 20 - 1).to_be_bytes()[1]),
        ),
    ] {
        table.pass(Outcome::Length, name, frame, |fixture, _| {
            fixture.grant(key, &TUNNELLED);
        });
    }
    for (gso_size, fits) in [(1398, true), (1399, false)] {
        let packet = DIRECT.to_pod(TCP).sized(3000);
        let expected = if fits {
            Expected::Redirect(Outcome::FastDirect, delivered(&packet.bytes()))
        } else {
            Expected::Pass(Outcome::Mtu)
        };
        let name = format!("segments of {gso_size} bytes where 1398 fit, directly");
        table.row(&name, packet.bytes(), expected, |fixture, surroundings| {
            fixture.grant(packet.flow(Local::Destination), &DIRECT);
            surroundings.gso_size = gso_size;
        });
    }
}

/// The rows that `confirm`, `arrive` and `deliver` share: what is no packet of a flow between a
/// local and a remote pod.
fn observer_rows(table: &mut Table, packet: &Packet, strangers: &[(&str, Packet)]) {
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
    for len in [14, 33, 47] {
        table.pass(
            Outcome::Truncated,
            "not all of the headers",
            cut(&frame, len),
            |_, _| {},
        );
    }
    table.pass(
        Outcome::NotIp,
        "ARP",
        ethertype(frame.clone(), 0x0806),
        |_, _| {},
    );
    table.pass(
        Outcome::NotIp,
        "version 6 under the type of IPv4",
        byte(frame, ETH_LEN, 0x65),
        |_, _| {},
    );
    for (outcome, name, packet) in without_flow(packet) {
        table.pass(outcome, name, packet.bytes(), |_, _| {});
    }
    for (name, packet) in strangers {
        table.pass(Outcome::NotOverlay, name, packet.bytes(), |_, _| {});
    }
}

/// Rows in which the stamp decides, and the TCP flags.
fn stamp_rows(table: &mut Table, packet: &Packet, local: Local) {
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
            fixture.grant(key, &TUNNELLED);
        });
    }
}

/// A packet as the kernel hands it to a device on its way out: one hop further.
fn leaving(remote: &Remote) -> Packet {
    remote.leaving(&remote.from_pod(TCP).with(|p| p.ttl = 63))
}

fn confirm(interfaces: Interfaces) -> Vec<Row> {
    let mut table = Table::new(Hook::Confirm, interfaces);
    let packet = leaving(&TUNNELLED);
    let strangers = [
        (
            "from another network",
            packet.clone().with(|p| p.src = [172, 17, 0, 2].into()),
        ),
        (
            "from a pod of another node",
            packet.clone().with(|p| p.src = ROUTED.pod.into()),
        ),
        (
            "to the internet",
            packet.clone().with(|p| p.dst = [8, 8, 8, 8].into()),
        ),
        (
            "to a pod of this node",
            packet.clone().with(|p| p.dst = [10, 244, 1, 11].into()),
        ),
    ];
    observer_rows(&mut table, &packet, &strangers);
    stamp_rows(&mut table, &packet, Local::Source);

    let mut leaves = |outcome,
                      name: &str,
                      remote: &Remote,
                      device: u32,
                      arrange: &dyn Fn(&mut Fixture, &mut Surroundings)| {
        let packet = if device == interfaces.tunnel {
            leaving(remote).macs(remote.vtep_mac, VTEP_MAC)
        } else {
            leaving(remote).macs(remote.neighbour, UNDERLAY_MAC)
        };
        let stamp = table.fixture.stamp(packet.flow(Local::Source));
        table.pass(outcome, name, packet.bytes(), |fixture, surroundings| {
            surroundings.hash = stamp;
            surroundings.ifindex = device;
            arrange(fixture, surroundings);
        });
    };
    let (tunnel, underlay) = (interfaces.tunnel, interfaces.underlay);
    leaves(
        Outcome::LeaseGranted,
        "by the tunnel device",
        &TUNNELLED,
        tunnel,
        &|_, _| {},
    );
    leaves(
        Outcome::LeaseGranted,
        "straight to a direct peer",
        &DIRECT,
        underlay,
        &|_, _| {},
    );
    leaves(
        Outcome::LeaseGranted,
        "by the tunnel to a peer that a router separates",
        &ROUTED,
        tunnel,
        &|_, _| {},
    );
    leaves(
        Outcome::OtherPath,
        "by the tunnel to a direct peer",
        &DIRECT,
        tunnel,
        &|_, _| {},
    );
    leaves(
        Outcome::OtherPath,
        "straight to a peer that has to be tunnelled to",
        &TUNNELLED,
        underlay,
        &|_, _| {},
    );
    leaves(
        Outcome::OtherPath,
        "straight to a peer that a router separates",
        &ROUTED,
        underlay,
        &|_, _| {},
    );
    leaves(
        Outcome::OtherPath,
        "by the tunnel to another VTEP than the node's",
        &TUNNELLED,
        tunnel,
        &|fixture, _| {
            if let Some(node) = fixture.nodes.get_mut(&TUNNELLED.index) {
                node.vtep_mac = ROUTED.vtep_mac;
            }
        },
    );
    leaves(
        Outcome::OtherPath,
        "straight to another neighbour than the kernel's route to the node says",
        &DIRECT,
        underlay,
        &|fixture, _| {
            if let Some(node) = fixture.nodes.get_mut(&DIRECT.index) {
                node.vtep = Ipv4Be {
                    octets: TUNNELLED.vtep,
                };
            }
        },
    );
    leaves(
        Outcome::NoGateway,
        "from an interface that is no gateway",
        &TUNNELLED,
        tunnel,
        &|_, surroundings| surroundings.ingress_ifindex = interfaces.pod,
    );
    leaves(
        Outcome::Nexthop,
        "to a subnet that nobody leases",
        &TUNNELLED,
        tunnel,
        &|fixture, _| {
            fixture.routes.remove(&(TUNNELLED.subnet, 24));
        },
    );
    leaves(
        Outcome::Nexthop,
        "to a node that is gone",
        &TUNNELLED,
        tunnel,
        &|fixture, _| {
            fixture.nodes.remove(&TUNNELLED.index);
        },
    );
    leaves(
        Outcome::Nexthop,
        "to a node for which no neighbour answers",
        &SILENT,
        tunnel,
        &|_, _| {},
    );
    table.rows
}

fn arrive(interfaces: Interfaces) -> Vec<Row> {
    let mut table = Table::new(Hook::Arrive, interfaces);
    let packet = TUNNELLED.to_pod(TCP);
    let strangers = [
        ("to this node", packet.clone().with(|p| p.dst = VTEP.into())),
        (
            "from this node's own network",
            packet.clone().with(|p| p.src = [10, 244, 1, 11].into()),
        ),
        (
            "from outside the pod network",
            packet.clone().with(|p| p.src = [8, 8, 8, 8].into()),
        ),
    ];
    observer_rows(&mut table, &packet, &strangers);
    for transport in [TCP, tcp(TCP_SYN), UDP, Transport::EchoRequest { id: 9 }] {
        table.pass(
            Outcome::Stamped,
            "from a remote pod to a local one",
            packet.clone().with(|p| p.transport = transport).bytes(),
            |_, _| {},
        );
    }
    table.rows
}

fn deliver(interfaces: Interfaces) -> Vec<Row> {
    let mut table = Table::new(Hook::Deliver, interfaces);
    let packet = TUNNELLED
        .to_pod(TCP)
        .macs(POD_MAC, GATEWAY_MAC)
        .with(|p| p.ttl = 63);
    let strangers = [
        (
            "from a pod of this node",
            packet.clone().with(|p| p.src = [10, 244, 1, 11].into()),
        ),
        (
            "from outside the pod network",
            packet.clone().with(|p| p.src = [8, 8, 8, 8].into()),
        ),
        (
            "to an address outside this node's subnet",
            packet.clone().with(|p| p.dst = [172, 17, 0, 2].into()),
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
            fixture.routes.remove(&(TUNNELLED.subnet, 24));
        },
    );
    table.pass(
        Outcome::LeaseGranted,
        "as it came out of the tunnel",
        packet.bytes(),
        |_, surroundings| surroundings.hash = stamp,
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
fn full_table(interfaces: Interfaces) -> Vec<Row> {
    let mut rows = Vec::new();
    let out = leaving(&TUNNELLED);
    let back = TUNNELLED.to_pod(TCP).macs(POD_MAC, GATEWAY_MAC);
    for (hook, packet, local) in [
        (Hook::Confirm, out, Local::Source),
        (Hook::Deliver, back, Local::Destination),
    ] {
        let mut table = Table::new(hook, interfaces);
        let stamp = table.fixture.stamp(packet.flow(local));
        table.pass(
            Outcome::TableFull,
            "the flow table is full",
            packet.bytes(),
            |fixture, surroundings| {
                surroundings.hash = stamp;
                let other = Packet::new(POD, DIRECT.pod, UDP).flow(Local::Source);
                fixture.grant(other, &DIRECT);
            },
        );
        rows.append(&mut table.rows);
    }
    rows
}

fn check(rows: fn(Interfaces) -> Vec<Row>) -> Result<()> {
    on_node(|interfaces| check_rows(&mut Bench::load()?, &rows(interfaces)))
}

#[test]
fn egress_takes_or_declines_each_packet_for_the_right_reason() -> Result<()> {
    check(egress)
}

#[test]
fn confirm_grants_or_refuses_an_egress_lease_for_the_right_reason() -> Result<()> {
    check(confirm)
}

#[test]
fn ingress_takes_or_declines_each_packet_for_the_right_reason() -> Result<()> {
    check(ingress)
}

#[test]
fn arrive_stamps_what_may_earn_a_lease_and_nothing_else() -> Result<()> {
    check(arrive)
}

#[test]
fn deliver_grants_or_refuses_an_ingress_lease_for_the_right_reason() -> Result<()> {
    check(deliver)
}

#[test]
fn a_flow_that_the_table_refuses_stays_with_the_kernel() -> Result<()> {
    on_node(|interfaces| {
        check_rows(
            &mut Bench::load_with_refusing_flow_table()?,
            &full_table(interfaces),
        )
    })
}

/// An outcome that no row reaches although the documents list it: it needs the mark that
/// `overlay_egress` leaves, and the tests of leases run both programs.
const CHAINED: (Hook, Outcome) = (Hook::Confirm, Outcome::Forwarded);

/// What only IPv6 packets come to.
const IPV6_ONLY: (Hook, Outcome) = (Hook::Confirm, Outcome::PeerChecksum);

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
    let reached: BTreeSet<(Hook, Outcome)> =
        [egress, confirm, ingress, arrive, deliver, full_table]
            .iter()
            .flat_map(|rows| rows(interfaces))
            .map(|row| (row.hook, row.expected.outcome()))
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
                hook == Hook::Guard
                    || [CHAINED, IPV6_ONLY].contains(&pair)
                    || reached.contains(&pair) == (mark == "x"),
                "{outcome:?} at {hook:?}: marked {mark:?}, reached: {}",
                reached.contains(&pair)
            );
        }
    }
    Ok(())
}
