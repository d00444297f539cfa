//! The bytes of encapsulated, decapsulated and routed packets, over all kinds of pod packets.

use anyhow::{Context as _, Result, ensure};
use etherparse::{Ethernet2Header, Ipv4Header, SlicedPacket, UdpHeader};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::prog::{
    Bench, Expected, Row, Surroundings, Verdict, check_rows,
    fixture::{
        DIRECT, Fixture, HERE, OUTER_TTL, Remote, SOURCE_PORT, TUNNELLED, VNI, VTEP, VTEP_MAC,
        VXLAN_PORT, delivered,
    },
    node::{UNDERLAY_MAC, on_node},
    packet::{ETH_LEN, Local, Outer, Packet, TCP_ACK, Transport, edit_ip},
};

const TRANSPORTS: [Transport; 5] = [
    Transport::Tcp {
        src: 40_000,
        dst: 80,
        flags: TCP_ACK,
        options: 0,
    },
    Transport::Tcp {
        src: 40_001,
        dst: 443,
        flags: TCP_ACK,
        options: 40,
    },
    Transport::Udp {
        src: 5_353,
        dst: 53,
    },
    Transport::EchoRequest { id: 77 },
    Transport::EchoReply { id: 78 },
];

/// Every transport with every TOS byte; every transport with DF set and clear and with short, odd
/// and even lengths and the longest that fits.
fn variants(packet: impl Fn(Transport) -> Packet) -> Vec<Packet> {
    let mut packets = Vec::new();
    for transport in TRANSPORTS {
        for tos in 0..=255 {
            packets.push(packet(transport).with(|p| p.tos = tos));
        }
        for dont_fragment in [false, true] {
            for len in [0, 1, 2, 3, 64, 65, 1449, 1450] {
                packets.push(packet(transport).sized(len).with(|p| {
                    p.dont_fragment = dont_fragment;
                    p.id = 0xfffe;
                }));
            }
        }
        // Checksums at the edges of one's-complement arithmetic.
        for id in (0..=u16::MAX).step_by(251) {
            packets.push(packet(transport).with(|p| p.id = id));
        }
    }
    packets
}

/// Rows for `packets`, in one fixture that grants all of their flows.
fn rows(
    hook: Hook,
    fixture: &mut Fixture,
    ifindex: u32,
    remote: &Remote,
    packets: &[Packet],
    mut each: impl FnMut(&Packet) -> (Vec<u8>, Expected),
) -> Vec<Row> {
    let local = if hook == Hook::Egress {
        Local::Source
    } else {
        Local::Destination
    };
    for packet in packets {
        fixture.grant(packet.flow(local), remote);
    }
    packets
        .iter()
        .map(|packet| {
            let (frame, expected) = each(packet);
            Row {
                name: format!("{packet:?}"),
                hook,
                frame,
                surroundings: Surroundings {
                    ifindex,
                    ..Surroundings::default()
                },
                fixture: fixture.clone(),
                expected,
            }
        })
        .collect()
}

#[test]
fn an_encapsulated_packet_has_the_bytes_of_the_template_and_one_hop_less() -> Result<()> {
    on_node(|interfaces| {
        let mut fixture = Fixture::new(interfaces);
        let packets = variants(|transport| TUNNELLED.from_pod(transport));
        let rows = rows(
            Hook::Egress,
            &mut fixture,
            interfaces.pod,
            &TUNNELLED,
            &packets,
            |packet| {
                let frame = packet.bytes();
                let sent = TUNNELLED.encapsulated(&frame, SOURCE_PORT);
                (frame, Expected::Redirect(Outcome::FastTunnel, sent))
            },
        );
        check_rows(&mut Bench::load()?, &rows)
    })
}

