//! The bytes of encapsulated, decapsulated and routed packets, over all kinds of pod packets.

use std::{io, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use etherparse::{Ethernet2Header, IpHeaders, IpNumber, SlicedPacket, UdpHeader};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench, Expected, Hex, Row, Surroundings, Verdict, check_rows,
        fixture::{
            Cluster, Fixture, OUTER_TTL, Remote, SOURCE_PORT, VNI, VTEP_MAC, VXLAN_PORT, delivered,
            remember,
        },
        node::{UNDERLAY_MAC, on_node},
        packet::{ETH_LEN, Local, Outer, Packet, TCP_ACK, Transport},
    },
    requirements::announce_skip,
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

/// Every transport with every TOS byte, with short, odd and even lengths and the longest that fits,
/// and with many values where no program looks: in IPv4 they take the checksum to the edges of
/// one's-complement arithmetic.
fn variants<F: Cluster>(packet: impl Fn(Transport) -> Packet<F>) -> Vec<Packet<F>> {
    let mtu = usize::from(F::POD_MTU);
    let mut packets = Vec::new();
    for transport in TRANSPORTS {
        for tos in 0..=255 {
            // A permit is of one DSCP.
            let transport = transport.of_flow(1000 + u16::from(tos >> 2));
            packets.push(packet(transport).with(|p| p.tos = tos));
        }
        for value in [0xffff_fffe, 0xffff_ffff] {
            for len in [0, 1, 2, 3, 64, 65, mtu - 1, mtu] {
                let sized = packet(transport).sized(len);
                packets.push(sized.with(|p| F::vary(&mut p.ip, value)));
            }
        }
        for value in (0..=0x000f_ffff).step_by(4_093) {
            packets.push(packet(transport).with(|p| F::vary(&mut p.ip, value)));
        }
    }
    packets
}

