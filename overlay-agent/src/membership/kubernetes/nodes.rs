//! The Nodes of the cluster, and which of them are peers. Without I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::take,
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::{annotations::Said, node::Node};
use crate::model::{LeaseKey, PeerLease, PerFamily};

/// A subnet whose peer changed: its lease now, or `None`.
pub type Change = (IpNetwork, Option<PeerLease>);

/// The table of Nodes.
#[derive(Debug)]
pub struct Nodes {
    name: String,
    own: LeaseKey,
    own_ip: IpAddr,
    serves: PerFamily<bool, bool>,
    own_node: Option<Node>,
    /// The others.
    known: BTreeMap<String, Known>,
    by_subnet: BTreeMap<IpNetwork, BTreeSet<String>>,
    /// The last list did not have this node: what it lacked was kept.
    doubted: bool,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Known {
    uid: String,
    lease: Option<PeerLease>,
    said: Said,
    problem: Option<String>,
}

impl Nodes {
    /// The node of this name has this lease, and serves the families of it.
    pub fn new(name: String, own: LeaseKey, own_ip: IpAddr) -> Self {
        let subnets = own.subnets();
        Self {
            name,
            own,
            own_ip,
            serves: PerFamily {
                ipv4: subnets.ipv4.is_some(),
                ipv6: subnets.ipv6.is_some(),
            },
            own_node: None,
            known: BTreeMap::new(),
            by_subnet: BTreeMap::new(),
            doubted: false,
            problems: Vec::new(),
        }
    }

    /// The Node of this node, if there is one.
    pub fn own_node(&self) -> Option<&Node> {
        self.own_node.as_ref()
    }

    /// Whether the last list was not believed and this node is there again: then the Nodes are to be
    /// listed once more. Said once.
    pub fn wants_list(&mut self) -> bool {
        let wants = self.doubted && self.own_node.is_some();
        self.doubted &= !wants;
        wants
    }

    /// What is wrong with Nodes since somebody asked last.
    pub fn take_problems(&mut self) -> Vec<String> {
        take(&mut self.problems)
    }

    /// This node advertises another address.
    pub fn set_own_ip(&mut self, own_ip: IpAddr) -> Vec<Change> {
        if self.own_ip == own_ip {
            return Vec::new();
        }
        self.own_ip = own_ip;
        self.by_subnet
            .keys()
            .map(|subnet| self.best(*subnet))
            .collect()
    }

    /// Takes over a full list. Nodes that it lacks are gone, unless it lacks this one, too: an API server
    /// that knows nothing of a node that talks to it has lost its data.
    pub fn list(&mut self, nodes: Vec<Node>) -> Vec<Change> {
        self.doubted = !nodes.iter().any(|node| node.name == self.name);
        let mut changes = Vec::new();
        if self.doubted {
            self.own_node = None;
            self.problems.push(format!(
                "the list of nodes does not have this one, {:?}; the nodes that it lacks stay as they were",
                self.name
            ));
        } else {
            let listed: BTreeSet<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            let gone = self
                .known
                .keys()
                .filter(|name| !listed.contains(name.as_str()));
            for name in gone.cloned().collect::<Vec<_>>() {
                changes.extend(self.forget(&name));
            }
        }
        for node in nodes {
            changes.extend(self.put(node));
        }
        changes
    }

    /// A Node came or changed. One that says less than it did is as it was, as in flannel: its agent will
    /// say it again, and packets arrive meanwhile.
    pub fn put(&mut self, mut node: Node) -> Vec<Change> {
        if node.name == self.name {
            let is_old = |known: &Node| known.uid == node.uid && is_before(&node, known);
            if !self.own_node.as_ref().is_some_and(is_old) {
                self.own_node = Some(node);
            }
            return Vec::new();
        }
        let name = node.name.clone();
        let mut changes = Vec::new();
        let is_another = |known: &Known| known.uid != node.uid;
        if self.known.get(&name).is_some_and(is_another) {
            changes.extend(self.forget(&name));
        }
        if let Some(known) = self.known.get(&name) {
            node.said.complete(&known.said);
        }
        let (lease, problem) = match node.lease(self.serves) {
            Ok(lease) => (lease, None),
            Err(problem) => (None, Some(problem)),
        };
        let before = self.known.remove(&name);
        let (before, complained) =
            before.map_or((None, None), |known| (known.lease, known.problem));
        let lease = lease.or_else(|| before.clone());
        if problem != complained {
            self.problems.extend(problem.clone());
        }
        let touched: BTreeSet<IpNetwork> = [&before, &lease]
            .into_iter()
            .flatten()
            .filter(|_| before != lease)
            .map(|lease| lease.key.subnet())
            .collect();
        for subnet in &touched {
            let has_it = lease
                .as_ref()
                .is_some_and(|lease| lease.key.subnet() == *subnet);
            if has_it {
                self.by_subnet
                    .entry(*subnet)
                    .or_default()
                    .insert(name.clone());
            } else {
                self.leave(*subnet, &name);
            }
        }
        if let Some(lease) = lease.as_ref().filter(|_| before != lease)
            && let Some(fault) = self.fault(&name, lease)
        {
            self.problems.push(fault);
        }
        let known = Known {
            uid: node.uid,
            lease,
            said: node.said,
            problem,
        };
        self.known.insert(name, known);
        changes.extend(touched.into_iter().map(|subnet| self.best(subnet)));
        changes
    }

    /// A Node is gone, and its peer with it: unlike the end of a lease, that is somebody's word.
    pub fn delete(&mut self, node: &Node) -> Vec<Change> {
        if node.name == self.name {
            self.own_node = None;
            return Vec::new();
        }
        self.forget(&node.name).into_iter().collect()
    }

    fn forget(&mut self, name: &str) -> Option<Change> {
        let subnet = self.known.remove(name)?.lease?.key.subnet();
        self.leave(subnet, name);
        Some(self.best(subnet))
    }

    fn leave(&mut self, subnet: IpNetwork, name: &str) {
        if let Some(names) = self.by_subnet.get_mut(&subnet) {
            names.remove(name);
            if names.is_empty() {
                self.by_subnet.remove(&subnet);
            }
        }
    }

    /// The peer of a subnet: the first by name of those that may be one.
    fn best(&self, subnet: IpNetwork) -> Change {
        let names = self.by_subnet.get(&subnet).into_iter().flatten();
        let leases = names.filter_map(|name| Some((name, self.known.get(name)?.lease.as_ref()?)));
        let mut fit = leases.filter(|(name, lease)| self.fault(name, lease).is_none());
        (subnet, fit.next().map(|(_, lease)| lease.clone()))
    }

    /// Why no route may be made to a node.
    fn fault(&self, name: &str, lease: &PeerLease) -> Option<String> {
        if lease.key.overlaps(&self.own) {
            return Some(format!(
                "node {name:?} has a podCIDR that overlaps the one of this node"
            ));
        }
        let ip = lease.attrs.node_ip();
        (ip == self.own_ip).then(|| format!("node {name:?} has the address of this node, {ip}"))
    }
}

/// Versions are numbers, although nobody promises it; one that is none counts as new.
fn is_before(node: &Node, known: &Node) -> bool {
    let number = |node: &Node| node.version.parse::<u64>().ok();
    let pair = number(node).zip(number(known));
    pair.is_some_and(|(node, known)| node < known)
}
