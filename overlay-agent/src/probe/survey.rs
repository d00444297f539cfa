//! What a node tells another of its own peers, as bytes that are no more than those of the question.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::{book::Book, verdict::Verdict};

/// How the peers of a node are, in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many it has.
    pub peers: u16,
    /// How many of them are in trouble.
    pub in_trouble: u16,
    /// Those, as far as there was room: their subnets.
    pub troubles: Vec<(IpNetwork, Verdict)>,
}

const COUNTS: usize = 4;

impl Report {
    /// Of what is known.
    pub fn of(peers: impl IntoIterator<Item = (IpNetwork, Verdict)>) -> Self {
        let mut report = Self::default();
        for (subnet, verdict) in peers {
            report.peers = report.peers.saturating_add(1);
            if verdict.is_trouble() {
                report.in_trouble = report.in_trouble.saturating_add(1);
                report.troubles.push((subnet, verdict));
            }
        }
        report
    }

    /// Of the peers of one family.
    pub fn of_book(book: &Book, is_ipv4: bool, now: Instant) -> Self {
        let interval = book.interval();
        let peers = book.peers.iter();
        let of_family = peers.filter(|(address, _)| address.is_ipv4() == is_ipv4);
        Self::of(of_family.map(|(_, peer)| {
            let verdict = Verdict::of(peer, interval, book.can_echo, now);
            (peer.target.subnet, verdict)
        }))
    }

    /// In at most `room` bytes; nothing if there is no room for anything.
    pub fn encode(&self, room: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        if room < COUNTS {
            return bytes;
        }
        bytes.extend(self.peers.to_be_bytes());
        bytes.extend(self.in_trouble.to_be_bytes());
        for (subnet, verdict) in &self.troubles {
            let entry = entry(*subnet, *verdict);
            if bytes.len() + entry.len() > room {
                break;
            }
            bytes.extend(entry);
        }
        bytes
    }

    /// What comes after the last entry, as padding, is left alone. `None` for what is no report.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (peers, rest) = bytes.split_first_chunk::<2>()?;
        let (in_trouble, mut rest) = rest.split_first_chunk::<2>()?;
        let mut report = Self {
            peers: u16::from_be_bytes(*peers),
            in_trouble: u16::from_be_bytes(*in_trouble),
            troubles: Vec::new(),
        };
        while report.troubles.len() < usize::from(report.in_trouble)
            && let Some(([family, prefix, state], after)) = rest.split_first_chunk::<3>()
        {
            let (address, after): (IpAddr, _) = match family {
                4 => {
                    let (octets, after) = after.split_first_chunk::<4>()?;
                    (Ipv4Addr::from(*octets).into(), after)
                }
                6 => {
                    let (octets, after) = after.split_first_chunk::<16>()?;
                    (Ipv6Addr::from(*octets).into(), after)
                }
                // Padding, where there was no room for all.
                _ => break,
            };
            let subnet = IpNetwork::new(address, *prefix).ok()?;
            report.troubles.push((subnet, Verdict::of_number(*state)?));
            rest = after;
        }
        Some(report)
    }
}

fn entry(subnet: IpNetwork, verdict: Verdict) -> Vec<u8> {
    let family = if subnet.is_ipv4() { 4 } else { 6 };
    let mut bytes = vec![family, subnet.prefix(), verdict.number()];
    match subnet.ip() {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(index: u32, ipv6: bool) -> IpNetwork {
        if ipv6 {
            IpNetwork::new(Ipv6Addr::from_bits(u128::from(index) << 64).into(), 64).unwrap()
        } else {
            IpNetwork::new(Ipv4Addr::from_bits(index << 8).into(), 24).unwrap()
        }
    }

    fn report(count: u32, ipv6: bool) -> Report {
        let verdicts = Verdict::ALL.into_iter().cycle();
        Report::of((0..count).map(|index| subnet(index, ipv6)).zip(verdicts))
    }

    #[test]
    fn what_is_encoded_comes_back_whatever_follows_it() {
        for ipv6 in [false, true] {
            let report = report(30, ipv6);
            assert!(report.in_trouble > 10 && report.peers == 30);
            let mut bytes = report.encode(1400);
            assert_eq!(Report::decode(&bytes), Some(report.clone()));
            bytes.resize(1400, 0);
            assert_eq!(Report::decode(&bytes), Some(report));
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_left_out() {
        let all = report(60, false);
        let bytes = all.encode(4 + 7 * 5 + 6);
        let told = Report::decode(&bytes).unwrap();
        assert_eq!(told.troubles, all.troubles[..5]);
        assert_eq!(told.in_trouble, all.in_trouble);
        assert!(all.encode(3).is_empty());
    }

    #[test]
    fn every_verdict_has_a_number_of_its_own() {
        for verdict in Verdict::ALL {
            assert_eq!(Verdict::of_number(verdict.number()), Some(verdict));
        }
    }

    proptest! {
        #[test]
        fn anything_may_come(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Report::decode(&bytes);
        }
    }
}
