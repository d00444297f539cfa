//! A packet that a program of the logging flavour told of, in words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use overlay_common::{
    outcome::{Hook, Kind, Outcome},
    record::{FAMILY_IPV4, FAMILY_IPV6, FAMILY_NONE, Record},
};

use crate::names::{interface_label, interface_name, protocol_name};

/// A packet, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketEvent {
    pub hook: &'static str,
    pub kind: &'static str,
    pub outcome: &'static str,
    /// One sentence about it.
    pub meaning: &'static str,
    pub interface: String,
    pub protocol: Option<String>,
    /// Addresses and ports; a port of 0 is none.
    pub ends: Option<[SocketAddr; 2]>,
    /// The other node, of a tunnel packet.
    pub peer: Option<IpAddr>,
    pub bytes: u32,
}

impl PacketEvent {
    /// From a message of `aya-log`: a [`Record`] in hexadecimal.
    pub fn decode(text: &str) -> Option<Self> {
        Self::of(&decode(text)?)
    }

    fn of(record: &Record) -> Option<Self> {
        let hook = Hook::ALL
            .iter()
            .find(|&&hook| hook as u32 == u32::from(record.hook))?;
        let outcome = Outcome::ALL
            .iter()
            .find(|&&outcome| outcome as u32 == u32::from(record.outcome))?;
        let address = |octets| address(record.family, octets);
        let end = |octets, port| Some(SocketAddr::new(address(octets)?, u16::from_be_bytes(port)));
        let source = end(record.src, record.src_port);
        let destination = end(record.dst, record.dst_port);
        Some(Self {
            hook: hook.name(),
            kind: outcome.kind().name(),
            outcome: outcome.name(),
            meaning: outcome.describe(),
            interface: interface_label(record.ifindex, interface_name(record.ifindex).as_deref()),
            protocol: (record.family != FAMILY_NONE).then(|| protocol_name(record.protocol)),
            ends: source.zip(destination).map(<[SocketAddr; 2]>::from),
            peer: address(record.peer).filter(|peer| !peer.is_unspecified()),
            bytes: record.bytes,
        })
    }

    pub fn source(&self) -> Option<String> {
        self.ends.map(|[source, _]| end(source))
    }

    pub fn destination(&self) -> Option<String> {
        self.ends.map(|[_, destination]| end(destination))
    }

    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind.name()
    }
}

fn decode(text: &str) -> Option<Record> {
    let bytes: Vec<u8> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    bytemuck::try_pod_read_unaligned(&bytes).ok()
}

fn address(family: u8, octets: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = octets;
    match family {
        FAMILY_IPV4 => Some(Ipv4Addr::from([a, b, c, d]).into()),
        FAMILY_IPV6 => Some(Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

/// One end of a packet; port 0 is none.
fn end(end: SocketAddr) -> String {
    match end.port() {
        0 => end.ip().to_string(),
        _ => end.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use aya_log::{Formatter as _, LowerHexBytesFormatter};
    use bytemuck::bytes_of;

    use super::*;

    fn hexadecimal(record: &Record) -> String {
        LowerHexBytesFormatter::format(bytes_of(record))
    }

    fn octets<const N: usize>(address: [u8; N]) -> [u8; 16] {
        let mut octets = [0; 16];
        octets[..N].copy_from_slice(&address);
        octets
    }

    fn ipv4() -> Record {
        Record {
            hook: Hook::Egress as u8,
            outcome: Outcome::Ttl as u8,
            family: FAMILY_IPV4,
            protocol: 17,
            ifindex: 1,
            bytes: 90,
            src_port: 4242u16.to_be_bytes(),
            dst_port: 53u16.to_be_bytes(),
            src: octets([10, 5, 1, 2]),
            dst: octets([10, 5, 2, 3]),
            ..Record::default()
        }
    }

    #[test]
    fn a_record_passes_through_a_message_unchanged() {
        assert_eq!(decode(&hexadecimal(&ipv4())), Some(ipv4()));
        for wrong in [
            "",
            "0",
            "00",
            "zz",
            "\u{e9}\u{e9}",
            &hexadecimal(&ipv4())[1..],
        ] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_names_the_packet_and_what_became_of_it() {
        let line = PacketEvent {
            hook: "egress",
            kind: "decline",
            outcome: "ttl",
            meaning: Outcome::Ttl.describe(),
            interface: "lo".to_owned(),
            protocol: Some("udp".to_owned()),
            ends: Some([([10, 5, 1, 2], 4242).into(), ([10, 5, 2, 3], 53).into()]),
            peer: None,
            bytes: 90,
        };
        assert_eq!(PacketEvent::of(&ipv4()), Some(line.clone()));
        assert_eq!(line.source().as_deref(), Some("10.5.1.2:4242"));
        assert_eq!(line.destination().as_deref(), Some("10.5.2.3:53"));
        assert!(line.is(Kind::Decline) && !line.is(Kind::Drop));
    }

    #[test]
    fn ipv6_ends_without_ports_are_addresses_and_a_tunnel_packet_has_a_peer() {
        let pod = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
        let node = Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 1);
        let record = Record {
            hook: Hook::Ingress as u8,
            outcome: Outcome::WrongPeer as u8,
            family: FAMILY_IPV6,
            protocol: 58,
            src: pod.octets(),
            peer: node.octets(),
            ..Record::default()
        };
        let line = PacketEvent::of(&record).expect("a line");
        assert_eq!(line.source().as_deref(), Some("fd00::2"));
        assert_eq!(line.peer, Some(node.into()));
        assert_eq!(line.interface, "if0");
        let with_port = Record {
            src_port: 80u16.to_be_bytes(),
            ..record
        };
        let line = PacketEvent::of(&with_port).expect("a line");
        assert_eq!(line.source().as_deref(), Some("[fd00::2]:80"));
    }

    #[test]
    fn what_is_no_ip_packet_has_no_addresses() {
        let line = PacketEvent::of(&Record::default()).expect("a line");
        assert_eq!((line.protocol, line.ends, line.peer), (None, None, None));
    }

    #[test]
    fn numbers_without_a_name_make_no_line() {
        for (hook, outcome) in [(u8::MAX, 0), (0, u8::MAX)] {
            let record = Record {
                hook,
                outcome,
                ..Record::default()
            };
            assert_eq!(PacketEvent::of(&record), None);
        }
    }
}
