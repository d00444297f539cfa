//! With which tuple packets entered the host, by their stamps. A packet mostly leaves the host before
//! another one enters it on the same CPU; whoever finds a note here has to check that it is the packet's.

use overlay_common::{
    flow::{Entered, FlowWords},
    maps::ENTERED_SLOTS,
};

use crate::maps::Tables;

const fn slot(stamp: u32) -> u32 {
    stamp & (ENTERED_SLOTS as u32 - 1)
}

/// Notes that a packet of flow `words` enters with this stamp.
#[inline(always)]
pub fn note<F: Tables>(stamp: u32, words: FlowWords<F>) {
    if let Some(entry) = F::entered(slot(stamp)) {
        // SAFETY: the entry is this CPU's own; TC programs of one CPU do not interrupt each other.
        unsafe {
            entry.write(Entered {
                words,
                stamp,
                _pad: 0,
            })
        };
    }
}

/// The flow with which the packet of this stamp may have entered.
#[inline(always)]
pub fn find<F: Tables>(stamp: u32) -> Option<&'static FlowWords<F>> {
    let entry = F::entered(slot(stamp))?;
    // SAFETY: as in `note`: nothing writes it before the program ends, but for what this program notes
    // itself, and no program does both.
    let noted = unsafe { &*entry };
    (noted.stamp == stamp).then_some(&noted.words)
}
