//! How long connection tracking remembers a flow of which it sees no packet, and what follows for the
//! leases of the fast path.
//!
//! With a lease conntrack sees one packet of a direction and then none until it has run out. If it
//! forgets the flow meanwhile, a rule that lets established flows pass drops the next packet. So a
//! lease lasts half as long as the shortest timeout that may be in force for its protocol: from the last
//! packet seen to the first one after the lease it is less than twice as long.

mod dump;
mod objects;
mod settings;
pub mod translated;
mod watch;

use std::{collections::BTreeMap, fmt, time::Duration};

pub use self::watch::{TimeoutWatch, Timeouts};
use crate::{
    datapath::LeaseTimes,
    model::{PerFamily, each_family},
};

/// A protocol as far as leases go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Icmpv6,
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
            Self::Icmpv6 => "ICMPv6",
            Self::Sctp => "SCTP",
        })
    }
}

/// A timeout that may be in force for flows of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeout {
    pub protocol: Protocol,
    pub seconds: u32,
    /// Who sets it: a sysctl, or an object of the packet filter.
    pub origin: String,
}

/// The shortest timeout of each protocol, and who sets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shortest(BTreeMap<Protocol, (u32, String)>);

impl FromIterator<Timeout> for Shortest {
    fn from_iter<T: IntoIterator<Item = Timeout>>(timeouts: T) -> Self {
        let mut shortest = BTreeMap::new();
        for Timeout {
            protocol,
            seconds,
            origin,
        } in timeouts
        {
            let found = shortest
                .entry(protocol)
                .or_insert_with(|| (seconds, origin.clone()));
            if seconds < found.0 {
                *found = (seconds, origin);
            }
        }
        Self(shortest)
    }
}

/// A lease shorter than this makes hardly a packet fast: no packet of the protocol is, then.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// How long a lease lasts if conntrack forgets a flow after `timeout`; 0 if no lease makes sense.
fn lease(timeout: Duration) -> Duration {
    let half = timeout / 2;
    if half < SHORTEST_LEASE {
        Duration::ZERO
    } else {
        half.min(LeaseTimes::LONGEST.udp)
    }
}

impl Shortest {
    fn lease(&self, protocol: Protocol) -> Duration {
        // What conntrack does not follow, it does not forget.
        let timeout = self.0.get(&protocol);
        timeout.map_or(LeaseTimes::LONGEST.udp, |(seconds, _)| {
            lease(Duration::from_secs((*seconds).into()))
        })
    }

    /// Of flows between pods of a family.
    pub fn leases(&self) -> PerFamily<LeaseTimes> {
        let icmp = PerFamily {
            ipv4: Protocol::Icmp,
            ipv6: Protocol::Icmpv6,
        };
        each_family!(icmp, icmp => LeaseTimes {
            tcp: self.lease(Protocol::Tcp),
            udp: self.lease(Protocol::Udp),
            icmp: self.lease(icmp),
            sctp: self.lease(Protocol::Sctp),
        })
    }

    /// What is to be said about the leases, beyond the ordinary.
    pub fn remarks(&self) -> Vec<String> {
        let remark = |(protocol, (seconds, origin)): (&Protocol, &(u32, String))| {
            let lease = self.lease(*protocol);
            if lease == Duration::ZERO {
                Some(format!(
                    "no {protocol} packet is fast: conntrack forgets such flows after {seconds} s \
                     ({origin}); {} s or more are needed",
                    2 * SHORTEST_LEASE.as_secs()
                ))
            } else if lease < LeaseTimes::LONGEST.udp {
                Some(format!(
                    "{protocol} flows are confirmed every {} s: conntrack forgets them after \
                     {seconds} s ({origin})",
                    lease.as_secs_f32()
                ))
            } else {
                None
            }
        };
        self.0.iter().filter_map(remark).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timeout(protocol: Protocol, seconds: u32, origin: &str) -> Timeout {
        Timeout {
            protocol,
            seconds,
            origin: origin.to_owned(),
        }
    }

    #[test]
    fn a_lease_is_half_the_timeout_up_to_15_s_and_none_below_1_s() {
        for (timeout, expected) in [
            (432_000, 15 * SECOND),
            (30, 15 * SECOND),
            (29, SECOND * 29 / 2),
            (10, 5 * SECOND),
            (2, SECOND),
            (1, Duration::ZERO),
            (0, Duration::ZERO),
        ] {
            let lease = lease(Duration::from_secs(timeout));
            assert_eq!(lease, expected, "{timeout}");
            assert!(lease * 2 <= Duration::from_secs(timeout) || lease.is_zero());
        }
    }

    #[test]
    fn the_shortest_timeout_of_a_protocol_counts_for_it_and_for_no_other() {
        let found: Shortest = [
            timeout(Protocol::Udp, 30, "nf_conntrack_udp_timeout"),
            timeout(Protocol::Udp, 8, "object short"),
            timeout(Protocol::Udp, 120, "nf_conntrack_udp_timeout_stream"),
            timeout(Protocol::Icmpv6, 1, "nf_conntrack_icmpv6_timeout"),
        ]
        .into_iter()
        .collect();
        let longest = 15 * SECOND;
        let of = |tcp, udp, icmp| LeaseTimes {
            tcp,
            udp,
            icmp,
            sctp: longest,
        };
        assert_eq!(found.leases().ipv4, of(longest, 4 * SECOND, longest));
        assert_eq!(found.leases().ipv6, of(longest, 4 * SECOND, Duration::ZERO));
        let remarks = found.remarks();
        assert!(
            matches!(&remarks[..], [udp, icmp]
                if udp.contains("every 4 s") && udp.contains("object short")
                && icmp.contains("no ICMPv6 packet is fast")),
            "{remarks:#?}"
        );
    }

    #[test]
    fn without_conntrack_and_with_its_defaults_leases_are_the_longest() {
        assert_eq!(Shortest::default().leases().ipv4, LeaseTimes::LONGEST);
        let defaults: Shortest = [
            timeout(Protocol::Udp, 30, ""),
            timeout(Protocol::Icmp, 30, ""),
            timeout(Protocol::Tcp, 60, ""),
        ]
        .into_iter()
        .collect();
        assert_eq!(defaults.leases().ipv4, LeaseTimes::LONGEST);
        assert!(defaults.remarks().is_empty());
    }
}
