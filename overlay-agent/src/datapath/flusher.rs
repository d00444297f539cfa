//! Makes flows earn their leases again, whatever else goes on: with handles of its own, and without
//! waiting for long for anybody.

use std::time::Duration;

use super::{
    error::DatapathError,
    maps::{config::ConfigMap, config_lock::ConfigLock},
    pins::PinDir,
};
use crate::model::{V4, V6};

/// Whoever writes the configuration is done within microseconds, unless he was stopped.
const PATIENCE: Duration = Duration::from_millis(200);

/// The generations of the two families' leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generations {
    pub ipv4: u32,
    pub ipv6: u32,
}

/// The configurations of both families.
pub struct Flusher {
    pins: PinDir,
    ipv4: ConfigMap<V4>,
    ipv6: ConfigMap<V6>,
    /// What this flusher wrote last.
    written: Option<Generations>,
}

/// A flush that was done.
#[derive(Debug)]
pub struct Flushed {
    pub generations: Generations,
    /// Why it has to be done once more: somebody may yet write an older generation back.
    pub contested: Option<DatapathError>,
}

impl Flusher {
    /// Opens the pinned maps.
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        pins.require_maps()?;
        Ok(Self {
            pins: pins.clone(),
            ipv4: ConfigMap::open(pins)?,
            ipv6: ConfigMap::open(pins)?,
            written: None,
        })
    }

    /// Makes every flow earn its lease again. A process that was stopped while it had the
    /// configuration locked is not waited for.
    pub fn flush(&mut self) -> Result<Flushed, DatapathError> {
        let (lock, contested) = match ConfigLock::acquire(&self.pins, PATIENCE) {
            Ok(lock) => (lock, None),
            Err(error) => (ConfigLock::without_other_processes(), Some(error)),
        };
        let generations = Generations {
            ipv4: self.ipv4.flush(self.written.map(|last| last.ipv4), &lock)?,
            ipv6: self.ipv6.flush(self.written.map(|last| last.ipv6), &lock)?,
        };
        self.written = Some(generations);
        Ok(Flushed {
            generations,
            contested,
        })
    }
}
