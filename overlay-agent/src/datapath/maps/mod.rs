//! Typed handles of the pinned maps: those of each family, and those that serve both.

pub mod config;
pub mod config_lock;
pub mod contents;
pub mod fit;
mod handle;
pub mod overlay;
pub mod stats;

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, MapData};
use overlay_common::{
    addr::MacAddr,
    maps,
    node::Gateway,
    outcome::{Counter, Hook, Outcome},
    pair,
    slow::Slow,
};

use self::{
    handle::{gone_is_fine, map_error, open, typed},
    overlay::OverlayMaps,
    stats::Stats,
};
use super::{error::DatapathError, pins::PinDir};
use crate::model::{PerFamily, V4, V6};

/// The maps of one pin directory.
pub struct Maps {
    pub overlays: PerFamily<OverlayMaps<V4>, OverlayMaps<V6>>,
    gateways: HashMap<MapData, u32, Gateway>,
    slow: Array<MapData, Slow>,
    translated: Array<MapData, u32>,
    stats: Stats,
}

impl Maps {
    /// Opens the pinned maps.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        pins.require_maps()?;
        let (gateways, ..) = open(pins, maps::GATEWAYS)?;
        let (slow, ..) = open(pins, maps::SLOW)?;
        let (translated, ..) = open(pins, maps::TRANSLATED)?;
        Ok(Self {
            overlays: PerFamily {
                ipv4: OverlayMaps::open(pins)?,
                ipv6: OverlayMaps::open(pins)?,
            },
            gateways: typed(gateways, maps::GATEWAYS)?,
            slow: typed(slow, maps::SLOW)?,
            translated: typed(translated, maps::TRANSLATED)?,
            stats: Stats::open(pins)?,
        })
    }

    /// The counters of every outcome at every hook, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<(Hook, Outcome, Counter)>, DatapathError> {
        self.stats.read()
    }

    /// What is left to the kernel because the packet filter judges it packet by packet.
    pub fn slow(&self) -> Result<Slow, DatapathError> {
        self.slow.get(&0, 0).map_err(map_error("read", maps::SLOW))
    }

    pub(in crate::datapath) fn put_slow(&mut self, slow: &Slow) -> Result<(), DatapathError> {
        self.slow
            .set(0, slow, 0)
            .map_err(map_error("write", maps::SLOW))
    }

    /// Notes that a translation may connect the pods whose pair has this slot.
    pub(in crate::datapath) fn mark_translated(&mut self, slot: u32) -> Result<(), DatapathError> {
        self.translated
            .set(slot, pair::MARKED, 0)
            .map_err(map_error("write", maps::TRANSLATED))
    }

    pub fn gateways(&self) -> Result<BTreeMap<u32, MacAddr>, DatapathError> {
        self.gateways
            .iter()
            .map(|entry| entry.map(|(ifindex, gateway)| (ifindex, gateway.mac)))
            .collect::<Result<_, _>>()
            .map_err(map_error("read", maps::GATEWAYS))
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
}
