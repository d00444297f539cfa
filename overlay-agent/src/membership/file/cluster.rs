//! The text of a peers file, and what it says. No I/O.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use overlay_common::addr::MacAddr;
use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use crate::{
    backend::{Assigned, NoKey, PublicKey},
    config::network::{NetworkConfig, Pool},
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
    wireguard_public_key: Option<Spanned<String>>,
}

/// What an entry says of one family.
struct Said<'a, F: Family> {
    address: Option<&'a Spanned<F::Address>>,
    subnet: Option<&'a Spanned<F::Network>>,
    mac: Option<&'a Spanned<String>>,
    wireguard_key: Option<PublicKey>,
    /// The keys, for messages.
    keys: [&'static str; 3],
    /// ` of NAME`, for messages.
    of: &'a str,
    /// Where the entry begins.
    start: usize,
}

/// What it says, found to be right.
struct Right<F: Family> {
    address: F::Address,
    subnet: F::Network,
    data: Option<String>,
}

/// Reads one entry after the other.
struct Reader<'a> {
    lines: Lines<'a>,
    network: &'a NetworkConfig,
    seen: Seen,
}

/// Where something was said first, for what must not be said twice.
#[derive(Default)]
struct Seen {
    addresses: BTreeMap<IpAddr, usize>,
    subnets: BTreeMap<IpNetwork, usize>,
    data: BTreeMap<(&'static str, String), usize>,
    wireguard_keys: BTreeMap<PublicKey, usize>,
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
        let mut reader = Reader {
            lines,
            network: &network,
            seen: Seen::default(),
        };
        let nodes = document.node.iter().map(|entry| reader.lease(entry));
        Ok(Self {
            nodes: nodes.collect::<Result<_, _>>()?,
            config,
        })
    }

    /// The node with this address.
    pub fn node(&self, address: IpAddr) -> Option<&PeerLease> {
        self.nodes
            .iter()
            .find(|node| node.attrs.node_ip() == address)
    }
}

