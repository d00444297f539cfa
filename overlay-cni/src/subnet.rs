//! `subnet.env`, as flanneld and the agent write it.

use std::{fs, io, path::Path};

use ipnetwork::IpNetwork;

use crate::error::Error;

/// What a node has of the pod network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The whole networks, IPv4 first.
    pub networks: Vec<IpNetwork>,
    /// This node's subnets, one of each family at most, IPv4 first.
    pub subnets: Vec<IpNetwork>,
    pub mtu: u32,
    /// Whether the node masquerades what pods send to the outside.
    pub ip_masq: bool,
}

impl Subnet {
    pub fn read(path: &Path) -> Result<Self, Error> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|reason| Error::SubnetFile {
                path: path.to_owned(),
                reason,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotReady {
                path: path.to_owned(),
            }),
            Err(source) => Err(Error::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Of a node with both families, for tests.
    #[cfg(test)]
    pub fn sample() -> Self {
        let parsed = |word: &str| word.parse().expect("a network");
        Self {
            networks: vec![parsed("10.5.0.0/16"), parsed("fd00::/48")],
            subnets: vec![parsed("10.5.34.0/24"), parsed("fd00:0:0:34::/64")],
            mtu: 1450,
            ip_masq: true,
        }
    }

    /// The reason of an error says which line is wrong, or what is missing.
    fn parse(text: &str) -> Result<Self, String> {
        let (mut networks, mut networks6) = (Vec::new(), Vec::new());
        let (mut own, mut own6) = (None, None);
        let (mut mtu, mut ip_masq) = (None, None);
        for line in text.lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let wrong = || format!("{line}: the value is not understood");
            let v4 = |word: &str| network(word).filter(IpNetwork::is_ipv4);
            let v6 = |word: &str| network(word).filter(IpNetwork::is_ipv6);
            match key {
                "FLANNEL_NETWORK" => {
                    let parsed: Option<_> = value.split(',').map(v4).collect();
                    networks = parsed.ok_or_else(wrong)?;
                }
                "FLANNEL_IPV6_NETWORK" => {
                    let parsed: Option<_> = value.split(',').map(v6).collect();
                    networks6 = parsed.ok_or_else(wrong)?;
                }
                "FLANNEL_SUBNET" => own = Some(v4(value).ok_or_else(wrong)?),
                "FLANNEL_IPV6_SUBNET" => own6 = Some(v6(value).ok_or_else(wrong)?),
                "FLANNEL_MTU" => mtu = Some(value.parse().map_err(|_| wrong())?),
                "FLANNEL_IPMASQ" => ip_masq = Some(value == "true"),
                _ => {}
            }
        }
        networks.append(&mut networks6);
        let subnets: Vec<_> = own.into_iter().chain(own6).collect();
        let (false, false, Some(mtu), Some(ip_masq)) =
            (networks.is_empty(), subnets.is_empty(), mtu, ip_masq)
        else {
            let missing = [
                (networks.is_empty(), "FLANNEL_NETWORK"),
                (subnets.is_empty(), "FLANNEL_SUBNET"),
                (mtu.is_none(), "FLANNEL_MTU"),
                (ip_masq.is_none(), "FLANNEL_IPMASQ"),
            ];
            let missing = missing.iter().filter(|(is_missing, _)| *is_missing);
            let names: Vec<_> = missing.map(|(_, name)| *name).collect();
            return Err(format!("{} missing", names.join(", ")));
        };
        Ok(Self {
            networks,
            subnets,
            mtu,
            ip_masq,
        })
    }
}

/// Without the host part: the file has the gateway's address.
fn network(word: &str) -> Option<IpNetwork> {
    let of: IpNetwork = word.parse().ok()?;
    IpNetwork::new(of.network(), of.prefix()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "FLANNEL_NETWORK=10.5.0.0/16,10.6.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:34::1/64\nFLANNEL_MTU=1450\n\
        FLANNEL_IPMASQ=true\n";

    #[test]
    fn both_families_are_read_and_gateways_become_subnets() {
        let subnet = Subnet::parse(TEXT).expect("a good file");
        let words = |list: &[IpNetwork]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            words(&subnet.networks),
            ["10.5.0.0/16", "10.6.0.0/16", "fd00::/48"]
        );
        assert_eq!(words(&subnet.subnets), ["10.5.34.0/24", "fd00:0:0:34::/64"]);
        assert_eq!((subnet.mtu, subnet.ip_masq), (1450, true));
    }

    #[test]
    fn what_is_missing_and_what_is_wrong_is_named() {
        let missing = Subnet::parse("FLANNEL_MTU=1450\n").expect_err("little");
        assert_eq!(
            missing,
            "FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_IPMASQ missing"
        );
        let wrong = Subnet::parse("FLANNEL_MTU=big\n").expect_err("no number");
        assert!(wrong.contains("FLANNEL_MTU=big"), "{wrong}");
    }
}
