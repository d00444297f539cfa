//! What agents ask each other through the overlay. An answer is as long as its question, and goes to nobody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// Bytes of a question without padding.
pub const LEN: usize = 64;
const MAGIC: [u8; 8] = *b"ovlprobe";
const VERSION: u8 = 1;
/// A packet goes without a UDP checksum, and its answer too.
const PLAIN: u8 = 1;
/// Room for what a later version has to say; zero.
const SPARE: [u8; 3] = [0; 3];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub kind: Kind,
    /// Whether it has no UDP checksum.
    pub is_plain: bool,
    pub number: u32,
    /// Random, and repeated by the answer: nobody else knows it.
    pub cookie: u64,
    /// Who sends it.
    pub node: Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Question,
    Answer,
    /// A question for how a node's own peers are.
    Survey,
    /// The answer to that: a [`Report`](super::survey::Report) follows.
    Report,
}

/// What a node says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub subnet: IpNetwork,
    pub public_ip: IpAddr,
}

impl Packet {
    /// As `len` bytes, at least [`LEN`].
    pub fn encode(&self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len.max(LEN));
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.push(self.kind.number());
        bytes.push(self.node.subnet.prefix());
        bytes.push(if self.node.subnet.is_ipv4() { 4 } else { 6 });
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.push(if self.is_plain { PLAIN } else { 0 });
        bytes.extend(SPARE);
        bytes.extend(octets(self.node.subnet.ip()));
        bytes.extend(octets(self.node.public_ip));
        bytes.resize(len.max(LEN), 0);
        bytes
    }

    /// `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.get(..LEN)?.split_first_chunk::<8>()?;
        let ([version, kind, prefix, family], rest) = rest.split_first_chunk::<4>()?;
        let (number, rest) = rest.split_first_chunk::<4>()?;
        let (cookie, rest) = rest.split_first_chunk::<8>()?;
        let ([flags, ..], rest) = rest.split_first_chunk::<{ 1 + SPARE.len() }>()?;
        let (subnet, rest) = rest.split_first_chunk::<16>()?;
        let (public_ip, _) = rest.split_first_chunk::<16>()?;
        if *magic != MAGIC || *version != VERSION {
            return None;
        }
        let subnet = IpNetwork::new(address(*family, *subnet)?, *prefix).ok()?;
        Some(Self {
            kind: Kind::of(*kind)?,
            is_plain: flags & PLAIN != 0,
            number: u32::from_be_bytes(*number),
            cookie: u64::from_be_bytes(*cookie),
            node: Identity {
                subnet,
                public_ip: address(*family, *public_ip)?,
            },
        })
    }
}

impl Kind {
    const ALL: [Self; 4] = [Self::Question, Self::Answer, Self::Survey, Self::Report];

    const fn number(self) -> u8 {
        match self {
            Self::Question => 1,
            Self::Answer => 2,
            Self::Survey => 3,
            Self::Report => 4,
        }
    }

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// An IPv4 address is in the first four.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn address(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = bytes;
    match family {
        4 => Some(Ipv4Addr::new(a, b, c, d).into()),
        6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(subnet: &str, public_ip: &str) -> Packet {
        Packet {
            kind: Kind::Survey,
            is_plain: true,
            number: 7,
            cookie: 0x0123_4567_89ab_cdef,
            node: Identity {
                subnet: subnet.parse().unwrap(),
                public_ip: public_ip.parse().unwrap(),
            },
        }
    }

    #[test]
    fn both_families_come_back_as_they_were_whatever_the_padding() {
        for packet in [
            packet("10.1.2.0/24", "192.168.0.2"),
            packet("fd00:10:5:2::/64", "fd00::2"),
        ] {
            for len in [0, LEN, 1400] {
                let bytes = packet.encode(len);
                assert_eq!(bytes.len(), len.max(LEN));
                assert_eq!(Packet::decode(&bytes), Some(packet));
            }
        }
    }

    #[test]
    fn what_is_cut_off_or_of_another_version_is_nothing() {
        let bytes = packet("10.1.2.0/24", "192.168.0.2").encode(LEN);
        for len in 0..LEN {
            assert_eq!(Packet::decode(&bytes[..len]), None);
        }
        for (at, value) in [(0, b'x'), (8, 2), (9, 5), (10, 33), (11, 5)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert_eq!(Packet::decode(&bytes), None, "{at}");
        }
    }

    proptest! {
        #[test]
        fn anything_may_come(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Packet::decode(&bytes);
        }

        #[test]
        fn anything_after_the_magic_may_come(bytes in prop::collection::vec(any::<u8>(), 56..80)) {
            let mut all = MAGIC.to_vec();
            all.push(VERSION);
            all.extend(bytes);
            if let Some(packet) = Packet::decode(&all) {
                prop_assert_eq!(Packet::decode(&packet.encode(LEN)), Some(packet));
            }
        }
    }
}