/// Rows for `packets`, in one fixture that grants all of their flows.
fn rows<F: Cluster>(
    hook: Hook,
    fixture: &mut Fixture<F>,
    ifindex: u32,
    remote: &Remote<F>,
    packets: &[Packet<F>],
    mut each: impl FnMut(&Packet<F>) -> (Vec<u8>, Expected),
) -> Vec<Row<F>> {
    let local = if hook == Hook::Egress {
        Local::Source
    } else {
        Local::Destination
    };
    for packet in packets {
        remember(fixture.grant(packet.flow(local), remote), packet);
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

fn an_encapsulated_packet_has_the_bytes_of_the_template_and_one_hop_less<F: Cluster>() -> Result<()>
{
    on_node(|interfaces| {
        let mut fixture = Fixture::new(interfaces);
        let packets = variants::<F>(|transport| F::TUNNELLED.from_pod(transport));
        let rows = rows(
            Hook::Egress,
            &mut fixture,
            interfaces.pod,
            &F::TUNNELLED,
            &packets,
            |packet| {
                let frame = packet.bytes();
                let sent = F::TUNNELLED.encapsulated(&frame, SOURCE_PORT);
                (frame, Expected::Redirect(Outcome::FastTunnel, sent))
            },
        );
        check_rows(&mut Bench::load()?, &rows)
    })
}

/// What an independent decoder says of the tunnel packet that `original` became.
fn check_encapsulated<F: Cluster>(sent: &[u8], original: &Packet<F>) -> Result<()> {
    let (eth, rest) = Ethernet2Header::from_slice(sent)?;
    ensure!(eth.destination == F::TUNNELLED.neighbour.octets, "{eth:?}");
    ensure!(eth.source == UNDERLAY_MAC.octets, "{eth:?}");
    let inner_len = original.bytes().len() - ETH_LEN;
    let udp_len = inner_len + usize::from(F::OVERHEAD) - F::IP_LEN;
    // Congestion of the tunnel's own path is told from congestion before it.
    let ecn = [0, 1, 2, 2][usize::from(original.tos & 3)];
    let (addresses, protocol) = match IpHeaders::from_slice(rest)?.0 {
        IpHeaders::Ipv4(ip, _) => {
            ensure!(ip.header_checksum == ip.calc_header_checksum(), "{ip:?}");
            ensure!(usize::from(ip.total_len) == udp_len + 20, "{ip:?}");
            ensure!(ip.time_to_live == OUTER_TTL && ip.dont_fragment, "{ip:?}");
            ensure!(ip.identification == 0 && ip.options.is_empty(), "{ip:?}");
            ensure!(ip.dscp.value() == 0 && ip.ecn.value() == ecn, "{ip:?}");
            let addresses: [IpAddr; 2] = [ip.source.into(), ip.destination.into()];
            (addresses, ip.protocol)
        }
        IpHeaders::Ipv6(ip, _) => {
            ensure!(usize::from(ip.payload_length) == udp_len, "{ip:?}");
            ensure!(ip.hop_limit == OUTER_TTL, "{ip:?}");
            ensure!(ip.flow_label.value() == 0, "{ip:?}");
            ensure!(ip.traffic_class == ecn, "{ip:?}");
            let addresses: [IpAddr; 2] = [ip.source.into(), ip.destination.into()];
            (addresses, ip.next_header)
        }
    };
    let nodes: [IpAddr; 2] =
        [F::VTEP, F::TUNNELLED.vtep].map(|octets| F::Address::from(octets).into());
    ensure!(addresses == nodes, "{addresses:?}");
    ensure!(protocol == IpNumber::UDP, "{protocol:?}");
    let rest = rest.get(F::IP_LEN..).context("no UDP header")?;
    let (udp, rest) = UdpHeader::from_slice(rest)?;
    ensure!(
        udp.source_port == SOURCE_PORT && udp.destination_port == VXLAN_PORT,
        "{udp:?}"
    );
    ensure!(udp.checksum == 0, "{udp:?}");
    ensure!(usize::from(udp.length) == udp_len, "{udp:?}");
    let (vxlan, inner) = rest.split_at_checked(8).context("no vxlan header")?;
    let want = [[8, 0, 0, 0], (VNI << 8).to_be_bytes()].concat();
    ensure!(vxlan == want, "{vxlan:?} instead of {want:?}");
    let (eth, rest) = Ethernet2Header::from_slice(inner)?;
    ensure!(eth.source == VTEP_MAC.octets, "{eth:?}");
    ensure!(eth.destination == F::TUNNELLED.vtep_mac.octets, "{eth:?}");
    ensure!(
        rest == &F::hop(&original.bytes())[ETH_LEN..],
        "the inner packet is not the pod's, one hop further"
    );
    SlicedPacket::from_ethernet(inner)?;
    Ok(())
}

fn an_independent_decoder_finds_the_pods_packet_in_the_tunnel_packet<F: Cluster>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::load()?;
        let mut fixture = Fixture::new(interfaces);
        let packets = variants::<F>(|transport| F::TUNNELLED.from_pod(transport));
        for packet in &packets {
            remember(
                fixture.grant(packet.flow(Local::Source), &F::TUNNELLED),
                packet,
            );
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

fn a_direct_packet_gets_the_macs_of_the_underlay_and_one_hop_less<F: Cluster>() -> Result<()> {
    on_node(|interfaces| {
        let mut fixture = Fixture::new(interfaces);
        let packets = variants::<F>(|transport| F::DIRECT.from_pod(transport));
        let rows = rows(
            Hook::Egress,
            &mut fixture,
            interfaces.pod,
            &F::DIRECT,
            &packets,
            |packet| {
                let frame = packet.bytes();
                let sent = F::DIRECT.routed(&frame);
                (frame, Expected::Redirect(Outcome::FastDirect, sent))
            },
        );
        check_rows(&mut Bench::load()?, &rows)
    })
}

fn a_pod_gets_a_direct_packet_with_its_own_macs_and_one_hop_less<F: Cluster>() -> Result<()> {
    on_node(|interfaces| {
        let mut fixture = Fixture::new(interfaces);
        let packets = variants::<F>(|transport| F::DIRECT.to_pod(transport));
        let rows = rows(
            Hook::Ingress,
            &mut fixture,
            interfaces.underlay,
            &F::DIRECT,
            &packets,
            |packet| {
                let frame = packet.bytes();
                let delivered = delivered::<F>(&frame);
                (frame, Expected::Redirect(Outcome::FastDirect, delivered))
            },
        );
        check_rows(&mut Bench::load()?, &rows)
    })
}

fn a_pod_gets_the_inner_packet_with_its_own_macs_and_one_hop_less<F: Cluster>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::load()?;
        for checksum in [false, true] {
            let outer = Outer {
                checksum,
                ..F::TUNNELLED.outer()
            };
            let mut fixture = Fixture::new(interfaces);
            let packets = variants::<F>(|transport| F::TUNNELLED.to_pod(transport));
            let rows = rows(
                Hook::Ingress,
                &mut fixture,
                interfaces.underlay,
                &F::TUNNELLED,
                &packets,
                |packet| {
                    let inner = packet.bytes();
                    let delivered = Expected::Redirect(Outcome::FastTunnel, delivered::<F>(&inner));
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
fn decapsulation_merges_ecn_as_the_kernel_does_in_all_sixteen_combinations<F: Cluster>()
-> Result<()> {
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
                // In IPv4, identifications that take the checksum through all of its carries.
                for value in [0, 1, 0x7fff, 0xbeef, 0xffff] {
                    let mut fixture = Fixture::new(interfaces);
                    let packet = F::TUNNELLED.to_pod(TRANSPORTS[0]).with(|p| {
                        p.tos = inner_dscp << 2 | inner_ecn;
                        F::vary(&mut p.ip, value);
                    });
                    let outer = Outer {
                        tos: outer_dscp << 2 | outer_ecn,
                        ..F::TUNNELLED.outer()
                    };
                    rows_of_all.append(&mut rows(
                        Hook::Ingress,
                        &mut fixture,
                        interfaces.underlay,
                        &F::TUNNELLED,
                        &[packet],
                        |packet| {
                            let inner = packet.bytes();
                            let expected = match result {
                                None => Expected::Pass(Outcome::Ecn),
                                Some(ecn) => {
                                    let marked = F::with_tos(&inner, inner_dscp << 2 | ecn);
                                    Expected::Redirect(Outcome::FastTunnel, delivered::<F>(&marked))
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

/// Whether the kernel refused a test run as it was asked for.
pub fn is_invalid(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::InvalidInput)
}

pub fn announce_no_checksums() {
    let test = std::thread::current();
    let reason = "this kernel has no checksums in test runs (Linux 6.11 has)";
    announce_skip(test.name().unwrap_or("prog"), reason);
}

fn the_checksum_that_a_device_computed_is_right_for_what_the_pod_gets<F: Cluster>() -> Result<()> {
    on_node(|interfaces| {
        let mut bench = Bench::<F>::load()?;
        let mut fixture = Fixture::new(interfaces);
        let surroundings = Surroundings {
            ifindex: interfaces.underlay,
            checksum: true,
            ..Surroundings::default()
        };
        let mut cases = Vec::new();
        for remote in [F::TUNNELLED, F::DIRECT] {
            for transport in TRANSPORTS {
                let headers = [(0xfe, 64), (0xb9, 2), (0x02, 255), (0xff, 3), (0x01, 129)];
                for (number, (tos, ttl)) in (2000..).zip(headers) {
                    let packet = remote.to_pod(transport.of_flow(number));
                    let packet = packet.with(|p| (p.tos, p.ttl) = (tos, ttl));
                    remember(
                        fixture.grant(packet.flow(Local::Destination), &remote),
                        &packet,
                    );
                    let inner = packet.bytes();
                    if remote == F::DIRECT {
                        cases.push(inner);
                        continue;
                    }
                    for (tos, checksum) in [(0, false), (0, true), (1, false), (3, true)] {
                        let outer = Outer {
                            tos,
                            checksum,
                            ..remote.outer()
                        };
                        cases.push(outer.around(&inner));
                    }
                }
            }
        }
        bench.set(&fixture)?;
        for frame in cases {
            let run = match bench.run(Hook::Ingress, &frame, &surroundings) {
                Err(error) if is_invalid(&error) => {
                    announce_no_checksums();
                    return Ok(());
                }
                run => run.with_context(|| format!("{}", Hex(&frame)))?,
            };
            let outcome = run.outcome(Hook::Ingress, frame.len())?;
            ensure!(
                matches!(outcome, Outcome::FastTunnel | Outcome::FastDirect),
                "{run:?}"
            );
        }
        Ok(())
    })
}

fn what_one_node_encapsulates_another_decapsulates_to_the_same_packet<F: Cluster>() -> Result<()> {
    on_node(|interfaces| {
        let (mut near, mut far) = (Bench::<F>::load()?, Bench::<F>::load()?);
        let mut near_fixture = Fixture::new(interfaces);
        let mut far_fixture = Fixture::far_end(interfaces);
        let packets = variants::<F>(|transport| F::TUNNELLED.from_pod(transport));
        for packet in &packets {
            remember(
                near_fixture.grant(packet.flow(Local::Source), &F::TUNNELLED),
                packet,
            );
            let arriving = packet.clone().with(|p| p.ttl -= 1);
            remember(
                far_fixture.grant(packet.flow(Local::Destination), &F::HERE),
                &arriving,
            );
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
            let want = delivered::<F>(&F::hop(&from_pod));
            ensure!(
                got.verdict == Verdict::Redirect && got.frame == want,
                "{packet:?} was sent as {sent:?}\nand delivered as {got:?}"
            );
        }
        Ok(())
    })
}

in_both_families! {
    the_checksum_that_a_device_computed_is_right_for_what_the_pod_gets,
    an_encapsulated_packet_has_the_bytes_of_the_template_and_one_hop_less,
    an_independent_decoder_finds_the_pods_packet_in_the_tunnel_packet,
    a_direct_packet_gets_the_macs_of_the_underlay_and_one_hop_less,
    a_pod_gets_a_direct_packet_with_its_own_macs_and_one_hop_less,
    a_pod_gets_the_inner_packet_with_its_own_macs_and_one_hop_less,
    decapsulation_merges_ecn_as_the_kernel_does_in_all_sixteen_combinations,
    what_one_node_encapsulates_another_decapsulates_to_the_same_packet,
}
