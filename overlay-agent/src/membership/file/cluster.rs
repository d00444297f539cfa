//! The text of a peers file, and what it says. No I/O.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use overlay_common::addr::MacAddr;
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use crate::{
    config::network::NetworkConfig,
    model::{Family, LeaseAttrs, LeaseKey, PeerLease, V4, V6},
};

/// A cluster as a peers file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The network config, as JSON.
    pub config: String,
    /// All nodes, in the order of the file.
    pub nodes: Vec<PeerLease>,
}

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {reason}")]
pub struct FileError {
    pub line: usize,
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    network: Spanned<toml::Table>,
    #[serde(default)]
    node: Vec<Spanned<Entry>>,
}

/// A node. Which of the keys must be there is up to the families of the network.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    /// For people.
    name: Option<String>,
    address: Option<Spanned<Ipv4Addr>>,
    subnet: Option<Spanned<Ipv4Network>>,
    vtep_mac: Option<Spanned<String>>,
    address6: Option<Spanned<Ipv6Addr>>,
    subnet6: Option<Spanned<Ipv6Network>>,
    vtep_mac6: Option<Spanned<String>>,
}

/// What an entry says of one family.
struct Said<'a, F: Family> {
    address: Option<&'a Spanned<F::Address>>,
    subnet: Option<&'a Spanned<F::Network>>,
    mac: Option<&'a Spanned<String>>,
    /// The keys, for messages.
    keys: [&'static str; 3],
}

/// What it says, found to be right.
struct Right<F: Family> {
    address: F::Address,
    subnet: F::Network,
    data: Option<String>,
}

/// Where something was said first, for what must not be said twice.
#[derive(Default)]
struct Seen {
    addresses: BTreeMap<IpAddr, usize>,
    subnets: BTreeMap<IpNetwork, usize>,
    data: BTreeMap<(&'static str, String), usize>,
}

impl Cluster {
    /// Reads a peers file.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let lines = Lines(text);
        let document: Document = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            lines.error(start, error.message())
        })?;
        let at = document.network.span().start;
        let config = serde_json::to_string(document.network.get_ref())
            .map_err(|error| lines.error(at, error))?;
        let network = NetworkConfig::parse(config.as_bytes())
            .map_err(|error| lines.error(at, format!("[network]: {error}")))?
            .config;
        let mut seen = Seen::default();
        let mut nodes = Vec::with_capacity(document.node.len());
        for entry in &document.node {
            let node = entry
                .get_ref()
                .lease(&network, &mut seen, &lines, &entry.span());
            nodes.push(node?);
        }
        Ok(Self { config, nodes })
    }

    /// The node with this address.
    pub fn node(&self, address: IpAddr) -> Option<&PeerLease> {
        self.nodes
            .iter()
            .find(|node| node.attrs.node_ip() == address)
    }
}

impl Entry {
    fn lease(
        &self,
        network: &NetworkConfig,
        seen: &mut Seen,
        lines: &Lines<'_>,
        span: &Range<usize>,
    ) -> Result<PeerLease, FileError> {
        let ipv4 = Said::<V4> {
            address: self.address.as_ref(),
            subnet: self.subnet.as_ref(),
            mac: self.vtep_mac.as_ref(),
            keys: ["address", "subnet", "vtep-mac"],
        };
        let ipv6 = Said::<V6> {
            address: self.address6.as_ref(),
            subnet: self.subnet6.as_ref(),
            mac: self.vtep_mac6.as_ref(),
            keys: ["address6", "subnet6", "vtep-mac6"],
        };
        let name = self.name.as_deref();
        let pools = &network.pools;
        let ipv4 = ipv4.check(
            pools.ipv4.map(|pool| pool.network),
            network,
            seen,
            lines,
            span,
            name,
        )?;
        let ipv6 = ipv6.check(
            pools.ipv6.map(|pool| pool.network),
            network,
            seen,
            lines,
            span,
            name,
        )?;
        let subnets = (
            ipv4.as_ref().map(|said| said.subnet),
            ipv6.as_ref().map(|said| said.subnet),
        );
        let key = LeaseKey::new(subnets.0, subnets.1);
        let key = key.ok_or_else(|| lines.error(span.start, "a node without a subnet"))?;
        let mut attrs = LeaseAttrs::alloc(
            ipv4.as_ref()
                .map_or(Ipv4Addr::UNSPECIFIED, |said| said.address),
        );
        network
            .backend
            .lease_type()
            .clone_into(&mut attrs.backend_type);
        attrs.backend_data = ipv4.and_then(|said| said.data);
        if let Some(said) = ipv6 {
            attrs = attrs.with_ipv6(said.address, said.data);
        }
        Ok(PeerLease {
            key,
            attrs: attrs.into(),
        })
    }
}

