//! Makes flows earn their permits again, whatever else goes on: with handles of its own, and without
//! waiting for long for anybody.

use std::time::Duration;

use super::{
    error::DatapathError,
    maps::{config::ConfigMap, config_lock::ConfigLock},
    pins::PinDir,
};
use crate::model::{PerFamily, V4, V6, each_family};

/// Whoever writes the configuration is done within microseconds, unless he was stopped.
const PATIENCE: Duration = Duration::from_millis(200);

/// The generations of the two families' permits.
pub type Generations = PerFamily<u32>;

/// The configurations of both families.
pub struct Flusher {
    pins: PinDir,
    configs: PerFamily<ConfigMap<V4>, ConfigMap<V6>>,
    /// What this flusher wrote last.
    written: PerFamily<Option<u32>>,
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
            configs: PerFamily {
                ipv4: ConfigMap::open(pins)?,
                ipv6: ConfigMap::open(pins)?,
            },
            written: PerFamily::default(),
        })
    }

    /// Makes every flow earn its permit again. A process that was stopped while it had the
    /// configuration locked is not waited for.
    pub fn flush(&mut self) -> Result<Flushed, DatapathError> {
        let (lock, contested) = match ConfigLock::acquire(&self.pins, PATIENCE) {
            Ok(lock) => (lock, None),
            Err(error) => (ConfigLock::without_other_processes(), Some(error)),
        };
        let configs = self.configs.as_mut().zip(self.written);
        let generations = each_family!(configs, (config, last) => config.flush(last, &lock)?);
        self.written = each_family!(generations, generation => Some(generation));
        Ok(Flushed {
            generations,
            contested,
        })
    }
}
