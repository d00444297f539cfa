//! Typed handles of one family's pinned maps: one method per thing that is read or written.
//!
//! Entries that programs read piecewise while they are written are first disabled, then filled,
//! then enabled, so that no program sees half of one and half of another.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key};
use bytemuck::Pod;
use overlay_common::{
    config::Config,
    flow::{Flow, FlowKey, FlowWords},
    node::{NODE_VALID, Nexthop, Node, Peer},
    pair,
    route::{RouteEntry, RouteKey},
};

use super::{
    config::ConfigMap,
    contents::{Limits, Tables, subnet_of},
    handle::{gone_is_fine, map_error, open, typed},
};
use crate::{
    datapath::{error::DatapathError, pins::PinDir, sys},
    model::{Family, V4},
};

/// The maps of one family in one pin directory.
pub struct OverlayMaps<F: Family = V4> {
    routes: LpmTrie<MapData, F::Be, RouteEntry>,
    routes_fd: OwnedFd,
    nodes: Array<MapData, Node<F>>,
    nodes_fd: OwnedFd,
    nexthops: Array<MapData, Nexthop>,
    nexthops_fd: OwnedFd,
    peers: HashMap<MapData, F::Be, Peer>,
    peers_fd: OwnedFd,
    flows_fd: OwnedFd,
    pub(in crate::datapath) config: ConfigMap<F>,
    limits: Limits,
    max_flows: u32,
}

impl<F: Family> OverlayMaps<F> {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        let names = F::MAPS;
        let (nodes, nodes_fd, max_nodes) = open(pins, names.nodes)?;
        let (routes, routes_fd, max_routes) = open(pins, names.routes)?;
        let (nexthops, nexthops_fd, _) = open(pins, names.nexthops)?;
        let (peers, peers_fd, max_peers) = open(pins, names.peers)?;
        let (flows, flows_fd, max_flows) = open(pins, names.flows)?;
        // Flows are read by descriptor; the typed handle only checks the sizes.
        let _: HashMap<MapData, FlowKey<F>, Flow> = typed(flows, names.flows)?;
        Ok(Self {
            routes: typed(routes, names.routes)?,
            routes_fd,
            nodes: typed(nodes, names.nodes)?,
            nodes_fd,
            nexthops: typed(nexthops, names.nexthops)?,
            nexthops_fd,
            peers: typed(peers, names.peers)?,
            peers_fd,
            flows_fd,
            config: ConfigMap::open(pins)?,
            limits: Limits {
                nodes: max_nodes,
                routes: max_routes,
                peers: max_peers,
            },
            max_flows,
        })
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub fn max_flows(&self) -> u32 {
        self.max_flows
    }

    /// The places in `OVL_TRANSLATED` of those pairs of addresses that are a pod of this node and one of another.
    pub(in crate::datapath) fn pair_slots(
        &self,
        pairs: &[[IpAddr; 2]],
    ) -> Result<BTreeSet<u32>, DatapathError> {
        let config = self.config()?;
        let mut slots = BTreeSet::new();
        for [from, to] in pairs {
            let (Some(from), Some(to)) = (F::address(*from), F::address(*to)) else {
                continue;
            };
            for (local, remote) in [(from, to), (to, from)] {
                let (local, remote) = (local.into(), remote.into());
                if config.is_local_pod(local) && config.is_remote_pod(remote) {
                    slots.insert(pair::slot(FlowWords::<F>::new(local, remote, 0, 0, 0)));
                }
            }
        }
        Ok(slots)
    }

    /// Reads nodes, routes and peers.
    pub fn tables(&self) -> Result<Tables<F>, DatapathError> {
        let routes = self.routes()?.into_iter();
        Ok(Tables {
            nodes: self.nodes()?,
            routes: routes.map(|(subnet, route)| (subnet, route.node)).collect(),
            peers: { self.peers()?.into_iter() }
                .map(|(vtep, peer)| (vtep, peer.node))
                .collect(),
        })
    }

    /// Nodes by their addresses in the tunnel.
    pub fn peers(&self) -> Result<Vec<(F::Be, Peer)>, DatapathError> {
        sys::map_entries(self.peers_fd.as_fd()).map_err(read_error(F::MAPS.peers))
    }

    /// The valid node entries.
    pub fn nodes(&self) -> Result<BTreeMap<u32, Node<F>>, DatapathError> {
        let entries = sys::map_entries::<u32, Node<F>>(self.nodes_fd.as_fd())
            .map_err(read_error(F::MAPS.nodes))?;
        Ok(valid(entries))
    }

    /// Those up to an index: the array has room for many more nodes than most clusters have.
    pub fn nodes_to(&self, last: u32) -> Result<BTreeMap<u32, Node<F>>, DatapathError> {
        let first = self.up_to(last, self.nodes_fd.as_fd(), F::MAPS.nodes)?;
        Ok(valid((0..).zip(first)))
    }

    pub fn routes(&self) -> Result<BTreeMap<F::Network, RouteEntry>, DatapathError> {
        let at_once = sys::map_entries::<RouteKey<F::Be>, RouteEntry>(self.routes_fd.as_fd());
        let entries: Vec<_> = match at_once {
            Ok(entries) => { entries.into_iter() }
                .map(|(key, route)| (key.prefix_len, key.address, route))
                .collect(),
            // Before Linux 5.13.
            Err(_) => { self.routes.iter() }
                .map(|entry| entry.map(|(key, route)| (key.prefix_len(), key.data(), route)))
                .collect::<Result<_, _>>()
                .map_err(map_error("read", F::MAPS.routes))?,
        };
        let subnet = |prefix_len, address: F::Be| {
            let prefix_len = u8::try_from(prefix_len).ok()?;
            F::with_prefix(address.into(), prefix_len)
        };
        Ok(entries
            .into_iter()
            .filter_map(|(prefix_len, address, route)| Some((subnet(prefix_len, address)?, route)))
            .collect())
    }

