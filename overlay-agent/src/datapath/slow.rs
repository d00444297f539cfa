//! `OVL_SLOW`: which flows earn no permit because the packet filter judges each of their packets.

use overlay_common::slow::Slow;

use super::{error::DatapathError, flusher::Flusher, maps::Maps, pins::PinDir};

/// The writing side, with handles of its own: it waits for nothing else that is done to the maps.
pub struct SlowFlows {
    maps: Maps,
    flusher: Flusher,
    /// What was put last has not been flushed for.
    flush_owed: bool,
}

impl SlowFlows {
    pub fn open(pins: &PinDir) -> Result<Self, DatapathError> {
        Ok(Self {
            maps: Maps::open(pins)?,
            flusher: Flusher::open(pins)?,
            flush_owed: false,
        })
    }

    /// Whether an agent has put anything since the map was made: it never puts an empty report.
    pub fn is_known(&self) -> Result<bool, DatapathError> {
        Ok(self.maps.slow()?.report_len != 0)
    }

    /// Leaves these flows to the kernel and no others. Returns whether that is news; then it is in the map
    /// before every flow has to earn its permit again, so none goes on by what was there before.
    pub fn put(&mut self, slow: &Slow) -> Result<bool, DatapathError> {
        if self.maps.slow()? == *slow && !self.flush_owed {
            return Ok(false);
        }
        self.flush_owed = true;
        self.maps.put_slow(slow)?;
        // The caller tries again what is an error.
        self.flusher.flush()?.contested.map_or(Ok(()), Err)?;
        self.flush_owed = false;
        Ok(true)
    }
}
