//! What a report is made of, read from the pinned maps and links.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnetwork::IpNetwork;
use overlay_common::{
    config::Config,
    flow::{Flow, FlowKey},
    node::Node,
    outcome::{Counter, Hook, Outcome},
    route::Route,
};

use crate::{
    cli::pinned::Pinned,
    datapath::{self, DatapathError, LinkState, OverlayMaps},
    filter::per_packet::Report,
    model::{Family, V4, V6},
    netlink::Subnets,
    underlay::HostSnapshot,
};

pub struct Observed {
    pub agent_running: bool,
    /// `None` if the node does not serve the family.
    pub ipv4: Option<Overlay<V4>>,
    pub ipv6: Option<Overlay<V6>>,
    pub counters: Vec<(Hook, Outcome, Counter)>,
    pub links: Vec<LinkState>,
    /// What the packet filter judges packet by packet.
    pub per_packet_rules: Report,
    pub now: Duration,
    /// The underlay interface, if it has no Ethernet headers.
    pub bare_underlay: Option<String>,
}

/// The maps of one family.
pub struct Overlay<F: Family> {
    pub config: Config<F>,
    pub nodes: BTreeMap<u32, Node<F>>,
    pub routes: BTreeMap<F::Network, Route>,
    pub flows: Vec<(FlowKey<F>, Flow)>,
    pub max_flows: u32,
}

impl Observed {
    pub fn read(args: &Pinned, host: &HostSnapshot) -> Result<Self, DatapathError> {
        let pins = args.pins();
        let maps = args.open()?;
        let ipv4 = Overlay::read(&maps.ipv4)?;
        let ipv6 = Overlay::read(&maps.ipv6)?;
        let vteps = [
            ipv4.as_ref().map(Overlay::vtep),
            ipv6.as_ref().map(Overlay::vtep),
        ];
        Ok(Self {
            agent_running: pins.is_in_use()?,
            bare_underlay: vteps
                .into_iter()
                .flatten()
                .find_map(|vtep| bare_interface(host, vtep)),
            ipv4,
            ipv6,
            counters: maps.counters()?,
            links: datapath::link_states(&pins)?,
            per_packet_rules: Report::of(&maps.slow()?).unwrap_or_default(),
            now: datapath::lease_clock()?,
        })
    }
}

/// The interface that has the address, if its packets have no Ethernet headers.
fn bare_interface(host: &HostSnapshot, address: IpAddr) -> Option<String> {
    let owner = host.addresses.iter().find(|owned| owned.ip == address)?;
    let link = host
        .links
        .iter()
        .find(|link| link.ifindex == owner.ifindex)?;
    (!link.ethernet).then(|| link.name.clone())
}

impl Observed {
    pub fn subnets(&self) -> Subnets {
        Subnets {
            ipv4: self.ipv4.as_ref().and_then(Overlay::subnet),
            ipv6: self.ipv6.as_ref().and_then(Overlay::subnet),
        }
    }
}

impl<F: Family> Overlay<F> {
    fn vtep(&self) -> IpAddr {
        F::Address::from(self.config.vtep).into()
    }

    /// The node's own subnet; `None` before the first lease.
    fn subnet(&self) -> Option<F::Network> {
        let subnet = F::Address::from(self.config.subnet).into();
        let mask = F::Address::from(self.config.subnet_mask).into();
        let prefix = IpNetwork::with_netmask(subnet, mask).ok()?.prefix();
        F::with_prefix(F::address(subnet)?, prefix).filter(|_| prefix > 0)
    }

    fn read(maps: &OverlayMaps<F>) -> Result<Option<Self>, DatapathError> {
        let Some(config) = maps.served_config()? else {
            return Ok(None);
        };
        Ok(Some(Self {
            config,
            nodes: maps.nodes()?,
            routes: maps.routes()?,
            flows: maps.flows()?,
            max_flows: maps.max_flows(),
        }))
    }
}
