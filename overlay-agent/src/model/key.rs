//! Lease keys: the subnet a node owns, as text under `<prefix>/subnets/`.
//!
//! flannel writes `10.5.34.0-24`, in a dual-stack cluster `10.5.34.0-24&fd00:10:5:1::-64`, and
//! reads any key that *ends* in such a text; what it cannot read it skips. In a cluster without IPv4
//! it writes `0.0.0.0-0&fd00:10:5:1::-64`.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use regex::Regex;

use crate::model::PerFamily;

/// The subnet(s) of one lease; its text is the last part of the etcd key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseKey {
    /// With a subnet of each family in dual-stack clusters.
    V4(Ipv4Network, Option<Ipv6Network>),
    V6(Ipv6Network),
}

impl LeaseKey {
    /// `None` without any subnet.
    pub fn new(ipv4: Option<Ipv4Network>, ipv6: Option<Ipv6Network>) -> Option<Self> {
        match (ipv4, ipv6) {
            (Some(ipv4), ipv6) => Some(Self::V4(ipv4, ipv6)),
            (None, ipv6) => ipv6.map(Self::V6),
        }
    }

    pub const fn ipv4(&self) -> Option<Ipv4Network> {
        match self {
            Self::V4(subnet, _) => Some(*subnet),
            Self::V6(_) => None,
        }
    }

    pub const fn ipv6(&self) -> Option<Ipv6Network> {
        match self {
            Self::V4(_, subnet) => *subnet,
            Self::V6(subnet) => Some(*subnet),
        }
    }

    pub const fn subnets(&self) -> PerFamily<Option<Ipv4Network>, Option<Ipv6Network>> {
        PerFamily {
            ipv4: self.ipv4(),
            ipv6: self.ipv6(),
        }
    }

    /// The subnet a lease goes by: IPv4's, and IPv6's where there is none.
    pub const fn subnet(&self) -> IpNetwork {
        match self {
            Self::V4(subnet, _) => IpNetwork::V4(*subnet),
            Self::V6(subnet) => IpNetwork::V6(*subnet),
        }
    }

    /// The first in order of all keys that go by this subnet.
    pub const fn first_of(subnet: IpNetwork) -> Self {
        match subnet {
            IpNetwork::V4(subnet) => Self::V4(subnet, None),
            IpNetwork::V6(subnet) => Self::V6(subnet),
        }
    }

    /// True if the two name an address in common, of either family.
    pub fn overlaps(&self, other: &Self) -> bool {
        let pair = self.ipv4().zip(other.ipv4());
        let pair6 = self.ipv6().zip(other.ipv6());
        pair.is_some_and(|(a, b)| a.overlaps(b)) || pair6.is_some_and(|(a, b)| a.overlaps(b))
    }

    /// Reads the end of an etcd key. `None` for keys that name no subnet, and for subnets with
    /// host bits, which no route can be made of.
    pub fn parse(key: &str) -> Option<Self> {
        static FORM: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(r"([0-9]+\.[0-9]+\.[0-9]+\.[0-9]+)-([0-9]+)(?:&([a-f0-9:]+)-([0-9]+))?$")
                .ok()
        });
        let parts = FORM.as_ref()?.captures(key)?;
        let part = |n| parts.get(n).map(|m| m.as_str());
        let ipv4 = subnet4(part(1)?.parse().ok()?, part(2)?.parse().ok()?)?;
        let ipv6 = match (part(3), part(4)) {
            (Some(address), Some(len)) => Some(subnet6(address.parse().ok()?, len.parse().ok()?)?),
            _ => None,
        };
        // Go's zero value stands for "none".
        Self::new(Some(ipv4).filter(|ipv4| ipv4.prefix() > 0), ipv6)
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(subnet, _) => write!(f, "{}-{}", subnet.ip(), subnet.prefix())?,
            Self::V6(_) => f.write_str("0.0.0.0-0")?,
        }
        match self.ipv6() {
            Some(subnet) => write!(f, "&{}-{}", subnet.ip(), subnet.prefix()),
            None => Ok(()),
        }
    }
}

fn subnet4(address: Ipv4Addr, len: u8) -> Option<Ipv4Network> {
    let subnet = Ipv4Network::new(address, len).ok()?;
    (len <= 31 && subnet.network() == address).then_some(subnet)
}

fn subnet6(address: Ipv6Addr, len: u8) -> Option<Ipv6Network> {
    let subnet = Ipv6Network::new(address, len).ok()?;
    (len <= 127 && subnet.network() == address).then_some(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_key_texts_are_read_and_written_unchanged() {
        for text in [
            "10.5.34.0-24",
            "10.5.34.0-24&fd00:10:5:1::-64",
            "10.12.13.0-24&fd00:12:13::-56",
            "0.0.0.0-0&fd00:10:5:1::-64",
        ] {
            let key = LeaseKey::parse(&format!("/coreos.com/network/subnets/{text}"));
            assert_eq!(key.map(|k| k.to_string()).as_deref(), Some(text));
        }
    }

    #[test]
    fn ipv6_is_written_in_canonical_form() {
        let key = LeaseKey::parse("10.5.34.0-24&fd00:0010:5:1:0:0:0:0-64").unwrap();
        assert_eq!(key.to_string(), "10.5.34.0-24&fd00:10:5:1::-64");
    }

    #[test]
    fn a_lease_goes_by_its_ipv4_subnet_if_it_has_one() {
        for (key, subnet) in [
            ("10.5.34.0-24", "10.5.34.0/24"),
            ("10.5.34.0-24&fd00:10:5:1::-64", "10.5.34.0/24"),
            ("0.0.0.0-0&fd00:10:5:1::-64", "fd00:10:5:1::/64"),
        ] {
            let subnet: IpNetwork = subnet.parse().unwrap();
            let key = LeaseKey::parse(key).unwrap();
            assert_eq!(key.subnet(), subnet);
            assert!(LeaseKey::first_of(subnet) <= key);
        }
        let other = LeaseKey::parse("0.0.0.0-0&fd00:10:5:2::-64").unwrap();
        assert!(!LeaseKey::parse("10.5.34.0-24").unwrap().overlaps(&other));
    }

    #[test]
    fn keys_that_are_no_usable_subnet_are_skipped() {
        for text in [
            "/coreos.com/network/config",
            "/coreos.com/network/subnets/",
            "0.0.0.0-0",
            "10.5.34.0/24",
            "10.5.34.0-32",
            "10.5.34.7-24",
            "10.5.34-24",
            "300.5.34.0-24",
            "10.5.34.0-24/x",
            "10.5.34.0-24&fd00::1-64",
            "10.5.34.0-24&fd00::-128",
            "10.5.34.0-24&zz-64",
            "10.5.34.0-99999999999999999999",
        ] {
            assert_eq!(LeaseKey::parse(text), None, "{text}");
        }
    }
}