/// What an independent decoder says of the tunnel packet that `original` became.
fn check_encapsulated(sent: &[u8], original: &Packet) -> Result<()> {
    let (eth, rest) = Ethernet2Header::from_slice(sent)?;
    ensure!(eth.destination == TUNNELLED.neighbour.octets, "{eth:?}");
    ensure!(eth.source == UNDERLAY_MAC.octets, "{eth:?}");
    let inner_len = original.bytes().len() - ETH_LEN;
    let (ip, rest) = Ipv4Header::from_slice(rest)?;
    ensure!(ip.header_checksum == ip.calc_header_checksum(), "{ip:?}");
    ensure!(usize::from(ip.total_len) == inner_len + 50, "{ip:?}");
    ensure!(
        ip.source == VTEP && ip.destination == TUNNELLED.vtep,
        "{ip:?}"
    );
    ensure!(ip.time_to_live == OUTER_TTL && ip.dont_fragment, "{ip:?}");
    ensure!(ip.identification == 0 && ip.dscp.value() == 0, "{ip:?}");
    // Congestion of the tunnel's own path is told from congestion before it.
    let ecn = [0, 1, 2, 2][usize::from(original.tos & 3)];
    ensure!(ip.ecn.value() == ecn, "{ip:?}");
    let (udp, rest) = UdpHeader::from_slice(rest)?;
    ensure!(
        udp.source_port == SOURCE_PORT && udp.destination_port == VXLAN_PORT,
        "{udp:?}"
    );
    ensure!(udp.checksum == 0, "{udp:?}");
    ensure!(usize::from(udp.length) == inner_len + 30, "{udp:?}");
    let (vxlan, inner) = rest.split_at_checked(8).context("no vxlan header")?;
    let want = [[8, 0, 0, 0], (VNI << 8).to_be_bytes()].concat();
    ensure!(vxlan == want, "{vxlan:?} instead of {want:?}");
    let (eth, rest) = Ethernet2Header::from_slice(inner)?;
    ensure!(eth.source == VTEP_MAC.octets, "{eth:?}");
    ensure!(eth.destination == TUNNELLED.vtep_mac.octets, "{eth:?}");
    let (ip, payload) = Ipv4Header::from_slice(rest)?;
    let frame = original.bytes();
    let (mut ip_before, payload_before) = Ipv4Header::from_slice(&frame[ETH_LEN..])?;
    ensure!(ip.header_checksum == ip.calc_header_checksum(), "{ip:?}");
    ip_before.time_to_live -= 1;
    ip_before.header_checksum = ip.header_checksum;
    ensure!(ip == ip_before, "{ip:?} of {ip_before:?}");
    ensure!(payload == payload_before, "the IP payload changed");
    SlicedPacket::from_ethernet(inner)?;
    Ok(())
}

#[test]
fn an_independent_decoder_finds_the_pods_packet_in_the_tunnel_packet() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::load()?;
        let mut fixture = Fixture::new(interfaces);
        let packets = variants(|transport| TUNNELLED.from_pod(transport));
        for packet in &packets {
            fixture.grant(packet.flow(Local::Source), &TUNNELLED);
        }
        bench.set(&fixture)?;
        for packet in &packets {
            let run = bench.run(Hook::Egress, &packet.bytes(), &Surroundings::default())?;
            ensure!(
                run.verdict == Verdict::Redirect,
                "{packet:?} became {run:?}"
            );
            check_encapsulated(&run.frame, packet)
                .map_err(|error| error.context(format!("{packet:?} became {run:?}")))?;
        }
        Ok(())
    })
}

#[test]
fn a_direct_packet_gets_the_macs_of_the_underlay_and_one_hop_less() -> Result<()> {
    on_node(|interfaces| {
        let mut fixture = Fixture::new(interfaces);
        let packets = variants(|transport| DIRECT.from_pod(transport));
        let rows = rows(
            Hook::Egress,
            &mut fixture,
            interfaces.pod,
            &DIRECT,
            &packets,
            |packet| {
                let frame = packet.bytes();
                let sent = DIRECT.routed(&frame);
                (frame, Expected::Redirect(Outcome::FastDirect, sent))
            },
        );
        check_rows(&mut Bench::load()?, &rows)
    })
}

#[test]
fn a_pod_gets_a_direct_packet_with_its_own_macs_and_one_hop_less() -> Result<()> {
    on_node(|interfaces| {
        let mut fixture = Fixture::new(interfaces);
        let packets = variants(|transport| DIRECT.to_pod(transport));
        let rows = rows(
            Hook::Ingress,
            &mut fixture,
            interfaces.underlay,
            &DIRECT,
            &packets,
            |packet| {
                let frame = packet.bytes();
                let delivered = delivered(&frame);
                (frame, Expected::Redirect(Outcome::FastDirect, delivered))
            },
        );
        check_rows(&mut Bench::load()?, &rows)
    })
}

