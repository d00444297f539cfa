//! Records of a store that numbers its writes and takes them as compare-and-swap: what the state
//! machine is told of them, and what it asks for.

use std::time::Duration;

use crate::model::{ConfigText, LeaseAttrs, LeaseKey, StoreError, ValueError};

/// A lease record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: LeaseKey,
    pub value: Result<LeaseAttrs, ValueError>,
    /// The store's lease the key is attached to; `None` makes the record a reservation.
    pub lease_id: Option<i64>,
    /// Of the write that made the record; those that replaced its value since do not count.
    pub create_revision: i64,
    pub mod_revision: i64,
}

/// All lease records and the network config, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: i64,
    pub entries: Vec<Entry>,
    pub config: Option<ConfigText>,
}

impl Snapshot {
    /// Adds records that were written later. What was deleted since stays; the events from
    /// [`Self::revision`] on tell.
    pub fn add(&mut self, newer: Vec<Entry>) {
        for entry in newer {
            match self.entries.iter_mut().find(|old| old.key == entry.key) {
                Some(old) => *old = entry,
                None => self.entries.push(entry),
            }
        }
    }
}

/// One record, or its absence, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordState {
    pub revision: i64,
    pub entry: Option<Entry>,
}

/// The state a key must be in for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// Not written since. The lease is compared too, because revisions repeat in a store that
    /// lost its data; lease ids do not.
    Unchanged {
        mod_revision: i64,
        lease_id: Option<i64>,
    },
}

impl Entry {
    /// What a write that replaces this record expects.
    pub fn unchanged(&self) -> Expect {
        Expect::Unchanged {
            mod_revision: self.mod_revision,
            lease_id: self.lease_id,
        }
    }
}

/// A conditional write of a lease record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub key: LeaseKey,
    pub attrs: LeaseAttrs,
    pub expect: Expect,
    /// Life of the record; `None` writes a reservation, which does not expire.
    pub ttl: Option<Duration>,
}

/// How a conditional write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    Written {
        mod_revision: i64,
        lease_id: Option<i64>,
        /// Granted life; `None` for a reservation.
        ttl: Option<Duration>,
    },
    /// The key was not in the expected state; this is the state it was in.
    Conflict(RecordState),
}

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The watch stands; the store is at `revision`.
    Opened {
        revision: i64,
    },
    Put(Entry),
    Delete {
        key: LeaseKey,
        revision: i64,
    },
    /// The network config was written, or deleted.
    Config {
        config: Option<ConfigText>,
        revision: i64,
    },
    /// Everything up to `revision` has been delivered.
    Progress {
        revision: i64,
    },
    /// The start revision is gone from the store's history: list again. Ends the watch.
    Compacted {
        revision: i64,
    },
    /// The watch broke. Ends the watch.
    Disconnected(StoreError),
}
