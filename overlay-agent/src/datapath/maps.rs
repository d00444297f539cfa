//! Typed handles of the pinned maps: one method per thing that is read or written.
//!
//! Entries that programs read piecewise while they are written are first disabled, then filled,
//! then enabled, so that no program sees half of one and half of another.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::maps::{
    Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, lpm_trie::Key,
};
use ipnetwork::Ipv4Network;
use overlay_common::{
    addr::{Ipv4Be, MacAddr},
    config::{Config, FASTPATH_OFF},
    flow::{Flow, FlowKey4},
    maps,
    node::{Gateway, NODE_VALID, Nexthop, Node, Peer},
    outcome::{COUNTERS, Counter, Hook, OUTCOMES_PER_HOOK, Outcome, slot},
    route::Route,
};

use super::{
    DatapathError,
    pins::PinDir,
    plan::{Limits, Tables, subnet_of},
    sys,
};

/// The maps of one pin directory.
pub struct Maps {
    routes: LpmTrie<MapData, Ipv4Be, Route>,
    nodes: Array<MapData, Node>,
    nodes_fd: OwnedFd,
    nexthops: Array<MapData, Nexthop>,
    peers: HashMap<MapData, Ipv4Be, Peer>,
    flows_fd: OwnedFd,
    gateways: HashMap<MapData, u32, Gateway>,
    config: Array<MapData, Config>,
    stats: PerCpuArray<MapData, Counter>,
    limits: Limits,
    max_flows: u32,
}