impl<F: Family> Said<'_, F> {
    /// `None` if the network does not have the family.
    fn check(
        &self,
        pool: Option<F::Network>,
        network: &NetworkConfig,
        seen: &mut Seen,
        lines: &Lines<'_>,
        span: &Range<usize>,
        name: Option<&str>,
    ) -> Result<Option<Right<F>>, FileError> {
        let [address_key, subnet_key, mac_key] = self.keys;
        let of = name.map_or(String::new(), |name| format!(" of {name}"));
        let Some(pool) = pool else {
            let given = [
                (address_key, self.address.map(Spanned::span)),
                (subnet_key, self.subnet.map(Spanned::span)),
                (mac_key, self.mac.map(Spanned::span)),
            ];
            let given = given.into_iter().find_map(|(key, span)| Some((key, span?)));
            return given.map_or(Ok(None), |(key, span)| {
                let reason = format!("{key}{of}: [network] has no {}", F::NAME);
                Err(lines.error(span.start, reason))
            });
        };
        let missing = |key| lines.error(span.start, format!("the node{of} lacks {key}"));
        let address = self.address.ok_or_else(|| missing(address_key))?;
        let subnet = self.subnet.ok_or_else(|| missing(subnet_key))?;
        let (place, subnet) = (subnet.span().start, *subnet.get_ref());
        let wrong = |reason: String| lines.error(place, format!("{subnet_key}{of}: {reason}"));
        let given: IpNetwork = subnet.into();
        if given.ip() != given.network() {
            let (first, len) = (given.network(), given.prefix());
            return Err(wrong(format!(
                "{subnet} has host bits; {first}/{len} is meant?"
            )));
        }
        let (low, high) = (F::first(subnet), F::last(subnet));
        if low < F::first(pool) || high > F::last(pool) {
            return Err(wrong(format!("{subnet} is not within the network {pool}")));
        }
        let line = lines.at(place);
        if let Some((other, at)) = seen.overlap(subnet.into()) {
            return Err(wrong(format!("{subnet} overlaps {other} of line {at}")));
        }
        seen.subnets.insert(subnet.into(), line);
        let (place, address) = (address.span().start, *address.get_ref());
        if let Some(at) = seen.addresses.insert(address.into(), lines.at(place)) {
            let reason = format!("{address_key}{of}: {address} is that of line {at}, too");
            return Err(lines.error(place, reason));
        }
        let place = self.mac.map_or(span.start, |mac| mac.span().start);
        let mac: Option<MacAddr> = match self.mac {
            None => None,
            Some(text) => Some(text.get_ref().parse().map_err(|_| {
                let reason = format!("{mac_key}{of}: {:?} is no MAC address", text.get_ref());
                lines.error(place, reason)
            })?),
        };
        let data = network.backend.assigned_data::<F>(subnet, mac);
        if let Some(data) = &data
            && let Some(at) = seen.data.insert((F::NAME, data.clone()), lines.at(place))
        {
            let reason =
                format!("{mac_key}{of} is that of line {at}, too; give one of them another");
            return Err(lines.error(place, reason));
        }
        Ok(Some(Right {
            address,
            subnet,
            data,
        }))
    }
}

impl Seen {
    /// A subnet seen before that has an address in common with this one. Those before do not overlap.
    fn overlap(&self, subnet: IpNetwork) -> Option<(IpNetwork, usize)> {
        let before = self.subnets.range(..=subnet).next_back();
        let after = self.subnets.range(subnet..).next();
        let mut near = before.into_iter().chain(after);
        near.find(|(other, _)| other.contains(subnet.network()) || subnet.contains(other.network()))
            .map(|(other, line)| (*other, *line))
    }
}

/// A text whose lines have numbers.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    /// The line of a place in the text, counted from 1.
    fn at(&self, offset: usize) -> usize {
        let before = self.0.as_bytes().get(..offset).unwrap_or(self.0.as_bytes());
        before.split(|byte| *byte == b'\n').count()
    }

    fn error(&self, offset: usize, reason: impl Display) -> FileError {
        FileError {
            line: self.at(offset),
            reason: reason.to_string(),
        }
    }
}

impl fmt::Debug for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"
[network]
Network = "10.5.0.0/16"
[network.Backend]
Type = "vxlan"