impl Reader<'_> {
    fn lease(&mut self, entry: &Spanned<Entry>) -> Result<PeerLease, FileError> {
        let (start, entry) = (entry.span().start, entry.get_ref());
        let of = entry.name.as_ref();
        let of = of.map_or(String::new(), |name| format!(" of {name}"));
        let pools = self.network.pools;
        let wireguard_key = self.wireguard_key(entry.wireguard_public_key.as_ref(), &of)?;
        let ipv4 = Said::<V4> {
            address: entry.address.as_ref(),
            subnet: entry.subnet.as_ref(),
            mac: entry.vtep_mac.as_ref(),
            wireguard_key,
            keys: ["address", "subnet", "vtep-mac"],
            of: &of,
            start,
        };
        let ipv4 = self.side(&ipv4, pools.ipv4)?;
        let ipv6 = Said::<V6> {
            address: entry.address6.as_ref(),
            subnet: entry.subnet6.as_ref(),
            mac: entry.vtep_mac6.as_ref(),
            wireguard_key,
            keys: ["address6", "subnet6", "vtep-mac6"],
            of: &of,
            start,
        };
        let ipv6 = self.side(&ipv6, pools.ipv6)?;
        let key = LeaseKey::new(
            ipv4.as_ref().map(|said| said.subnet),
            ipv6.as_ref().map(|said| said.subnet),
        );
        let key = key.ok_or_else(|| self.lines.error(start, "a node without a subnet"))?;
        let address = ipv4.as_ref().map(|said| said.address);
        let mut attrs = LeaseAttrs {
            backend_type: self.network.backend.lease_type().to_owned(),
            backend_data: ipv4.and_then(|said| said.data),
            ..LeaseAttrs::alloc(address.unwrap_or(Ipv4Addr::UNSPECIFIED))
        };
        if let Some(said) = ipv6 {
            attrs = attrs.with_ipv6(said.address, said.data);
        }
        Ok(PeerLease {
            key,
            attrs: attrs.into(),
        })
    }

    /// Each node has one, whatever the backend: a cluster may be about to get another.
    fn wireguard_key(
        &mut self,
        said: Option<&Spanned<String>>,
        of: &str,
    ) -> Result<Option<PublicKey>, FileError> {
        let Some(said) = said else {
            return Ok(None);
        };
        let place = said.span().start;
        let Some(key) = PublicKey::parse(said.get_ref()) else {
            let reason = format!("wireguard-public-key{of} is not the base64 text of 32 bytes");
            return Err(self.lines.error(place, reason));
        };
        if let Some(at) = self.seen.wireguard_keys.insert(key, place) {
            let line = self.lines.at(at);
            let reason = format!(
                "wireguard-public-key{of} is that of line {line}, too; each node makes a key of its own"
            );
            return Err(self.lines.error(place, reason));
        }
        Ok(Some(key))
    }

    /// `None` if the network does not have the family.
    fn side<F: Family>(
        &mut self,
        said: &Said<'_, F>,
        pool: Option<Pool<F>>,
    ) -> Result<Option<Right<F>>, FileError> {
        let [address_key, subnet_key, _] = said.keys;
        let Some(pool) = pool else {
            return said.nothing(&self.lines).map(|()| None);
        };
        let missing = |key| {
            let reason = format!("the node{} lacks {key}", said.of);
            self.lines.error(said.start, reason)
        };
        let address = said.address.ok_or_else(|| missing(address_key))?;
        let subnet = said.subnet.ok_or_else(|| missing(subnet_key))?;
        self.check_subnet(said, subnet, pool.network)?;
        self.check_address(said, address)?;
        let subnet = *subnet.get_ref();
        Ok(Some(Right {
            address: *address.get_ref(),
            subnet,
            data: self.data(said, subnet)?,
        }))
    }

    fn check_subnet<F: Family>(
        &mut self,
        said: &Said<'_, F>,
        subnet: &Spanned<F::Network>,
        network: F::Network,
    ) -> Result<(), FileError> {
        let (place, subnet) = (subnet.span().start, *subnet.get_ref());
        let (low, high) = (F::first(subnet), F::last(subnet));
        let given: IpNetwork = subnet.into();
        let reason = if given.ip() != given.network() {
            let (first, len) = (given.network(), given.prefix());
            format!("{subnet} has host bits; {first}/{len} is meant?")
        } else if low < F::first(network) || high > F::last(network) {
            format!("{subnet} is not within the network {network}")
        } else if let Some((other, at)) = self.seen.overlap(given) {
            let line = self.lines.at(at);
            format!("{subnet} overlaps {other} of line {line}")
        } else {
            self.seen.subnets.insert(given, place);
            return Ok(());
        };
        let [_, key, _] = said.keys;
        Err(self
            .lines
            .error(place, format!("{key}{}: {reason}", said.of)))
    }

    fn check_address<F: Family>(
        &mut self,
        said: &Said<'_, F>,
        address: &Spanned<F::Address>,
    ) -> Result<(), FileError> {
        let (place, address) = (address.span().start, *address.get_ref());
        let Some(at) = self.seen.addresses.insert(address.into(), place) else {
            return Ok(());
        };
        let ([key, ..], of, line) = (said.keys, said.of, self.lines.at(at));
        let reason = format!("{key}{of}: {address} is that of line {line}, too");
        Err(self.lines.error(place, reason))
    }

    /// What the node's lease says for the backend.
    fn data<F: Family>(
        &mut self,
        said: &Said<'_, F>,
        subnet: F::Network,
    ) -> Result<Option<String>, FileError> {
        let ([.., key], of) = (said.keys, said.of);
        let place = said.mac.map_or(said.start, |mac| mac.span().start);
        let mac: Option<MacAddr> = match said.mac.map(Spanned::get_ref) {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                let reason = format!("{key}{of}: {text:?} is no MAC address");
                self.lines.error(place, reason)
            })?),
        };
        let assigned = Assigned {
            mac,
            wireguard_key: said.wireguard_key.map(|key| key.0),
        };
        let data = self.network.backend.assigned_data::<F>(subnet, assigned);
        let data = data.map_err(|NoKey| {
            let reason = format!(
                "the node{of} lacks wireguard-public-key, which `overlay-agent init --public-key` prints on that host"
            );
            self.lines.error(said.start, reason)
        })?;
        let seen = data.clone().and_then(|data| {
            let key = (F::NAME, data);
            self.seen.data.insert(key, place)
        });
        if let Some(at) = seen {
            let line = self.lines.at(at);
            let reason = format!("{key}{of} is that of line {line}, too; give one of them another");
            return Err(self.lines.error(place, reason));
        }
        Ok(data)
    }
}

