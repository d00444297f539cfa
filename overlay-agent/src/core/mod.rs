//! The decisions about leases, without I/O and without a clock.
//!
//! Time and the store's answers come in as arguments, requests and changes go out as values; what
//! carries them is the store's own. A day of renewals, a compaction or a take-over runs in microseconds
//! in a unit test.

mod absent;
#[cfg(test)]
pub(crate) mod fake;
mod machine;
mod own;
mod peers;
mod record;
#[cfg(test)]
mod tests;
mod usable;

pub use absent::{GRACE, OUTAGE, REGISTRATION};
pub use machine::{Core, Input, Output};
pub use own::{Held, Own, Renewal, StoreRequest};
pub use peers::Peers;
pub use record::{Entry, Expect, Put, PutOutcome, RecordState, Snapshot, WatchEvent};
pub use usable::Unusable;
