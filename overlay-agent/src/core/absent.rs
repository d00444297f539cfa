//! Peers whose record is gone from the store, and how long they stay all the same.
//!
//! A record that vanishes says little about its node: an operator or a script deletes it and its
//! node writes it again at once, or it ran out because nobody could renew it. So an absent peer
//! stays for a [grace](GRACE), and nobody is let go while this node could not see the records come
//! back, or could not write its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::model::LeaseKey;

/// A record that is written again within this time was never gone. A node that watches does so
/// within milliseconds.
pub const GRACE: Duration = Duration::from_secs(2);

/// How long a node that is alive takes at most to write its record again once etcd answers: it
/// tries at least once a minute, as flanneld does, and then may have to wait out the deadlines of
/// dead endpoints for the request that fails over and for those that write.
pub const REGISTRATION: Duration = Duration::from_secs(90);

/// A shorter outage ends no lease of a node that is alive: the shortest renewal margin is a
/// minute, and an outage is noticed 15 seconds late.
pub const OUTAGE: Duration = Duration::from_secs(30);

/// Records that the store does not have.
#[derive(Debug, Default)]
pub struct Absent {
    stays: BTreeMap<LeaseKey, Stay>,
    /// The same, by when they end.
    ends: BTreeSet<(Instant, LeaseKey)>,
    /// Number of those that a reset store has lost.
    lost: usize,
    /// Nobody is let go before.
    patience: Option<Instant>,
    /// Nobody is let go until this is taken back.
    held: bool,
}

/// How long a peer stays without a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    pub until: Instant,
    /// The store lost its data, and the record with it.
    pub store_reset: bool,
}

impl Stay {
    /// For a record that was there and is not any more.
    pub fn grace(now: Instant) -> Self {
        Self {
            until: now + GRACE,
            store_reset: false,
        }
    }
}

impl Absent {
    /// A stay that has begun does not begin anew, but a longer one takes its place.
    pub fn insert(&mut self, key: LeaseKey, stay: Stay) {
        let begun = self.stays.get(&key);
        if begun.is_none_or(|begun| begun.until < stay.until && stay.store_reset) {
            self.remove(&key);
            self.stays.insert(key, stay);
            self.ends.insert((stay.until, key));
            self.lost += usize::from(stay.store_reset);
        }
    }

    pub fn remove(&mut self, key: &LeaseKey) {
        if let Some(stay) = self.stays.remove(key) {
            self.ends.remove(&(stay.until, *key));
            self.lost -= usize::from(stay.store_reset);
        }
    }

    pub fn contains(&self, key: &LeaseKey) -> bool {
        self.stays.contains_key(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = &LeaseKey> {
        self.stays.keys()
    }

    /// Number of records that a reset store has lost.
    pub fn lost(&self) -> usize {
        self.lost
    }

    /// Lets nobody go before `until`.
    pub fn wait(&mut self, until: Instant) {
        self.patience = self.patience.max(Some(until));
    }

    /// Lets nobody go as long as this is set.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// When somebody is let go next.
    pub fn deadline(&self) -> Option<Instant> {
        let (first, _) = *self.ends.first()?;
        (!self.held).then(|| self.patience.map_or(first, |patience| first.max(patience)))
    }

    /// Takes out those whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<LeaseKey> {
        if self.held || self.patience.is_some_and(|patience| now < patience) {
            return Vec::new();
        }
        let over = self.ends.iter().take_while(|(until, _)| *until <= now);
        let over: Vec<_> = over.map(|(_, key)| *key).collect();
        for key in &over {
            self.remove(key);
        }
        over
    }
}
