//! Packets that arrive at the underlay.

use overlay_common::{
    addr::MacAddr,
    flow::FlowKey,
    node::{MODE_DIRECT, MODE_TUNNEL},
    outcome::{Hook, Outcome},
};
use overlay_tests::prog::{
    Expected, Row,
    fixture::{Remote, VTEP_MAC, VXLAN_PORT, delivered},
    node::{Interfaces, POD_VETH_MTU, UNDERLAY_MAC},
    oddities::Oddities,
    packet::{ETH_LEN, Local, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, with_macs},
};

use super::{
    injection::arriving_injection,
    short,
    table::{
        OTHER_HEADERS, OTHER_MAC, TCP, Table, UDP, byte, cut, ethertype, other_version, padded,
        rewrite,
    },
};
use crate::packets::tcp;

pub fn ingress<F: Oddities>(interfaces: Interfaces) -> Vec<Row<F>> {
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
        "a permitted flow whose pod's MAC was seen elsewhere since",
        frame.clone(),
        |fixture, _| fixture.grant(key, &F::TUNNELLED).moves = 7,
    );
    table.row(
        "a permitted flow through a tunnel",
        frame.clone(),
        Expected::Redirect(Outcome::FastTunnel, delivered::<F>(&inner.bytes())),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED);
        },
    );
    table.row(
        "a permitted flow that came directly",
        direct.bytes(),
        Expected::Redirect(Outcome::FastDirect, delivered::<F>(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &F::DIRECT);
        },
    );
    table.row(
        "a peer that may be reached directly, but used the tunnel when it got its permit",
        F::DIRECT
            .outer()
            .around(&direct.clone().macs(VTEP_MAC, F::DIRECT.vtep_mac).bytes()),
        Expected::Redirect(Outcome::FastTunnel, delivered::<F>(&direct.bytes())),
        |fixture, _| {
            fixture.grant(direct_key, &F::DIRECT).ingress_mode = MODE_TUNNEL;
        },
    );

    table.switched_off(&frame, key);
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
    not_overlay(&mut table, &frame, key);
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
    vxlan(&mut table, &inner, key);
    permits(&mut table, &frame, key);
    peers(&mut table, &inner, key);

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
        "a permitted flow from a service",
        frame.clone(),
        Expected::Redirect(Outcome::FastTranslated, delivered::<F>(&received.bytes())),
        |fixture, _| rewrite::<F>(fixture.grant(key, &F::TUNNELLED), received.src),
    );
    table.pass(
        Outcome::NoPermit,
        "a direct packet without a permit",
        direct.bytes(),
        |_, _| {},
    );
    sizes(&mut table);
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
    table.rows.extend(short::inward(interfaces));
    table.rows
}

fn not_overlay<F: Oddities>(table: &mut Table<F>, frame: &[u8], key: FlowKey<F>) {
    let not_ours = with_macs(frame, OTHER_MAC, F::TUNNELLED.neighbour);
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

fn vxlan<F: Oddities>(table: &mut Table<F>, inner: &Packet<F>, key: FlowKey<F>) {
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

fn permits<F: Oddities>(table: &mut Table<F>, frame: &[u8], key: FlowKey<F>) {
    table.pass(
        Outcome::NoPermit,
        "a flow without an entry",
        frame.to_vec(),
        |_, _| {},
    );
    table.pass(
        Outcome::NoPermit,
        "a permit that ran out",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).ingress_until = 1;
        },
    );
    table.pass(
        Outcome::NoPermit,
        "a permit for the other direction only",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).ingress_until = 0;
        },
    );
    table.pass(
        Outcome::NoPermit,
        "an entry that was passed on to another flow",
        frame.to_vec(),
        |fixture, _| {
            fixture.grant(key, &F::TUNNELLED).id ^= 1;
        },
    );
    table.pass(
        Outcome::Generation,
        "a permit of before the flush",
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

fn peers<F: Oddities>(table: &mut Table<F>, inner: &Packet<F>, key: FlowKey<F>) {
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
        let name = format!("a permitted flow's packet from {name}");
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

fn sizes<F: Oddities>(table: &mut Table<F>) {
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
