//! What a node says of itself by the annotations of its Node: names and texts are flannel's.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use regex::Regex;
use thiserror::Error;

use crate::{
    backend::annotated,
    go::{marshal, value::parse_ip},
    model::{LeaseAttrs, PerFamily},
};

const MANAGED: &str = "kube-subnet-manager";
const BACKEND_TYPE: &str = "backend-type";
const BACKEND_DATA: &str = "backend-data";
const BACKEND_V6_DATA: &str = "backend-v6-data";
const PUBLIC_IP: &str = "public-ip";
const PUBLIC_IPV6: &str = "public-ipv6";
/// What an operator has the node advertise, whatever its own address is.
const PUBLIC_IP_OVERWRITE: &str = "public-ip-overwrite";
const PUBLIC_IPV6_OVERWRITE: &str = "public-ipv6-overwrite";
/// Like `--public-ip` and `--public-ipv6`.
const NODE_PUBLIC_IP: &str = "node-public-ip";
const NODE_PUBLIC_IPV6: &str = "node-public-ipv6";

const ALL: [&str; 10] = [
    MANAGED,
    BACKEND_TYPE,
    BACKEND_DATA,
    BACKEND_V6_DATA,
    PUBLIC_IP,
    PUBLIC_IPV6,
    PUBLIC_IP_OVERWRITE,
    PUBLIC_IPV6_OVERWRITE,
    NODE_PUBLIC_IP,
    NODE_PUBLIC_IPV6,
];

/// A prefix that flannel refuses, in its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    #[error("subnet/kube: prefix can contain at most single slash")]
    Slashes,
    #[error("subnet/kube: prefix must be in a format: fqdn/[0-9a-z-_]*")]
    Format,
}

