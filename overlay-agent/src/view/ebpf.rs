//! The eBPF tier as it is pinned, but for the flow tables ([`super::flows`]), which may be large.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use overlay_common::{
    addr::Address as _,
    config::Config,
    node::{MODE_TUNNEL, Nexthop, Node},
    outcome::{Counter, Hook, Outcome},
    route::RouteEntry,
};

use crate::{
    datapath::{self, DatapathError, LinkState, Maps, OverlayMaps, PinDir},
    filter::per_packet::Report,
    model::{Family, V4, V6, each_family},
    netlink::Subnets,
};

/// What is pinned.
pub struct EbpfTier {
    pub agent_running: bool,
    /// `None` if the node does not serve the family.
    pub ipv4: Option<Overlay<V4>>,
    pub ipv6: Option<Overlay<V6>>,
    pub counters: Vec<(Hook, Outcome, Counter)>,
    pub links: Vec<LinkState>,
    /// What the packet filter judges packet by packet.
    pub per_packet_rules: Report,
    /// Directions in which rules tell tunnel packets of one node apart, as in `OVL_SLOW`.
    pub outer_rules: u32,
}

/// What the maps say of one family.
pub struct Overlay<F: Family> {
    pub config: Config<F>,
    /// Remote nodes, by index, up to the last that a route or a peer leads to.
    pub nodes: BTreeMap<u32, Node<F>>,
    pub routes: BTreeMap<F::Network, RouteEntry>,
    /// How many addresses in the tunnel are known.
    pub peers: usize,
    /// Of the nodes that have a route.
    pub nexthops: BTreeMap<u32, Nexthop>,
}

impl EbpfTier {
    /// Reads the pinned maps and links.
    pub fn read(pins: &PinDir) -> Result<Self, DatapathError> {
        Self::of(pins, &Maps::open(pins)?)
    }

    /// As [`Self::read`], from maps that are open.
    pub fn of(pins: &PinDir, maps: &Maps) -> Result<Self, DatapathError> {
        let slow = maps.slow()?;
        let overlays = each_family!(maps.overlays.as_ref(), maps => Overlay::read(maps)?);
        Ok(Self {
            agent_running: pins.is_in_use()?,
            ipv4: overlays.ipv4,
            ipv6: overlays.ipv6,
            counters: maps.counters()?,
            links: datapath::link_states(pins)?,
            per_packet_rules: Report::of(&slow).unwrap_or_default(),
            outer_rules: slow.outer,
        })
    }

    /// The node's own subnets.
    pub fn subnets(&self) -> Subnets {
        Subnets {
            ipv4: self.ipv4.as_ref().and_then(Overlay::subnet),
            ipv6: self.ipv6.as_ref().and_then(Overlay::subnet),
        }
    }

    /// The addresses tunnel packets are sent from.
    pub fn vteps(&self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.ipv4.as_ref().map(Overlay::vtep);
        let ipv6 = self.ipv6.as_ref().map(Overlay::vtep);
        ipv4.into_iter().chain(ipv6)
    }
}

impl<F: Family> Overlay<F> {
    /// `None` if the node does not serve the family.
    fn read(maps: &OverlayMaps<F>) -> Result<Option<Self>, DatapathError> {
        let Some(config) = maps.served_config()? else {
            return Ok(None);
        };
        let routes = maps.routes()?;
        let peers = maps.peers()?;
        let led_to = routes.values().map(|route| route.node);
        let last = led_to.chain(peers.iter().map(|(_, peer)| peer.node)).max();
        let nodes = maps.nodes_to(last.unwrap_or_default())?;
        let used = routes.values().map(|route| route.node);
        let nexthops = maps.nexthops(&used.filter(|node| nodes.contains_key(node)).collect())?;
        Ok(Some(Self {
            config,
            nodes,
            routes,
            peers: peers.len(),
            nexthops,
        }))
    }

    pub fn vtep(&self) -> IpAddr {
        F::Address::from(self.config.vtep).into()
    }

    /// Whether tunnel packets may be fast to the node of this index.
    pub fn takes_tunnel_packets(&self, node: u32) -> bool {
        let takes = Node::<F>::takes_tunnel_packets;
        self.config.vtep_ifindex != 0 && self.nodes.get(&node).is_some_and(takes)
    }

    /// Where packets to the node of this index go first; `None` while that is not known. What is known of a
    /// node that takes tunnel packets no more, or of the one before it, stays in the map and counts for nothing.
    pub fn next_hop(&self, node: u32) -> Option<&Nexthop> {
        let vtep = self.nodes.get(&node)?.vtep;
        self.nexthops.get(&node).filter(|nexthop| {
            nexthop.vtep == vtep.tag()
                && nexthop.ifindex != 0
                && (nexthop.mode != MODE_TUNNEL || self.takes_tunnel_packets(node))
        })
    }

    /// The node's own subnet; `None` before the first lease.
    fn subnet(&self) -> Option<F::Network> {
        let subnet = F::Address::from(self.config.subnet).into();
        let mask = F::Address::from(self.config.subnet_mask).into();
        let prefix = IpNetwork::with_netmask(subnet, mask).ok()?.prefix();
        F::with_prefix(F::address(subnet)?, prefix).filter(|_| prefix > 0)
    }
}
