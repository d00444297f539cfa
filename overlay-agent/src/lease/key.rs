//! Lease keys: the subnet a node owns, as text under `<prefix>/subnets/`.
//!
//! flannel writes `10.5.34.0-24`, in a dual-stack cluster `10.5.34.0-24&fd00:10:5:1::-64`, and
//! reads any key that *ends* in such a text; what it cannot read it skips.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnetwork::{Ipv4Network, Ipv6Network};
use regex::Regex;

/// The subnet(s) of one lease; its text is the last part of the etcd key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    pub subnet: Ipv4Network,
    /// Only in dual-stack clusters.
    pub subnet6: Option<Ipv6Network>,
}

impl LeaseKey {
    pub const fn v4(subnet: Ipv4Network) -> Self {
        Self {
            subnet,
            subnet6: None,
        }
    }

    /// True if the two name an address in common, of either family.
    pub fn overlaps(&self, other: &Self) -> bool {
        let pair = self.subnet6.zip(other.subnet6);
        self.subnet.overlaps(other.subnet) || pair.is_some_and(|(a, b)| a.overlaps(b))
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
        let subnet = subnet4(part(1)?.parse().ok()?, part(2)?.parse().ok()?)?;
        let subnet6 = match (part(3), part(4)) {
            (Some(address), Some(len)) => Some(subnet6(address.parse().ok()?, len.parse().ok()?)?),
            _ => None,
        };
        Some(Self { subnet, subnet6 })
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.subnet.ip(), self.subnet.prefix())?;
        match self.subnet6 {
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
            "0.0.0.0-0",
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
    fn keys_that_are_no_usable_subnet_are_skipped() {
        for text in [
            "/coreos.com/network/config",
            "/coreos.com/network/subnets/",
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
