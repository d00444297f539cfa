//! The decisions about leases, without I/O and without a clock.
//!
//! Time and the store's answers come in as arguments, requests and changes go out as values; what
//! carries them is [`crate::lease::spawn`]. A day of renewals, a compaction or a take-over runs in
//! microseconds in a unit test.

mod absent;
mod acquire;
mod alarm;
mod allocation;
mod backoff;
mod machine;
mod own;
mod peers;
#[cfg(test)]
mod tests;
mod usable;
mod view;

pub use absent::{GRACE, OUTAGE, REGISTRATION};
pub use acquire::{Decision, Origin, Wish, decide};
pub use alarm::Alarm;
pub use allocation::Allocation;
pub use backoff::Backoff;
pub use machine::{Core, Input, Output};
pub use own::{Held, Own, Renewal, Request};
pub use peers::Peers;
pub use usable::Unusable;
pub use view::{EtcdState, LeaseView, OwnLease, OwnState, PeerLease};