/// What the names of the annotations begin with, up to and with the last `/` or `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// The prefix that `--kube-annotation-prefix` means.
    pub fn new(text: &str) -> Result<Self, PrefixError> {
        static FORM: LazyLock<Option<Regex>> =
            LazyLock::new(|| Regex::new(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$").ok());
        let mut prefix = text.to_owned();
        match text.matches('/').count() {
            0 => prefix.push('/'),
            1 => {}
            _ => return Err(PrefixError::Slashes),
        }
        if !prefix.ends_with(['/', '-']) {
            prefix.push('-');
        }
        let fits = FORM.as_ref().is_some_and(|form| form.is_match(&prefix));
        fits.then_some(Self(prefix)).ok_or(PrefixError::Format)
    }

    /// Those annotations of a Node that are about its network.
    pub fn pick(&self, mut annotations: BTreeMap<String, String>) -> Said {
        let said = ALL.into_iter().filter_map(|name| {
            let text = annotations.remove(&format!("{}{name}", self.0))?;
            Some((name, text))
        });
        Said(said.collect())
    }

    /// What has to be written for a Node to say what `attrs` says; nothing if it does.
    pub fn missing(&self, said: &Said, attrs: &LeaseAttrs) -> BTreeMap<String, String> {
        let wanted = said.wanted(attrs).into_iter();
        let missing = wanted.filter(|(name, text)| said.get(name) != Some(text));
        missing
            .map(|(name, text)| (format!("{}{name}", self.0), text))
            .collect()
    }
}

/// The annotations of one Node, without their prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(BTreeMap<&'static str, String>);

impl Said {
    fn get(&self, name: &str) -> Option<&String> {
        self.0
            .get(name)
            .filter(|text| !text.is_empty() || name == BACKEND_TYPE)
    }

    /// Takes over what was said of the backend before and is not said any more. An agent that has nothing to say
    /// writes that: what is not there, somebody has taken away.
    pub fn complete(&mut self, before: &Self) {
        for name in [BACKEND_TYPE, BACKEND_DATA, BACKEND_V6_DATA] {
            if let (None, Some(text)) = (self.0.get(name), before.0.get(name)) {
                self.0.insert(name, text.clone());
            }
        }
    }

    /// Whether an agent of this cluster runs on the node.
    pub fn is_managed(&self) -> bool {
        self.get(MANAGED).is_some_and(|text| text == "true")
    }

    /// What the node says of itself; what cannot be read counts as not said.
    pub fn attrs(&self) -> LeaseAttrs {
        let data = |name| {
            let json = self.get(name).map(|text| marshal::compact(text));
            json.filter(|json| json != "null")
        };
        LeaseAttrs {
            public_ip: self.ipv4(PUBLIC_IP).unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: self.ipv6(PUBLIC_IPV6),
            backend_type: self.get(BACKEND_TYPE).cloned().unwrap_or_default(),
            backend_data: data(BACKEND_DATA),
            backend_v6_data: data(BACKEND_V6_DATA),
        }
    }

    /// The addresses that the node is told to use, as by `--public-ip` and `--public-ipv6`.
    pub fn told(&self) -> PerFamily<Option<Ipv4Addr>, Option<Ipv6Addr>> {
        PerFamily {
            ipv4: self.ipv4(NODE_PUBLIC_IP),
            ipv6: self.ipv6(NODE_PUBLIC_IPV6),
        }
    }

    fn ipv4(&self, name: &str) -> Option<Ipv4Addr> {
        parse_ip(self.get(name)?).and_then(|ip| match ip {
            std::net::IpAddr::V4(ip) => Some(ip),
            std::net::IpAddr::V6(_) => None,
        })
    }

    fn ipv6(&self, name: &str) -> Option<Ipv6Addr> {
        parse_ip(self.get(name)?).and_then(|ip| match ip {
            std::net::IpAddr::V4(_) => None,
            std::net::IpAddr::V6(ip) => Some(ip),
        })
    }

    /// What flannel writes for a node: not always all of it, and data that is none as `null`.
    fn wanted(&self, attrs: &LeaseAttrs) -> Vec<(&'static str, String)> {
        let backend = attrs.backend_type.as_str();
        let mut wanted = vec![
            (BACKEND_TYPE, backend.to_owned()),
            (MANAGED, "true".to_owned()),
        ];
        let data = |data: &Option<String>| data.clone().unwrap_or_else(|| "null".to_owned());
        let address = |overwrite: &str, own: String| {
            let overwritten = self.get(overwrite).cloned();
            overwritten.unwrap_or(own)
        };
        let [ipv4, ipv6] = annotated(backend);
        if ipv4.is_due(attrs.backend_data.as_deref()) {
            wanted.push((BACKEND_DATA, data(&attrs.backend_data)));
            let own = attrs.public_ip.to_string();
            wanted.push((PUBLIC_IP, address(PUBLIC_IP_OVERWRITE, own)));
        }
        let ipv6 = ipv6.is_due(attrs.backend_v6_data.as_deref());
        if let Some(own) = attrs.public_ipv6.filter(|_| ipv6) {
            wanted.push((BACKEND_V6_DATA, data(&attrs.backend_v6_data)));
            let own = own.to_string();
            wanted.push((PUBLIC_IPV6, address(PUBLIC_IPV6_OVERWRITE, own)));
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 3);
    const DATA: &str = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;
    const DATA6: &str = r#"{"VNI":1,"VtepMAC":"52:0e:8b:10:9a:01"}"#;

    fn prefix() -> Prefix {
        Prefix::new("flannel.alpha.coreos.com").unwrap()
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        let named = pairs.map(|(name, text)| {
            let name = format!("flannel.alpha.coreos.com/{name}");
            (name, (*text).to_owned())
        });
        named.collect()
    }

    fn vxlan() -> LeaseAttrs {
        LeaseAttrs {
            backend_type: "vxlan".to_owned(),
            backend_data: Some(DATA.to_owned()),
            ..LeaseAttrs::alloc(NODE)
        }
    }

    fn written(attrs: &LeaseAttrs) -> BTreeMap<String, String> {
        prefix().missing(&Said::default(), attrs)
    }

    #[test]
    fn prefixes_are_completed_and_refused_as_by_flannel() {
        for (text, prefix) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
            ("example.com/", "example.com/"),
            ("example.com/pods", "example.com/pods-"),
            ("example.com/pods-", "example.com/pods-"),
        ] {
            assert_eq!(Prefix::new(text), Ok(Prefix(prefix.to_owned())));
        }
        for (text, error) in [
            ("example.com/a/b", PrefixError::Slashes),
            ("flannel", PrefixError::Format),
            ("example.COM", PrefixError::Format),
            ("example.com/Pods", PrefixError::Format),
            ("", PrefixError::Format),
        ] {
            assert_eq!(Prefix::new(text), Err(error), "{text}");
        }
    }

    #[test]
    fn annotations_are_written_byte_for_byte_as_flannel_writes_them() {
        let v4 = [
            ("backend-data", DATA),
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.64.3"),
        ];
        assert_eq!(written(&vxlan()), map(&v4));
        let node6 = "fd00::3".parse().unwrap();
        let dual = vxlan().with_ipv6(node6, Some(DATA6.to_owned()));
        let mut both = map(&v4);
        both.extend(map(&[
            ("backend-v6-data", DATA6),
            ("public-ipv6", "fd00::3"),
        ]));
        assert_eq!(written(&dual), both);
        let only6 = LeaseAttrs {
            backend_data: None,
            public_ip: Ipv4Addr::UNSPECIFIED,
            ..dual
        };
        let expected = map(&[
            ("backend-type", "vxlan"),
            ("backend-v6-data", DATA6),
            ("kube-subnet-manager", "true"),
            ("public-ipv6", "fd00::3"),
        ]);
        assert_eq!(written(&only6), expected);
        let host_gw = LeaseAttrs {
            backend_type: "host-gw".to_owned(),
            ..LeaseAttrs::alloc(NODE)
        };
        let expected = map(&[
            ("backend-data", "null"),
            ("backend-type", "host-gw"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.64.3"),
        ]);
        assert_eq!(written(&host_gw), expected);
        let mut expected6 = expected;
        expected6.extend(map(&[
            ("backend-v6-data", "null"),
            ("public-ipv6", "fd00::3"),
        ]));
        assert_eq!(written(&host_gw.with_ipv6(node6, None)), expected6);
        let alloc = map(&[
            ("backend-data", "null"),
            ("backend-type", ""),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.64.3"),
        ]);
        assert_eq!(written(&LeaseAttrs::alloc(NODE)), alloc);
    }

    #[test]
    fn only_what_differs_is_written_and_an_overwrite_comes_first() {
        let mut there = written(&vxlan());
        let said = prefix().pick(there.clone());
        assert!(prefix().missing(&said, &vxlan()).is_empty());
        assert_eq!(said.attrs(), vxlan());
        let alloc = written(&LeaseAttrs::alloc(NODE));
        let said = prefix().pick(alloc);
        assert!(prefix().missing(&said, &LeaseAttrs::alloc(NODE)).is_empty());

        there.extend(map(&[("public-ip-overwrite", "203.0.113.9")]));
        let said = prefix().pick(there.clone());
        let missing = prefix().missing(&said, &vxlan());
        assert_eq!(missing, map(&[("public-ip", "203.0.113.9")]));
        there.extend(missing);
        assert!(prefix().missing(&prefix().pick(there), &vxlan()).is_empty());
    }

    #[test]
    fn what_stock_flannel_writes_is_read() {
        let said = prefix().pick(map(&[
            ("backend-data", "null"),
            ("backend-type", "host-gw"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.64.3"),
            ("node-public-ip", "192.0.2.9"),
        ]));
        assert!(said.is_managed());
        assert_eq!(said.attrs().backend_data, None);
        assert_eq!(said.attrs().public_ip, NODE);
        assert_eq!(said.told().ipv4, Some([192, 0, 2, 9].into()));
        let other = Prefix::new("example.com").unwrap();
        assert!(
            !other
                .pick(map(&[("kube-subnet-manager", "true")]))
                .is_managed()
        );
    }
}
