//! `OVL_SLOW`: which flows earn no lease because the packet filter judges each of their packets.

use overlay_common::slow::Slow;

use super::{DatapathError, flush, maps::Maps, pins::PinDir};

/// The writing side, with handles of its own: it waits for nothing else that is done to the maps.
pub struct SlowFlows {
    pins: PinDir,
    maps: Maps,
}

impl SlowFlows {
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Ok(Self {
            pins: pins.clone(),
            maps: Maps::open(pins)?,
        })
    }

    /// Leaves these flows to the kernel and no others. Returns whether that is news; then it is in the map
    /// before every flow has to earn its lease again, so none goes on by what was there before.
    pub fn put(&mut self, slow: &Slow) -> Result<bool, DatapathError> {
        if self.maps.slow()? == *slow {
            return Ok(false);
        }
        self.maps.put_slow(slow)?;
        flush(&self.pins, &mut self.maps)?;
        Ok(true)
    }
}