impl Maps {
    /// Opens the pinned maps.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        pins.require_maps()?;
        let (nodes, nodes_fd, max_nodes) = open(pins, maps::NODES)?;
        let (routes, _, max_routes) = open(pins, maps::ROUTES4)?;
        let (nexthops, ..) = open(pins, maps::NEXTHOPS)?;
        let (peers, _, max_peers) = open(pins, maps::PEERS4)?;
        let (flows, flows_fd, max_flows) = open(pins, maps::FLOWS4)?;
        let (gateways, ..) = open(pins, maps::GATEWAYS)?;
        let (config, ..) = open(pins, maps::CONFIG)?;
        let (stats, ..) = open(pins, maps::STATS)?;
        // Flows are read by descriptor; the typed handle only checks the sizes.
        let _: HashMap<MapData, FlowKey4, Flow> = typed(flows, maps::FLOWS4)?;
        Ok(Self {
            routes: typed(routes, maps::ROUTES4)?,
            nodes: typed(nodes, maps::NODES)?,
            nodes_fd,
            nexthops: typed(nexthops, maps::NEXTHOPS)?,
            peers: typed(peers, maps::PEERS4)?,
            flows_fd,
            gateways: typed(gateways, maps::GATEWAYS)?,
            config: typed(config, maps::CONFIG)?,
            stats: typed(stats, maps::STATS)?,
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

    /// Reads nodes, routes and peers.
    pub fn tables(&self) -> Result<Tables, DatapathError> {
        let nodes = self.nodes()?;
        let mut routes = BTreeMap::new();
        for (subnet, route) in self.routes()? {
            routes.insert(subnet, route.node);
        }
        let mut peers = BTreeMap::new();
        for entry in &self.peers {
            let (vtep, peer) = entry.map_err(map_error("read", maps::PEERS4))?;
            peers.insert(vtep, peer.node);
        }
        Ok(Tables {
            nodes,
            routes,
            peers,
        })
    }

    /// The valid node entries.
    pub fn nodes(&self) -> Result<BTreeMap<u32, Node>, DatapathError> {
        let entries = sys::map_entries::<u32, Node>(self.nodes_fd.as_fd()).map_err(|source| {
            DatapathError::Read {
                map: maps::NODES,
                source,
            }
        })?;
        let is_valid = |node: &Node| node.flags & NODE_VALID != 0 && subnet_of(node).is_some();
        Ok(entries
            .into_iter()
            .filter(|(_, node)| is_valid(node))
            .collect())
    }

    pub fn routes(&self) -> Result<BTreeMap<Ipv4Network, Route>, DatapathError> {
        let mut routes = BTreeMap::new();
        for entry in &self.routes {
            let (key, route) = entry.map_err(map_error("read", maps::ROUTES4))?;
            let subnet = u8::try_from(key.prefix_len())
                .ok()
                .and_then(|prefix_len| Ipv4Network::new(key.data().into(), prefix_len).ok());
            if let Some(subnet) = subnet {
                routes.insert(subnet, route);
            }
        }
        Ok(routes)
    }

    pub fn nexthop(&self, index: u32) -> Result<Nexthop, DatapathError> {
        self.nexthops
            .get(&index, 0)
            .map_err(map_error("read", maps::NEXTHOPS))
    }

    pub fn config(&self) -> Result<Config, DatapathError> {
        self.config
            .get(&0, 0)
            .map_err(map_error("read", maps::CONFIG))
    }

    /// Every entry of the flow table, expired ones included.
    pub fn flows(&self) -> Result<Vec<(FlowKey4, Flow)>, DatapathError> {
        sys::map_entries(self.flows_fd.as_fd()).map_err(|source| DatapathError::Read {
            map: maps::FLOWS4,
            source,
        })
    }

    /// The counters of every outcome at every hook, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<(Hook, Outcome, Counter)>, DatapathError> {
        const { assert!(COUNTERS >= (OUTCOMES_PER_HOOK as usize) * Hook::ALL.len()) };
        let mut counters = Vec::with_capacity(Hook::ALL.len() * Outcome::ALL.len());
        for &hook in Hook::ALL {
            for &outcome in Outcome::ALL {
                let per_cpu = self
                    .stats
                    .get(&slot(hook, outcome), 0)
                    .map_err(map_error("read", maps::STATS))?;
                let sum = per_cpu.iter().fold(Counter::default(), |sum, cpu| Counter {
                    packets: sum.packets.wrapping_add(cpu.packets),
                    bytes: sum.bytes.wrapping_add(cpu.bytes),
                });
                counters.push((hook, outcome, sum));
            }
        }
        Ok(counters)
    }

    pub fn gateways(&self) -> Result<BTreeMap<u32, MacAddr>, DatapathError> {
        self.gateways
            .iter()
            .map(|entry| entry.map(|(ifindex, gateway)| (ifindex, gateway.mac)))
            .collect::<Result<_, _>>()
            .map_err(map_error("read", maps::GATEWAYS))
    }

    /// Writes a node entry. A changed entry keeps its index; `forget_nexthop` says that the way to the
    /// node is to be learned anew.
    pub fn put_node(
        &mut self,
        index: u32,
        old: Option<&Node>,
        node: &Node,
        forget_nexthop: bool,
    ) -> Result<(), DatapathError> {
        let disabled = |node: &Node| Node {
            flags: node.flags & !NODE_VALID,
            ..*node
        };
        if let Some(old) = old {
            self.set_node(index, &disabled(old))?;
        }
        if forget_nexthop {
            self.nexthops
                .set(index, Nexthop::default(), 0)
                .map_err(map_error("write", maps::NEXTHOPS))?;
        }
        self.set_node(index, &disabled(node))?;
        self.set_node(index, node)
    }

    pub fn remove_node(&mut self, index: u32) -> Result<(), DatapathError> {
        self.set_node(index, &Node::default())?;
        self.nexthops
            .set(index, Nexthop::default(), 0)
            .map_err(map_error("write", maps::NEXTHOPS))
    }

    pub fn put_route(&mut self, subnet: Ipv4Network, node: u32) -> Result<(), DatapathError> {
        self.routes
            .insert(&route_key(subnet), Route { node, flags: 0 }, 0)
            .map_err(map_error("write", maps::ROUTES4))
    }

    pub fn remove_route(&mut self, subnet: Ipv4Network) -> Result<(), DatapathError> {
        gone_is_fine(self.routes.remove(&route_key(subnet)))
            .map_err(map_error("remove", maps::ROUTES4))
    }

    pub fn put_peer(&mut self, vtep: Ipv4Be, node: u32) -> Result<(), DatapathError> {
        self.peers
            .insert(vtep, Peer { node }, 0)
            .map_err(map_error("write", maps::PEERS4))
    }

    pub fn remove_peer(&mut self, vtep: Ipv4Be) -> Result<(), DatapathError> {
        gone_is_fine(self.peers.remove(&vtep)).map_err(map_error("remove", maps::PEERS4))
    }

    pub fn put_gateway(&mut self, ifindex: u32, mac: MacAddr) -> Result<(), DatapathError> {
        self.gateways
            .insert(
                ifindex,
                Gateway {
                    mac,
                    ..Gateway::default()
                },
                0,
            )
            .map_err(map_error("write", maps::GATEWAYS))
    }

    pub fn remove_gateway(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        gone_is_fine(self.gateways.remove(&ifindex)).map_err(map_error("remove", maps::GATEWAYS))
    }

    /// Writes the configuration. The caller holds [`PinDir::lock_config`].
    pub fn put_config(&mut self, old: &Config, new: &Config) -> Result<(), DatapathError> {
        let only_generation = Config {
            generation: new.generation,
            ..*old
        } == *new;
        if !only_generation {
            self.set_config(&Config {
                fastpath: FASTPATH_OFF,
                ..*old
            })?;
            self.set_config(&Config {
                fastpath: FASTPATH_OFF,
                ..*new
            })?;
        }
        self.set_config(new)
    }

    fn set_config(&mut self, config: &Config) -> Result<(), DatapathError> {
        self.config
            .set(0, config, 0)
            .map_err(map_error("write", maps::CONFIG))
    }

    fn set_node(&mut self, index: u32, node: &Node) -> Result<(), DatapathError> {
        self.nodes
            .set(index, node, 0)
            .map_err(map_error("write", maps::NODES))
    }
}

/// Opens one pinned map: its handle, a descriptor for batched reads, and its capacity.
fn open(pins: &PinDir, name: &'static str) -> Result<(Map, OwnedFd, u32), DatapathError> {
    let error = map_error("open", name);
    let path = pins.map(name);
    let parts = MapData::from_pin(&path).and_then(|data| {
        let fd = data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(MapError::IoError)?;
        let max_entries = MapInfo::from_pin(&path)?.max_entries();
        Ok((Map::from_map_data(data)?, fd, max_entries))
    });
    match parts {
        Ok(parts) => Ok(parts),
        Err(_) if !path.exists() => Err(DatapathError::NotPinned { dir: pins.maps() }),
        Err(source) => Err(error(source)),
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    map: Map,
    name: &'static str,
) -> Result<T, DatapathError> {
    T::try_from(map).map_err(map_error("open", name))
}

fn route_key(subnet: Ipv4Network) -> Key<Ipv4Be> {
    Key::new(u32::from(subnet.prefix()), subnet.network().into())
}

/// Removing what is not there is what was wanted.
fn gone_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}

fn map_error(action: &'static str, map: &'static str) -> impl Fn(MapError) -> DatapathError + Copy {
    move |source| DatapathError::Map {
        action,
        map,
        source,
    }
}