    /// The next hops of these nodes.
    pub fn nexthops(&self, nodes: &BTreeSet<u32>) -> Result<BTreeMap<u32, Nexthop>, DatapathError> {
        let Some(last) = nodes.last() else {
            return Ok(BTreeMap::new());
        };
        let first: Vec<Nexthop> = self.up_to(*last, self.nexthops_fd.as_fd(), F::MAPS.nexthops)?;
        Ok(nodes
            .iter()
            .filter_map(|node| Some((*node, *first.get(*node as usize)?)))
            .collect())
    }

    /// The entries of an array of nodes up to one of them.
    fn up_to<V: Pod>(
        &self,
        last: u32,
        map: BorrowedFd<'_>,
        name: &'static str,
    ) -> Result<Vec<V>, DatapathError> {
        // The lowest free index is given to a new node, so those in use are close together.
        let count = last.saturating_add(1).min(self.limits.nodes) as usize;
        sys::first_values(map, count, 1).map_err(read_error(name))
    }

    fn nexthop(&self, index: u32) -> Result<Nexthop, DatapathError> {
        self.nexthops
            .get(&index, 0)
            .map_err(map_error("read", F::MAPS.nexthops))
    }

    pub fn config(&self) -> Result<Config<F>, DatapathError> {
        self.config.read()
    }

    /// The configuration, if the node serves the family and has a lease.
    pub fn served_config(&self) -> Result<Option<Config<F>>, DatapathError> {
        Ok(Some(self.config()?).filter(Config::is_served))
    }

    /// Every entry of the flow table, expired ones included.
    pub fn flows(&self) -> Result<Vec<(FlowKey<F>, Flow)>, DatapathError> {
        sys::map_entries(self.flows_fd.as_fd()).map_err(read_error(F::MAPS.flows))
    }

    /// Writes a node entry. A changed entry keeps its index; `moved` says that flows to the node have to
    /// earn their way again.
    pub fn put_node(
        &mut self,
        index: u32,
        old: Option<&Node<F>>,
        node: &Node<F>,
        moved: bool,
    ) -> Result<(), DatapathError> {
        let disabled = |node: &Node<F>| Node {
            flags: node.flags & !NODE_VALID,
            ..*node
        };
        if let Some(old) = old {
            self.set_node(index, &disabled(old))?;
        }
        self.set_node(index, &disabled(node))?;
        if moved {
            // After the node: a flow that still earned a way to the old one has the old number.
            let nexthop = self.nexthop(index)?;
            let next = Nexthop {
                path_changes: nexthop.path_changes.wrapping_add(1),
                ..Nexthop::default()
            };
            self.set_nexthop(index, next)?;
        }
        self.set_node(index, node)
    }

    pub fn remove_node(&mut self, index: u32) -> Result<(), DatapathError> {
        self.set_node(index, &Node::default())?;
        self.set_nexthop(index, Nexthop::default())
    }

    fn set_nexthop(&mut self, index: u32, nexthop: Nexthop) -> Result<(), DatapathError> {
        self.nexthops
            .set(index, nexthop, 0)
            .map_err(map_error("write", F::MAPS.nexthops))
    }

    pub fn put_route(&mut self, subnet: F::Network, node: u32) -> Result<(), DatapathError> {
        self.routes
            .insert(&route_key::<F>(subnet), RouteEntry { node, flags: 0 }, 0)
            .map_err(map_error("write", F::MAPS.routes))
    }

    pub fn remove_route(&mut self, subnet: F::Network) -> Result<(), DatapathError> {
        gone_is_fine(self.routes.remove(&route_key::<F>(subnet)))
            .map_err(map_error("remove", F::MAPS.routes))
    }

    pub fn put_peer(&mut self, vtep: F::Be, node: u32) -> Result<(), DatapathError> {
        self.peers
            .insert(vtep, Peer { node }, 0)
            .map_err(map_error("write", F::MAPS.peers))
    }

    pub fn remove_peer(&mut self, vtep: F::Be) -> Result<(), DatapathError> {
        gone_is_fine(self.peers.remove(&vtep)).map_err(map_error("remove", F::MAPS.peers))
    }

    fn set_node(&mut self, index: u32, node: &Node<F>) -> Result<(), DatapathError> {
        self.nodes
            .set(index, node, 0)
            .map_err(map_error("write", F::MAPS.nodes))
    }
}

fn read_error(map: &'static str) -> impl Fn(io::Error) -> DatapathError {
    move |source| DatapathError::Read { map, source }
}

fn route_key<F: Family>(subnet: F::Network) -> Key<F::Be> {
    Key::new(u32::from(F::prefix(subnet)), F::first(subnet).into())
}

fn valid<F: Family>(entries: impl IntoIterator<Item = (u32, Node<F>)>) -> BTreeMap<u32, Node<F>> {
    let is_valid = |node: &Node<F>| node.flags & NODE_VALID != 0 && subnet_of(node).is_some();
    let entries = entries.into_iter();
    entries.filter(|(_, node)| is_valid(node)).collect()
}
