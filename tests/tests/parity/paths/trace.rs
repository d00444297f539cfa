//! What traceroute shows.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use anyhow::ensure;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber};
use nix::sys::socket::{setsockopt, sockopt};
use overlay_tests::{
    capture::{Capture, Direction},
    decode::decode_ipv4,
    decode6::decode_ipv6,
    differ::{in_both_modes, raw::POD_INTERFACE},
    in_both_families,
    lab::{Lab, family::LabFamily},
    sys::PathMtuDiscovery,
};

use super::ends::{Ends, echo, warm};

trait Trace: LabFamily {
    /// The nodes on the way.
    const HOPS: [&str; 2];

    fn set_ttl(socket: &UdpSocket, ttl: u8) -> nix::Result<()>;

    /// Who says in this frame that a packet's TTL ended.
    fn exceeded_at(frame: &[u8]) -> Option<Self>;
}

impl Trace for Ipv4Addr {
    const HOPS: [&str; 2] = ["10.5.1.1", "10.5.2.0"];

    fn set_ttl(socket: &UdpSocket, ttl: u8) -> nix::Result<()> {
        setsockopt(socket, sockopt::Ipv4Ttl, &ttl.into())
    }

    fn exceeded_at(frame: &[u8]) -> Option<Self> {
        let packet = decode_ipv4(frame).ok()?;
        let (icmp, _) = Icmpv4Header::from_slice(&packet.payload).ok()?;
        let exceeded = packet.ip.protocol == IpNumber::ICMP
            && matches!(icmp.icmp_type, Icmpv4Type::TimeExceeded(_));
        exceeded.then(|| packet.ip.source.into())
    }
}

impl Trace for Ipv6Addr {
    const HOPS: [&str; 2] = ["fd00:10:5:1::1", "fd00:10:5:2::"];

    fn set_ttl(socket: &UdpSocket, ttl: u8) -> nix::Result<()> {
        setsockopt(socket, sockopt::Ipv6Ttl, &ttl.into())
    }

    fn exceeded_at(frame: &[u8]) -> Option<Self> {
        let packet = decode_ipv6(frame).ok()?;
        let (icmp, _) = Icmpv6Header::from_slice(&packet.payload).ok()?;
        let exceeded = packet.ip.next_header == IpNumber::IPV6_ICMP
            && matches!(icmp.icmp_type, Icmpv6Type::TimeExceeded(_));
        exceeded.then(|| packet.ip.source.into())
    }
}

/// The flow that is traced is one the fast path carries.
fn traceroute_shows_the_same_hops<A: Trace>() {
    let nodes = Lab::builder().nodes(2).config(A::CONFIG);
    let traces = in_both_modes(&nodes, &[], |lab, mode| {
        let ends = Ends::<A>::start(lab)?;
        let probe = ends.probe(PathMtuDiscovery::Dont)?;
        warm(lab, mode, || {
            ensure!(echo(&probe, 100)?, "no answer");
            Ok(())
        })?;
        let mut hops = Vec::new();
        for ttl in 1..=4 {
            let capture = Capture::start(&ends.from.namespace, POD_INTERFACE)?;
            A::set_ttl(&probe, ttl)?;
            // An error is the ICMP message, which is read from the capture.
            let reached = matches!(echo(&probe, 100), Ok(true));
            let frames = capture.stop()?;
            let exceeded = frames
                .iter()
                .filter(|frame| frame.direction == Direction::Received)
                .filter_map(|frame| A::exceeded_at(&frame.bytes))
                .map(|hop| hop.to_string());
            hops.push((ttl, exceeded.collect::<Vec<_>>(), reached));
        }
        Ok(hops)
    });
    let [near, far] = A::HOPS.map(str::to_owned);
    let expected = vec![
        (1, vec![near], false),
        (2, vec![far], false),
        (3, vec![], true),
        (4, vec![], true),
    ];
    assert_eq!(traces, [expected.clone(), expected]);
}

in_both_families! { addresses:
    traceroute_shows_the_same_hops,
}
