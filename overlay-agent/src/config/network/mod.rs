//! The network config: the JSON at `<prefix>/config` that every node of the cluster reads. Decoding
//! follows Go's `encoding/json`, validation flannel's `CheckNetworkConfig`, with its error texts.

mod range;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

pub use self::range::RangeError;
use self::range::{Bounds, IPV4, IPV6};
use crate::{
    backend::{Backend, BackendError},
    go::{
        json::{JsonError, Object},
        value::{Cidr, parse_cidr, parse_ip},
    },
    model::{Family, PerFamily, V4, V6, each_family},
};

/// A valid network config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Of the families that are on, at least one.
    pub pools: PerFamily<Option<Pool>, Option<Pool<V6>>>,
    /// nftables instead of iptables rules.
    pub nftables: bool,
    pub backend: Backend,
}

/// The subnets that nodes lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool<F: Family = V4> {
    pub network: F::Network,
    pub subnet_len: u8,
    /// Base of the first subnet that may be leased.
    pub subnet_min: F::Address,
    /// Base of the last one.
    pub subnet_max: F::Address,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedNetworkConfig {
    pub config: NetworkConfig,
    /// What was accepted although flannel would not; to be logged once per change of the config.
    pub warnings: Vec<String>,
}

/// Why a network config cannot be used. The texts are flannel's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum NetworkConfigError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("{key}: {reason}: {text}")]
    Address {
        key: &'static str,
        reason: &'static str,
        text: String,
    },
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(
        "none defined stack; leave EnableIPv4 out of the network config or set EnableIPv6 to true"
    )]
    NoFamily,
    #[error("error decoding Backend property of config: {0}")]
    BackendType(JsonError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl NetworkConfig {
    /// Decodes and validates the value of `<prefix>/config`. Bytes that are not UTF-8 read as U+FFFD,
    /// as in Go.
    pub fn parse(document: &[u8]) -> Result<ParsedNetworkConfig, NetworkConfigError> {
        let text = String::from_utf8_lossy(document);
        let (text, mut warnings) = without_byte_order_mark(&text);
        let object = Object::parse(text, "the network config")?;
        warnings.extend(object.whole_fractions(&["SubnetLen", "IPv6SubnetLen"]));
        let enable_ipv4 = object.boolean("EnableIPv4", true)?;
        let enable_ipv6 = object.boolean("EnableIPv6", false)?;
        let nftables = object.boolean("EnableNFTables", false)?;
        let ipv4 = Ipv4Keys::decode(&object)?;
        let ipv6 = Ipv6Keys::decode(&object)?;
        let backend_text = object.raw("Backend");
        let backend_type = backend_type(backend_text).map_err(NetworkConfigError::BackendType)?;

        let ipv4 = enable_ipv4.then(|| ipv4.check()).transpose()?;
        let ipv6 = enable_ipv6.then(|| ipv6.check()).transpose()?;
        let pools = PerFamily { ipv4, ipv6 };
        let served = each_family!(pools, pool => pool.is_some());
        if !served.any() {
            return Err(NetworkConfigError::NoFamily);
        }
        let (backend, of_backend) = Backend::parse(backend_type, backend_text, served.ipv6)?;
        warnings.extend(of_backend);
        Ok(ParsedNetworkConfig {
            config: Self {
                pools,
                nftables,
                backend,
            },
            warnings,
        })
    }
}

/// The lower-cased type; `None` if the key is absent.
fn backend_type(backend: Option<&str>) -> Result<Option<String>, JsonError> {
    let Some(text) = backend else {
        return Ok(None);
    };
    let name = Object::parse(text, "Backend")?.string("Type")?;
    Ok(Some(name.to_lowercase()))
}

/// Editors of Windows put the mark before a text.
fn without_byte_order_mark(text: &str) -> (&str, Vec<String>) {
    let Some(rest) = text.strip_prefix('\u{feff}') else {
        return (text, Vec::new());
    };
    let warning = "the network config begins with a byte order mark, which is passed over, but \
                   flannel refuses it: write the config without one";
    (rest, vec![warning.to_owned()])
}

struct Ipv4Keys {
    network: Option<Ipv4Network>,
    subnet_len: u64,
    min: Option<Ipv4Addr>,
    max: Option<Ipv4Addr>,
}

impl Ipv4Keys {
    fn decode(object: &Object<'_>) -> Result<Self, NetworkConfigError> {
        Ok(Self {
            network: decode(object, "Network", ipv4_cidr)?,
            subnet_len: object.unsigned("SubnetLen", 0)?,
            min: decode(object, "SubnetMin", ipv4_address)?,
            max: decode(object, "SubnetMax", ipv4_address)?,
        })
    }

    fn check(self) -> Result<Pool, RangeError> {
        let network = self.network.ok_or(IPV4.no_network())?;
        let number = |address: Option<Ipv4Addr>| address.map_or(0, |ip| u128::from(ip.to_bits()));
        let range = IPV4.check(Bounds {
            network: (network.network().to_bits().into(), network.prefix()),
            subnet_len: self.subnet_len,
            min: number(self.min),
            max: number(self.max),
        })?;
        Ok(Pool {
            network,
            subnet_len: range.subnet_len,
            subnet_min: low_bits(range.min),
            subnet_max: low_bits(range.max),
        })
    }
}

/// The IPv4 address a range's number stands for; the range lies inside an IPv4 network.
fn low_bits(number: u128) -> Ipv4Addr {
    let [.., a, b, c, d] = number.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

struct Ipv6Keys {
    network: Option<Ipv6Network>,
    subnet_len: u64,
    min: Option<Ipv6Addr>,
    max: Option<Ipv6Addr>,
}

impl Ipv6Keys {
    fn decode(object: &Object<'_>) -> Result<Self, NetworkConfigError> {
        Ok(Self {
            network: decode(object, "IPv6Network", ipv6_cidr)?,
            subnet_len: object.unsigned("IPv6SubnetLen", 0)?,
            min: decode(object, "IPv6SubnetMin", ipv6_address)?,
            max: decode(object, "IPv6SubnetMax", ipv6_address)?,
        })
    }

    fn check(self) -> Result<Pool<V6>, RangeError> {
        let network = self.network.ok_or(IPV6.no_network())?;
        let number = |address: Option<Ipv6Addr>| address.map_or(0, Ipv6Addr::to_bits);
        let range = IPV6.check(Bounds {
            network: (network.network().to_bits(), network.prefix()),
            subnet_len: self.subnet_len,
            min: number(self.min),
            max: number(self.max),
        })?;
        Ok(Pool {
            network,
            subnet_len: range.subnet_len,
            subnet_min: range.min.into(),
            subnet_max: range.max.into(),
        })
    }
}

type Decoded<T> = Result<Option<T>, &'static str>;

/// Decodes every occurrence of the key; the last one counts.
fn decode<T>(
    object: &Object<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Decoded<T>,
) -> Result<Option<T>, NetworkConfigError> {
    object.every(key).try_fold(None, |_, json| {
        let text = json.trim_matches('"');
        parse(text).map_err(|reason| {
            let text = text.to_owned();
            NetworkConfigError::Address { key, reason, text }
        })
    })
}

fn ipv4_cidr(text: &str) -> Decoded<Ipv4Network> {
    match parse_cidr(text) {
        Some(Cidr::V4(network)) => Ok(Some(network)),
        Some(Cidr::V6(_)) => Err("invalid IPv4 CIDR format"),
        None => Err("invalid CIDR address"),
    }
}

fn ipv6_cidr(text: &str) -> Decoded<Ipv6Network> {
    match parse_cidr(text) {
        Some(Cidr::V6(network)) => Ok(Some(network)),
        Some(Cidr::V4(_)) => Err("invalid IPv6 CIDR format"),
        None => Err("invalid CIDR address"),
    }
}

fn ipv4_address(text: &str) -> Decoded<Ipv4Addr> {
    match parse_ip(text) {
        Some(IpAddr::V4(address)) => Ok(Some(address)),
        Some(IpAddr::V6(_)) => Err("invalid IPv4 address format"),
        None => Err("invalid IP address format"),
    }
}

/// A pointer in flannel, so that `null` means absent.
fn ipv6_address(text: &str) -> Decoded<Ipv6Addr> {
    match parse_ip(text) {
        Some(IpAddr::V6(address)) => Ok(Some(address)),
        Some(IpAddr::V4(_)) => Err("invalid IPv6 address format"),
        None if text == "null" => Ok(None),
        None => Err("invalid IP address format"),
    }
}

#[cfg(test)]
mod tests;
