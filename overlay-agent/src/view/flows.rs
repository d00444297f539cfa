//! The flow tables, and which of their entries count.

use std::time::Duration;

use overlay_common::flow::{Flow, FlowKey};
use serde::Serialize;

use crate::{
    datapath::{DatapathError, Maps, OverlayMaps, PinDir, permit_clock},
    model::{Family, V4, V6, each_family},
};

/// Both flow tables at one time.
pub struct FlowTables {
    /// `None` if the node does not serve the family.
    pub ipv4: Option<FlowTable<V4>>,
    pub ipv6: Option<FlowTable<V6>>,
    /// By the clock of permits.
    pub now: Duration,
}

/// The flow table of a family.
pub struct FlowTable<F: Family> {
    /// Every entry.
    pub flows: Vec<(FlowKey<F>, Flow)>,
    /// Entries of another one do not count.
    pub generation: u32,
    pub capacity: u32,
}

/// Whether an entry counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    Live,
    Expired,
    Stale,
}

impl FlowTables {
    /// Reads the pinned maps.
    pub fn read(pins: &PinDir) -> Result<Self, DatapathError> {
        Self::of(&Maps::open(pins)?)
    }

    /// As [`Self::read`], from maps that are open.
    pub fn of(maps: &Maps) -> Result<Self, DatapathError> {
        let tables = each_family!(maps.overlays.as_ref(), maps => FlowTable::read(maps)?);
        Ok(Self {
            ipv4: tables.ipv4,
            ipv6: tables.ipv6,
            now: permit_clock()?,
        })
    }
}

impl<F: Family> FlowTable<F> {
    fn read(maps: &OverlayMaps<F>) -> Result<Option<Self>, DatapathError> {
        let Some(config) = maps.served_config()? else {
            return Ok(None);
        };
        Ok(Some(Self {
            flows: maps.flows()?,
            generation: config.generation,
            capacity: maps.max_flows(),
        }))
    }

    /// Whether `flow` has a permit that counts at `now`.
    pub fn state(&self, flow: &Flow, now: Duration) -> FlowState {
        if flow.generation != self.generation {
            FlowState::Stale
        } else if left(flow.egress_until, now)
            .or(left(flow.ingress_until, now))
            .is_some()
        {
            FlowState::Live
        } else {
            FlowState::Expired
        }
    }

    /// How many entries have a permit that counts at `now`.
    pub fn live(&self, now: Duration) -> usize {
        let flows = self.flows.iter();
        flows
            .filter(|(_, flow)| self.state(flow, now) == FlowState::Live)
            .count()
    }
}

impl FlowState {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Expired => "expired",
            Self::Stale => "stale",
        }
    }
}

/// Time until a deadline; `None` if it is over.
pub fn left(until_ns: u64, now: Duration) -> Option<Duration> {
    Duration::from_nanos(until_ns)
        .checked_sub(now)
        .filter(|left| !left.is_zero())
}
