//! What a report is made of, read from the pinned maps and links.

use std::{collections::BTreeMap, time::Duration};

use overlay_common::{
    config::Config,
    flow::{Flow, FlowKey},
    node::Node,
    outcome::{Counter, Hook, Outcome},
    route::Route,
};

use super::super::pinned::Pinned;
use crate::{
    datapath::{self, DatapathError, LinkState, OverlayMaps},
    model::{Family, V4, V6},
};

pub struct Observed {
    pub agent_running: bool,
    /// `None` if the node does not serve the family.
    pub ipv4: Option<Overlay<V4>>,
    pub ipv6: Option<Overlay<V6>>,
    pub counters: Vec<(Hook, Outcome, Counter)>,
    pub links: Vec<LinkState>,
    pub now: Duration,
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
    pub fn read(args: &Pinned) -> Result<Self, DatapathError> {
        let pins = args.pins();
        let maps = args.open()?;
        Ok(Self {
            agent_running: pins.is_in_use()?,
            ipv4: Overlay::read(&maps.ipv4)?,
            ipv6: Overlay::read(&maps.ipv6)?,
            counters: maps.counters()?,
            links: datapath::link_states(&pins)?,
            now: datapath::lease_clock()?,
        })
    }
}

impl<F: Family> Overlay<F> {
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
