//! What the plugin that gives addresses says, and what the runtime is told.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use super::pair::Mac;
use crate::error::Error;

/// A result of the specification, as far as pods are made by it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Given {
    #[serde(default)]
    pub ips: Vec<Address>,
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    dns: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Address {
    address: IpNetwork,
    gateway: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Route {
    pub dst: IpNetwork,
    #[serde(default)]
    pub gw: Option<IpAddr>,
}

/// Where a pod sends to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The pod's.
    pub address: IpAddr,
    pub gateway: IpAddr,
}

impl Given {
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let result = serde_json::from_slice(text).unwrap_or_default();
        Self::of(result)
    }

    pub fn of(result: Value) -> Result<Self, Error> {
        let given: Self = serde_json::from_value(result).map_err(|error| Error::Config {
            reason: format!("a result of `ipam`: {error}"),
        })?;
        if given.ips.is_empty() {
            return Err(Error::Config {
                reason: "`ipam` gave no address".to_owned(),
            });
        }
        given.hops().map(|_| given)
    }

    /// The pod's addresses and their gateways, one or several of each family.
    pub fn hops(&self) -> Result<Vec<Hop>, Error> {
        let hop = |given: &Address| {
            let address = given.address.ip();
            let gateway = given.gateway.ok_or_else(|| Error::Config {
                reason: format!("`ipam` gave no gateway for {address}"),
            })?;
            Ok(Hop { address, gateway })
        };
        self.ips.iter().map(hop).collect()
    }

    /// All routes of the pod beyond those to the gateways: by default it sends everything there.
    pub fn all_routes(&self) -> Result<Vec<(IpNetwork, IpAddr)>, Error> {
        let mut routes = Vec::new();
        for hop in self.hops()? {
            let is_of_family = |other: IpAddr| other.is_ipv4() == hop.gateway.is_ipv4();
            let add = |(dst, gateway): (IpNetwork, IpAddr)| {
                if !routes.iter().any(|(known, _)| *known == dst) {
                    routes.push((dst, gateway));
                }
            };
            let own = self
                .routes
                .iter()
                .filter(|route| is_of_family(route.dst.ip()));
            own.map(|route| (route.dst, route.gw.unwrap_or(hop.gateway)))
                .chain([(everything(hop.gateway), hop.gateway)])
                .for_each(add);
        }
        Ok(routes)
    }
}

fn everything(of: IpAddr) -> IpNetwork {
    let any = match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNetwork::new(any, 0).unwrap_or_else(|_| any.into())
}

/// A pod that is there.
#[derive(Debug)]
pub struct Made {
    /// Name and MAC address.
    pub host: (String, Mac),
    /// The same, and the network namespace.
    pub pod: (String, Mac, PathBuf),
    pub given: Given,
}

impl Made {
    /// As the runtime reads it.
    pub fn json(&self, version: &str) -> Result<Vec<u8>, Error> {
        let (host, host_mac) = &self.host;
        let (pod, pod_mac, sandbox) = &self.pod;
        // These versions name the family as well.
        let is_named = version.starts_with("0.");
        let ips = self.given.hops()?.into_iter().map(|hop| {
            let mut ip = json!({
                "address": IpNetwork::from(hop.address),
                "gateway": hop.gateway,
                "interface": 1,
            });
            if is_named {
                ip["version"] = json!(if hop.address.is_ipv4() { "4" } else { "6" });
            }
            ip
        });
        let ips: Vec<_> = ips.collect();
        let routes = self.given.all_routes()?.into_iter();
        let routes: Vec<_> = routes
            .map(|(dst, gw)| json!({ "dst": dst, "gw": gw }))
            .collect();
        let mut result = json!({
            "cniVersion": version,
            "interfaces": [
                { "name": host, "mac": host_mac.to_string() },
                { "name": pod, "mac": pod_mac.to_string(), "sandbox": sandbox },
            ],
            "ips": ips,
            "routes": routes,
        });
        if !self.given.dns.is_null() {
            result["dns"] = self.given.dns.clone();
        }
        Ok(result.to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given {
        let text = json!({
            "cniVersion": "0.4.0",
            "ips": [
                { "version": "4", "address": "10.5.34.2/24", "gateway": "10.5.34.1" },
                { "version": "6", "address": "fd00:0:0:34::2/64", "gateway": "fd00:0:0:34::1" },
            ],
            "routes": [{ "dst": "10.5.0.0/16" }, { "dst": "fd01::/48", "gw": "fd00:0:0:34::9" }],
            "dns": { "nameservers": ["10.96.0.10"] },
        });
        Given::parse(text.to_string().as_bytes()).expect("a result")
    }

    fn made() -> Made {
        Made {
            host: ("ovp1".to_owned(), Mac([2, 0, 0, 0, 0, 1])),
            pod: (
                "eth0".to_owned(),
                Mac([2, 0, 0, 0, 0, 2]),
                "/run/netns/x".into(),
            ),
            given: given(),
        }
    }

    fn said(version: &str) -> Value {
        let text = made().json(version).expect("a result");
        serde_json::from_slice(&text).expect("JSON")
    }

    #[test]
    fn a_pod_has_addresses_of_its_own_and_sends_everything_to_the_gateways() {
        let result = said("1.0.0");
        assert_eq!(
            result["ips"],
            json!([
                { "address": "10.5.34.2/32", "gateway": "10.5.34.1", "interface": 1 },
                { "address": "fd00:0:0:34::2/128", "gateway": "fd00:0:0:34::1", "interface": 1 },
            ])
        );
        assert_eq!(
            result["routes"],
            json!([
                { "dst": "10.5.0.0/16", "gw": "10.5.34.1" },
                { "dst": "0.0.0.0/0", "gw": "10.5.34.1" },
                { "dst": "fd01::/48", "gw": "fd00:0:0:34::9" },
                { "dst": "::/0", "gw": "fd00:0:0:34::1" },
            ])
        );
        assert_eq!(
            result["interfaces"][0],
            json!({ "name": "ovp1", "mac": "02:00:00:00:00:01" })
        );
        assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/x");
        assert_eq!(result["dns"]["nameservers"][0], "10.96.0.10");
        assert_eq!(said("0.4.0")["ips"][1]["version"], "6");
        // What ADD said is understood by CHECK.
        assert_eq!(
            Given::of(result).expect("a result").hops().ok(),
            given().hops().ok()
        );
    }

    #[test]
    fn a_default_route_of_the_network_is_the_only_one() {
        let text = json!({
            "ips": [{ "address": "10.5.34.2/24", "gateway": "10.5.34.1" }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.5.34.7" }],
        });
        let given = Given::of(text).expect("a result");
        let routes = given.all_routes().expect("routes");
        assert_eq!(routes.len(), 1, "{routes:?}");
        assert_eq!(routes[0].1.to_string(), "10.5.34.7");
    }

    #[test]
    fn without_an_address_or_a_gateway_nothing_is_made() {
        for (text, part) in [
            (json!({}), "no address"),
            (json!(7), "a result"),
            (
                json!({ "ips": [{ "address": "10.5.34.2/24" }] }),
                "no gateway for 10.5.34.2",
            ),
        ] {
            let error = Given::of(text).expect_err("nothing to make").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
