//! A Node of the API server, as far as the network is concerned.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use super::annotations::{Prefix, Said};
use crate::{
    go::value::{Cidr, parse_cidr},
    membership::Allocation,
    model::{LeaseKey, PeerLease, PerFamily, each_family},
};

/// What is kept of a Node: a hundredth of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// Another Node of the same name has another one.
    pub uid: String,
    /// Version of the object.
    pub version: String,
    pub said: Said,
    pod_cidrs: Vec<String>,
    /// Its network is up, says its condition.
    pub is_up: bool,
}

/// A Node as the API server writes it. What nobody needs is never stored.
#[derive(Clone, Debug, Deserialize)]
pub struct RawNode {
    #[serde(default)]
    metadata: RawMeta,
    spec: Option<RawSpec>,
    status: Option<RawStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    name: String,
    uid: String,
    resource_version: String,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    conditions: Option<Vec<RawCondition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawCondition {
    r#type: String,
    status: String,
    reason: String,
}

const CONDITION: &str = "NetworkUnavailable";
const UP_REASON: &str = "FlannelIsUp";
const UP_MESSAGE: &str = "Flannel is running on this node";

/// The subnets of a Node.
type Subnets = PerFamily<Option<ipnetwork::Ipv4Network>, Option<ipnetwork::Ipv6Network>>;

impl Node {
    pub fn new(raw: RawNode, prefix: &Prefix) -> Self {
        let RawNode {
            metadata,
            spec,
            status,
        } = raw;
        let spec = spec.unwrap_or_default();
        let several = spec.pod_cidrs.filter(|several| !several.is_empty());
        let pod_cidrs = several.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let conditions = status.and_then(|status| status.conditions);
        let mut conditions = conditions.into_iter().flatten();
        let is_up = conditions.any(|condition| {
            condition.r#type == CONDITION
                && condition.status == "False"
                && condition.reason == UP_REASON
        });
        Self {
            name: metadata.name,
            uid: metadata.uid,
            version: metadata.resource_version,
            said: prefix.pick(metadata.annotations.unwrap_or_default()),
            pod_cidrs: pod_cidrs
                .into_iter()
                .filter(|cidr| !cidr.is_empty())
                .collect(),
            is_up,
        }
    }

    /// What is wrong is said in words for people.
    fn subnets(&self) -> Result<Subnets, String> {
        if self.pod_cidrs.len() > 2 {
            return Err(format!(
                "node {:?} pod cidrs should be IPv4/IPv6 only or dualstack",
                self.name
            ));
        }
        let mut subnets = Subnets::default();
        for text in &self.pod_cidrs {
            match parse_cidr(text).and_then(network) {
                Some(IpNetwork::V4(subnet)) => subnets.ipv4 = Some(subnet),
                Some(IpNetwork::V6(subnet)) => subnets.ipv6 = Some(subnet),
                None => return Err(format!("node {:?} has the podCIDR {text:?}", self.name)),
            }
        }
        Ok(subnets)
    }

    /// The subnets that this Node gives its node under a network config; the error says why it has none yet.
    pub fn own_key(&self, network: &Allocation) -> Result<LeaseKey, String> {
        let name = &self.name;
        let subnets = self.subnets()?;
        let subnets = each_family!(network.zip(subnets), (pool, subnet) => match (pool, subnet) {
            (None, _) => None,
            (Some(_), None) => return Err(format!(
                "node {name:?} pod cidr not assigned: its spec has none of this family of the network config; \
                 the controller manager assigns them with --allocate-node-cidrs and --cluster-cidr"
            )),
            (Some(pool), Some(subnet)) if contains(pool.network.into(), subnet.into()) => Some(subnet),
            (Some(pool), Some(subnet)) => return Err(format!(
                "subnet {:?} specified in the flannel net config doesn't contain {:?} PodCIDR of the {name:?} node",
                pool.network.to_string(),
                subnet.to_string()
            )),
        });
        let none = || format!("node {name:?} pod cidr not assigned");
        LeaseKey::new(subnets.ipv4, subnets.ipv6).ok_or_else(none)
    }

    /// The lease that this Node is; `None` if no agent runs there. Only the families that are served count.
    pub fn lease(&self, serves: PerFamily<bool, bool>) -> Result<Option<PeerLease>, String> {
        if !self.said.is_managed() {
            return Ok(None);
        }
        let attrs = self.said.attrs();
        let subnets = self.subnets()?;
        let ipv4 = subnets
            .ipv4
            .filter(|_| serves.ipv4 && !attrs.public_ip.is_unspecified());
        let ipv6 = subnets
            .ipv6
            .filter(|_| serves.ipv6 && attrs.public_ipv6.is_some());
        let key = LeaseKey::new(ipv4, ipv6).ok_or_else(|| {
            format!(
                "node {:?} has no podCIDR with an address to reach it at",
                self.name
            )
        })?;
        Ok(Some(PeerLease {
            key,
            attrs: attrs.into(),
        }))
    }
}

/// Host bits are dropped, as Go's `ParseCIDR` does; a subnet has at least two addresses.
fn network(cidr: Cidr) -> Option<IpNetwork> {
    let (address, len) = match cidr {
        Cidr::V4(net) => (net.network().into(), net.prefix()),
        Cidr::V6(net) => (net.network().into(), net.prefix()),
    };
    let network = IpNetwork::new(address, len).ok()?;
    let widest = if network.is_ipv4() { 31 } else { 127 };
    (1..=widest).contains(&len).then_some(network)
}

fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// The patch of a Node's status that writes annotations.
pub fn annotate(annotations: &BTreeMap<String, String>) -> Value {
    json!({ "metadata": { "annotations": annotations } })
}

/// The patch of a Node's status that says that its network is up, since `now`, in flannel's words.
pub fn network_is_up(now: &str) -> Value {
    json!({ "status": { "conditions": [{
        "type": CONDITION,
        "status": "False",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
        "reason": UP_REASON,
        "message": UP_MESSAGE,
    }] } })
}