impl<F: Family> Said<'_, F> {
    /// An error if anything is said of a family that the network does not have.
    fn nothing(&self, lines: &Lines<'_>) -> Result<(), FileError> {
        let places = [
            self.address.map(Spanned::span),
            self.subnet.map(Spanned::span),
            self.mac.map(Spanned::span),
        ];
        let mut said = self.keys.into_iter().zip(places);
        match said.find_map(|(key, place)| Some((key, place?.start))) {
            None => Ok(()),
            Some((key, place)) => {
                let reason = format!("{key}{}: [network] has no {}", self.of, F::NAME);
                Err(lines.error(place, reason))
            }
        }
    }
}

impl Seen {
    /// A subnet seen before that has an address in common with this one. Those before do not overlap.
    fn overlap(&self, subnet: IpNetwork) -> Option<(IpNetwork, usize)> {
        let before = self.subnets.range(..=subnet).next_back();
        let after = self.subnets.range(subnet..).next();
        let mut near = before.into_iter().chain(after);
        near.find(|(other, _)| other.contains(subnet.network()) || subnet.contains(other.network()))
            .map(|(other, at)| (*other, *at))
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

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    /// Of a wireguard cluster of both families, with a key on line 9 and one on line 15.
    fn wireguard() -> String {
        let other = KEY.replace("hSD", "iSD");
        format!(
            r#"[network]
Network = "10.5.0.0/16"
EnableIPv6 = true
IPv6Network = "fd00:10:5::/48"
Backend = {{ Type = "wireguard", ListenPort = 7000 }}
[[node]]
address = "192.0.2.11"
subnet = "10.5.1.0/24"
wireguard-public-key = "{KEY}"
address6 = "2001:db8::11"
subnet6 = "fd00:10:5:1::/64"
[[node]]
address = "192.0.2.12"
subnet = "10.5.2.0/24"
wireguard-public-key = "{other}"
address6 = "2001:db8::12"
subnet6 = "fd00:10:5:2::/64"
"#
        )
    }

    #[test]
    fn a_wireguard_node_says_its_key_and_the_ports_of_the_network() {
        let cluster = Cluster::parse(&wireguard()).unwrap();
        let attrs = &cluster.nodes[0].attrs;
        let data = |port| format!(r#"{{"PublicKey":"{KEY}","Port":{port}}}"#);
        assert_eq!(attrs.backend_type, "wireguard");
        assert_eq!(attrs.backend_data, Some(data(7000)));
        assert_eq!(attrs.backend_v6_data, Some(data(51821)));
        // A cluster that is to become one has the keys before.
        let before = wireguard().replace("\"wireguard\", ListenPort = 7000", "\"vxlan\"");
        assert_eq!(Cluster::parse(&before).unwrap().nodes.len(), 2);
    }

    #[test]
    fn a_wireguard_key_that_cannot_be_is_named_with_its_line_and_not_shown() {
        let other = KEY.replace("hSD", "iSD");
        for (from, to, message) in [
            (
                format!("wireguard-public-key = \"{other}\"\n"),
                "",
                "line 12: the node lacks wireguard-public-key, which `overlay-agent init --public-key` prints \
                 on that host",
            ),
            (
                other.clone(),
                "iSDw",
                "line 15: wireguard-public-key is not the base64 text of 32 bytes",
            ),
            (
                other.clone(),
                KEY,
                "line 15: wireguard-public-key is that of line 9, too; each node makes a key of its own",
            ),
        ] {
            assert_eq!(error(&wireguard().replace(&from, to)), message);
        }
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
