//! Facts about this host that the kernel tier's packets depend on and the fast path must match.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use nix::time::{ClockId, clock_gettime};

use super::{error::DatapathError, offload};
use crate::model::{Family, Underlay, V4};

/// For both families.
const IP_LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// How long permits last, by protocol; 0: no flow of the protocol is fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitTimes {
    pub tcp: Duration,
    pub udp: Duration,
    pub icmp: Duration,
    pub sctp: Duration,
}

impl PermitTimes {
    /// Long enough that almost every packet of a steady flow is fast, shorter than the 30 s after which
    /// conntrack forgets a UDP flow without replies.
    pub const LONGEST: Self = Self::all(Duration::from_secs(15));

    pub const fn all(time: Duration) -> Self {
        Self {
            tcp: time,
            udp: time,
            icmp: time,
            sctp: time,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts<F: Family = V4> {
    /// TTL or hop limit of tunnel packets: `net.ipv4.ip_default_ttl`, or
    /// `net.ipv6.conf.<underlay>.hop_limit`.
    pub ttl: u8,
    /// `net.ipv4.ip_local_port_range`, first and last: vxlan takes source ports from it.
    pub local_port_range: (u16, u16),
    /// MTUs of the kernel's routes to VTEP addresses, where they carry one.
    pub route_mtus: BTreeMap<F::Address, u32>,
    /// How long permits last, which conntrack's timeouts decide.
    pub permits: PermitTimes,
    /// Whether all that leaves by the underlay has its checksums.
    pub sums: bool,
}

impl<F: Family> HostFacts<F> {
    /// Reads the settings of the network namespace of the calling thread; the routes and the timeouts of
    /// conntrack are others' to read.
    pub fn read(
        underlay: &Underlay<F>,
        route_mtus: BTreeMap<F::Address, u32>,
        permits: PermitTimes,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            ttl: read(&F::ttl_setting(&underlay.name), "a TTL", |text| {
                text.trim().parse().ok()
            })?,
            local_port_range: read(Path::new(IP_LOCAL_PORT_RANGE), "a port range", parse_range)?,
            route_mtus,
            permits,
            sums: !offload::leaves_open(&underlay.name, underlay.hardware),
        })
    }
}

/// The time that permit deadlines are compared with: the clock of `bpf_ktime_get_coarse_ns`, which is
/// behind by up to a timer tick.
pub fn permit_clock() -> Result<Duration, DatapathError> {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_err(|errno| DatapathError::Clock {
            source: errno.into(),
        })
}

fn read<T>(
    path: &Path,
    wanted: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, DatapathError> {
    let text = fs::read_to_string(path).map_err(|source| DatapathError::HostFact {
        path: path.to_owned(),
        source,
    })?;
    parse(&text).ok_or_else(|| DatapathError::HostFactSyntax {
        path: path.to_owned(),
        found: text,
        wanted,
    })
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last)), None) if first <= last => Some((first, last)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_range_is_two_ordered_ports() {
        assert_eq!(parse_range("32768\t60999\n"), Some((32_768, 60_999)));
        for bad in ["", "1", "2 1", "1 2 3", "a b", "1 70000"] {
            assert_eq!(parse_range(bad), None, "{bad:?}");
        }
    }
}
