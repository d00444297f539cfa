//! How long connection tracking remembers a flow of which it sees no packet, and what follows for the
//! permits of the fast path.
//!
//! With a permit conntrack sees one packet of a direction and then none until it has run out. If it
//! forgets the flow meanwhile, a rule that lets established flows pass drops the next packet. So a
//! permit lasts half as long as the shortest timeout that may be in force for its protocol: from the last
//! packet seen to the first one after the permit it is less than twice as long.

pub mod connection;
mod dump;
mod objects;
mod settings;
pub mod translated;
mod watch;

use std::{collections::BTreeMap, fmt, time::Duration};

pub use self::watch::{TimeoutWatch, Timeouts};
use crate::{
    datapath::PermitTimes,
    model::{PerFamily, each_family},
};

/// A protocol as far as permits go.
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

/// A permit shorter than this makes hardly a packet fast: no packet of the protocol is, then.
const SHORTEST_PERMIT: Duration = Duration::from_secs(1);

/// How long a permit lasts if conntrack forgets a flow after `timeout`; 0 if no permit makes sense.
fn permit(timeout: Duration) -> Duration {
    let half = timeout / 2;
    if half < SHORTEST_PERMIT {
        Duration::ZERO
    } else {
        half.min(PermitTimes::LONGEST.udp)
    }
}

impl Shortest {
    fn permit(&self, protocol: Protocol) -> Duration {
        // What conntrack does not follow, it does not forget.
        let timeout = self.0.get(&protocol);
        timeout.map_or(PermitTimes::LONGEST.udp, |(seconds, _)| {
            permit(Duration::from_secs((*seconds).into()))
        })
    }

    /// Of flows between pods of a family.
    pub fn permits(&self) -> PerFamily<PermitTimes> {
        let icmp = PerFamily {
            ipv4: Protocol::Icmp,
            ipv6: Protocol::Icmpv6,
        };
        each_family!(icmp, icmp => PermitTimes {
            tcp: self.permit(Protocol::Tcp),
            udp: self.permit(Protocol::Udp),
            icmp: self.permit(icmp),
            sctp: self.permit(Protocol::Sctp),
        })
    }

    /// What is to be said about the permits, beyond the ordinary.
    pub fn remarks(&self) -> Vec<String> {
        let remark = |(protocol, (seconds, origin)): (&Protocol, &(u32, String))| {
            let permit = self.permit(*protocol);
            if permit == Duration::ZERO {
                Some(format!(
                    "no {protocol} packet is fast: conntrack forgets such flows after {seconds} s \
                     ({origin}); {} s or more are needed",
                    2 * SHORTEST_PERMIT.as_secs()
                ))
            } else if permit < PermitTimes::LONGEST.udp {
                Some(format!(
                    "{protocol} flows are confirmed every {} s: conntrack forgets them after \
                     {seconds} s ({origin})",
                    permit.as_secs_f32()
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
    fn a_permit_is_half_the_timeout_up_to_15_s_and_none_below_1_s() {
        for (timeout, expected) in [
            (432_000, 15 * SECOND),
            (30, 15 * SECOND),
            (29, SECOND * 29 / 2),
            (10, 5 * SECOND),
            (2, SECOND),
            (1, Duration::ZERO),
            (0, Duration::ZERO),
        ] {
            let permit = permit(Duration::from_secs(timeout));
            assert_eq!(permit, expected, "{timeout}");
            assert!(permit * 2 <= Duration::from_secs(timeout) || permit.is_zero());
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
        let of = |tcp, udp, icmp| PermitTimes {
            tcp,
            udp,
            icmp,
            sctp: longest,
        };
        assert_eq!(found.permits().ipv4, of(longest, 4 * SECOND, longest));
        assert_eq!(
            found.permits().ipv6,
            of(longest, 4 * SECOND, Duration::ZERO)
        );
        let remarks = found.remarks();
        assert!(
            matches!(&remarks[..], [udp, icmp]
                if udp.contains("every 4 s") && udp.contains("object short")
                && icmp.contains("no ICMPv6 packet is fast")),
            "{remarks:#?}"
        );
    }

    #[test]
    fn without_conntrack_and_with_its_defaults_permits_are_the_longest() {
        assert_eq!(Shortest::default().permits().ipv4, PermitTimes::LONGEST);
        let defaults: Shortest = [
            timeout(Protocol::Udp, 30, ""),
            timeout(Protocol::Icmp, 30, ""),
            timeout(Protocol::Tcp, 60, ""),
        ]
        .into_iter()
        .collect();
        assert_eq!(defaults.permits().ipv4, PermitTimes::LONGEST);
        assert!(defaults.remarks().is_empty());
    }
}
