//! The configuration entry of one family. More than one thread may have it open; a change takes a
//! [`ConfigLock`].

use aya::maps::{Array, MapData};
use overlay_common::config::{Config, FASTPATH_LEARNING, FASTPATH_OFF, FASTPATH_TRUSTED};

use super::{
    config_lock::ConfigLock,
    handle::{map_error, open, typed},
};
use crate::{
    datapath::{error::DatapathError, pins::PinDir},
    model::{Family, V4},
};

pub struct ConfigMap<F: Family = V4>(Array<MapData, Config<F>>);

impl<F: Family> ConfigMap<F> {
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        let (config, ..) = open(pins, F::MAPS.config)?;
        typed(config, F::MAPS.config).map(Self)
    }

    pub fn read(&self) -> Result<Config<F>, DatapathError> {
        self.0.get(&0, 0).map_err(map_error("read", F::MAPS.config))
    }

    /// Replaces `old`, which was read under the same lock.
    pub fn write(
        &mut self,
        old: &Config<F>,
        new: &Config<F>,
        _lock: &ConfigLock,
    ) -> Result<(), DatapathError> {
        if !is_gentle(old, new) {
            self.set(&Config {
                fastpath: FASTPATH_OFF,
                ..*old
            })?;
            self.set(&Config {
                fastpath: FASTPATH_OFF,
                ..*new
            })?;
        }
        self.set(new)
    }

    /// Makes every flow earn its permit again. `before` is a generation that may have been used
    /// already, although it is not the present one. Returns the new one.
    pub fn flush(&mut self, before: Option<u32>, lock: &ConfigLock) -> Result<u32, DatapathError> {
        let old = self.read()?;
        let generation = successor(old.generation, before);
        self.write(&old, &Config { generation, ..old }, lock)?;
        Ok(generation)
    }

    /// Lets nothing go the short way for these reasons, bits of [`closed`](overlay_common::short::closed).
    pub fn close(&mut self, closed: u32, lock: &ConfigLock) -> Result<(), DatapathError> {
        let old = self.read()?;
        self.write(&old, &Config { closed, ..old }, lock)
    }

    fn set(&mut self, config: &Config<F>) -> Result<(), DatapathError> {
        self.0
            .set(0, config, 0)
            .map_err(map_error("write", F::MAPS.config))
    }
}

/// Whether programs may see a part of the change: it is of the generation and the short way alone, or the end of
/// learning.
pub fn is_gentle<F: Family>(old: &Config<F>, new: &Config<F>) -> bool {
    let same = Config {
        generation: new.generation,
        closed: new.closed,
        ..*old
    };
    let learned = Config {
        fastpath: FASTPATH_TRUSTED,
        ..same
    };
    same == *new || (old.fastpath == FASTPATH_LEARNING && learned == *new)
}

/// 0 stays the generation of an entry that was never written.
pub const fn next_generation(generation: u32) -> u32 {
    match generation.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}

/// The generation after both, of which the second may be ahead if somebody wrote an old
/// configuration back.
const fn successor(present: u32, before: Option<u32>) -> u32 {
    match before {
        Some(before) if before.wrapping_sub(present) < u32::MAX / 2 => next_generation(before),
        _ => next_generation(present),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_never_repeat_although_an_old_one_was_written_back() {
        assert_eq!(successor(7, None), 8);
        assert_eq!(successor(7, Some(7)), 8);
        assert_eq!(successor(7, Some(12)), 13);
        assert_eq!(successor(12, Some(7)), 13);
    }

    #[test]
    fn generations_go_round_without_0() {
        assert_eq!(successor(u32::MAX, None), 1);
        assert_eq!(successor(u32::MAX, Some(3)), 4);
        assert_eq!(successor(3, Some(u32::MAX)), 4);
    }
}