[[node]]
name = "a"
address = "192.0.2.11"
subnet = "10.5.1.0/24"

[[node]]
address = "192.0.2.12"
subnet = "10.5.2.0/24"
vtep-mac = "0a:00:00:00:00:01"
"#;

    fn error(text: &str) -> String {
        Cluster::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn two_nodes_say_what_they_would_have_written_to_etcd() {
        let cluster = Cluster::parse(TWO).unwrap();
        assert_eq!(
            cluster.config,
            r#"{"Backend":{"Type":"vxlan"},"Network":"10.5.0.0/16"}"#
        );
        let said: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| format!("{} {}", node.key, node.attrs.encode()))
            .collect();
        assert_eq!(
            said,
            [
                r#"10.5.1.0-24 {"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:f1:0a:05:01:00"}}"#,
                r#"10.5.2.0-24 {"PublicIP":"192.0.2.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}}"#,
            ]
        );
        let own = cluster.node(IpAddr::from([192, 0, 2, 12])).unwrap();
        assert_eq!(own, &cluster.nodes[1]);
        assert_eq!(cluster.node(IpAddr::from([192, 0, 2, 13])), None);
    }

    #[test]
    fn dual_stack_nodes_have_both_and_nodes_of_other_backends_no_data() {
        let text = r#"
[network]
Network = "10.5.0.0/16"
EnableIPv6 = true
IPv6Network = "fd00:10:5::/48"
Backend = { Type = "host-gw" }
[[node]]
address = "192.0.2.11"
subnet = "10.5.1.0/24"
address6 = "2001:db8::11"
subnet6 = "fd00:10:5:1::/64"
"#;
        let cluster = Cluster::parse(text).unwrap();
        assert_eq!(
            cluster.nodes[0].key.to_string(),
            "10.5.1.0-24&fd00:10:5:1::-64"
        );
        assert_eq!(
            cluster.nodes[0].attrs.encode(),
            r#"{"PublicIP":"192.0.2.11","PublicIPv6":"2001:db8::11","BackendType":"host-gw"}"#
        );
        let vxlan = Cluster::parse(&text.replace("host-gw", "vxlan")).unwrap();
        let data = vxlan.nodes[0].attrs.vxlan_v6_data().unwrap();
        assert!(data.zero_checksum, "{data:?}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (from, to, message) in [
            (
                "10.5.2.0/24",
                "10.5.1.128/25",
                "line 13: subnet: 10.5.1.128/25 overlaps 10.5.1.0/24 of line 9",
            ),
            (
                "10.5.2.0/24",
                "10.5.0.0/20",
                "line 13: subnet: 10.5.0.0/20 overlaps 10.5.1.0/24 of line 9",
            ),
            (
                "10.5.1.0/24",
                "10.6.1.0/24",
                "line 9: subnet of a: 10.6.1.0/24 is not within the network 10.5.0.0/16",
            ),
            (
                "10.5.1.0/24",
                "10.5.1.7/24",
                "line 9: subnet of a: 10.5.1.7/24 has host bits; 10.5.1.0/24 is meant?",
            ),
            (
                "192.0.2.12",
                "192.0.2.11",
                "line 12: address: 192.0.2.11 is that of line 8, too",
            ),
            (
                "0a:00:00:00:00:01",
                "0e:f1:0a:05:01:00",
                "line 14: vtep-mac is that of line 6, too; give one of them another",
            ),
            (
                "0a:00:00:00:00:01",
                "0a:00",
                "line 14: vtep-mac: \"0a:00\" is no MAC address",
            ),
            (
                "address = \"192.0.2.11\"\n",
                "",
                "line 6: the node of a lacks address",
            ),
            (
                "name = \"a\"",
                "subnet6 = \"fd00::/64\"",
                "line 7: subnet6: [network] has no IPv6",
            ),
        ] {
            let text = TWO.trim_start().replace(from, to);
            assert_eq!(error(&text), message, "{text}");
        }
        let unknown = error(&TWO.trim_start().replace("name =", "nmae ="));
        assert!(
            unknown.starts_with("line 7: unknown field `nmae`"),
            "{unknown}"
        );
        let syntax = error(&TWO.trim_start().replace("[[node]]", "[[node]"));
        assert!(syntax.starts_with("line 6: "), "{syntax}");
        let network = error(&TWO.trim_start().replace("vxlan", "vxlam"));
        assert!(network.starts_with("line 1: [network]: "), "{network}");
        assert!(error("").contains("network"), "{}", error(""));
    }
}