#[test]
fn a_pod_gets_the_inner_packet_with_its_own_macs_and_one_hop_less() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::load()?;
        for checksum in [false, true] {
            let outer = Outer {
                checksum,
                ..TUNNELLED.outer()
            };
            let mut fixture = Fixture::new(interfaces);
            let packets = variants(|transport| TUNNELLED.to_pod(transport));
            let rows = rows(
                Hook::Ingress,
                &mut fixture,
                interfaces.underlay,
                &TUNNELLED,
                &packets,
                |packet| {
                    let inner = packet.bytes();
                    let delivered = Expected::Redirect(Outcome::FastTunnel, delivered(&inner));
                    (outer.around(&inner), delivered)
                },
            );
            check_rows(&mut bench, &rows)?;
        }
        Ok(())
    })
}

/// `__INET_ECN_decapsulate` of the kernel's `include/net/inet_ecn.h`: RFC 6040 figure 4, with outer
/// ECT(1) passed on to inner ECT(0).
#[test]
fn decapsulation_merges_ecn_as_the_kernel_does_in_all_sixteen_combinations() -> Result<()> {
    const NOT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    // Inner, outer, result.
    let table = [
        (NOT, NOT, Some(NOT)),
        (NOT, ECT0, Some(NOT)),
        (NOT, ECT1, Some(NOT)),
        (NOT, CE, None),
        (ECT0, NOT, Some(ECT0)),
        (ECT0, ECT0, Some(ECT0)),
        (ECT0, ECT1, Some(ECT1)),
        (ECT0, CE, Some(CE)),
        (ECT1, NOT, Some(ECT1)),
        (ECT1, ECT0, Some(ECT1)),
        (ECT1, ECT1, Some(ECT1)),
        (ECT1, CE, Some(CE)),
        (CE, NOT, Some(CE)),
        (CE, ECT0, Some(CE)),
        (CE, ECT1, Some(CE)),
        (CE, CE, Some(CE)),
    ];
    on_node(|interfaces| {
        let mut rows_of_all = Vec::new();
        for (inner_ecn, outer_ecn, result) in table {
            for (inner_dscp, outer_dscp) in [(0, 0), (46, 0), (0, 46), (63, 63), (10, 8)] {
                // Identifications that take the checksum through all of its carries.
                for id in [0, 1, 0x7fff, 0xbeef, 0xffff] {
                    let mut fixture = Fixture::new(interfaces);
                    let packet = TUNNELLED.to_pod(TRANSPORTS[0]).with(|p| {
                        p.tos = inner_dscp << 2 | inner_ecn;
                        p.id = id;
                    });
                    let outer = Outer {
                        tos: outer_dscp << 2 | outer_ecn,
                        ..TUNNELLED.outer()
                    };
                    rows_of_all.append(&mut rows(
                        Hook::Ingress,
                        &mut fixture,
                        interfaces.underlay,
                        &TUNNELLED,
                        &[packet],
                        |packet| {
                            let inner = packet.bytes();
                            let expected = match result {
                                None => Expected::Pass(Outcome::Ecn),
                                Some(ecn) => {
                                    let marked = edit_ip(&inner, |ip| {
                                        ip.ecn = ecn.try_into().expect("two bits");
                                    });
                                    Expected::Redirect(Outcome::FastTunnel, delivered(&marked))
                                }
                            };
                            (outer.around(&inner), expected)
                        },
                    ));
                }
            }
        }
        check_rows(&mut Bench::load()?, &rows_of_all)
    })
}

#[test]
fn what_one_node_encapsulates_another_decapsulates_to_the_same_packet() -> Result<()> {
    on_node(|interfaces| {
        let (mut near, mut far) = (Bench::load()?, Bench::load()?);
        let mut near_fixture = Fixture::new(interfaces);
        let mut far_fixture = Fixture::far_end(interfaces);
        let packets = variants(|transport| TUNNELLED.from_pod(transport));
        for packet in &packets {
            near_fixture.grant(packet.flow(Local::Source), &TUNNELLED);
            far_fixture.grant(packet.flow(Local::Destination), &HERE);
        }
        near.set(&near_fixture)?;
        far.set(&far_fixture)?;
        for packet in &packets {
            let from_pod = packet.bytes();
            let sent = near.run(Hook::Egress, &from_pod, &Surroundings::default())?;
            let wire = Surroundings {
                ifindex: interfaces.wire,
                ..Surroundings::default()
            };
            let got = far.run(Hook::Ingress, &sent.frame, &wire)?;
            let want = delivered(&edit_ip(&from_pod, |ip| ip.time_to_live -= 1));
            ensure!(
                got.verdict == Verdict::Redirect && got.frame == want,
                "{packet:?} was sent as {sent:?}\nand delivered as {got:?}"
            );
        }
        Ok(())
    })
}
