//! A lease store in memory, for unit tests: revisions, leases that run out, compaction, and loss of
//! data.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ipnetwork::Ipv4Network;

use super::record::{Entry, Expect, Put, PutOutcome, RecordState, Snapshot, WatchEvent};
use crate::model::{ConfigText, LeaseAttrs, LeaseKey, ValueError};

/// The state of the store and its history.
#[derive(Debug)]
pub struct MemoryStore {
    pub now: Instant,
    pub revision: i64,
    pub config: Option<ConfigText>,
    records: BTreeMap<LeaseKey, Entry>,
    leases: BTreeMap<i64, Instant>,
    history: Vec<(i64, WatchEvent)>,
    compacted: i64,
    next_lease: i64,
    /// Number of `put` requests that were answered.
    pub puts: usize,
    /// So many times another node writes a free key just before a `put` does.
    pub races: u8,
    /// So many times another node leases a part of the subnet just before a `put` does.
    pub overlaps: u8,
}

fn half(subnet: Ipv4Network) -> Option<Ipv4Network> {
    Ipv4Network::new(subnet.network(), subnet.prefix() + 1).ok()
}

impl MemoryStore {
    pub fn new(now: Instant) -> Self {
        Self {
            now,
            revision: 1,
            config: None,
            records: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            next_lease: 100,
            puts: 0,
            races: 0,
            overlaps: 0,
        }
    }

    /// Lets time pass: leases run out.
    pub fn advance(&mut self, now: Instant) {
        self.now = now;
        let over: Vec<_> = self
            .leases
            .extract_if(.., |_, end| *end <= now)
            .map(|(id, _)| id)
            .collect();
        let keys: Vec<_> = self
            .records
            .values()
            .filter(|entry| entry.lease_id.is_some_and(|id| over.contains(&id)))
            .map(|entry| entry.key)
            .collect();
        for key in keys {
            self.remove(&key);
        }
    }

    /// Writes as an operator or another node does: without asking. `lease` of `None` makes a
    /// reservation.
    pub fn force(&mut self, key: LeaseKey, attrs: LeaseAttrs, lease: Option<Duration>) -> i64 {
        let lease_id = lease.map(|ttl| self.grant(ttl));
        self.write(key, Ok(attrs), lease_id)
    }

    pub fn write(
        &mut self,
        key: LeaseKey,
        value: Result<LeaseAttrs, ValueError>,
        lease_id: Option<i64>,
    ) -> i64 {
        self.revision += 1;
        let known = self.records.get(&key);
        let entry = Entry {
            key,
            value,
            lease_id,
            create_revision: known.map_or(self.revision, |known| known.create_revision),
            mod_revision: self.revision,
        };
        self.records.insert(key, entry.clone());
        self.history.push((self.revision, WatchEvent::Put(entry)));
        self.revision
    }

    pub fn remove(&mut self, key: &LeaseKey) {
        if self.records.remove(key).is_some() {
            self.revision += 1;
            let (key, revision) = (*key, self.revision);
            self.history
                .push((revision, WatchEvent::Delete { key, revision }));
        }
    }

    pub fn set_config(&mut self, text: Option<&str>) {
        self.revision += 1;
        self.config = text.map(|text| ConfigText {
            text: text.to_owned(),
            mod_revision: self.revision,
        });
        let (config, revision) = (self.config.clone(), self.revision);
        self.history
            .push((revision, WatchEvent::Config { config, revision }));
    }

    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Starts over with nothing but the network config.
    pub fn wipe(&mut self) {
        *self = Self {
            next_lease: self.next_lease,
            puts: self.puts,
            config: self.config.take(),
            ..Self::new(self.now)
        };
    }

    pub fn entry(&self, key: &LeaseKey) -> Option<&Entry> {
        self.records.get(key)
    }

    pub fn list(&self) -> Snapshot {
        Snapshot {
            revision: self.revision,
            entries: self.records.values().cloned().collect(),
            config: self.config.clone(),
        }
    }

    pub fn observe(&self, key: &LeaseKey) -> RecordState {
        RecordState {
            revision: self.revision,
            entry: self.records.get(key).cloned(),
        }
    }

    pub fn put(&mut self, put: &Put) -> PutOutcome {
        self.puts += 1;
        if put.expect == Expect::Absent && self.races > 0 {
            let winner = LeaseAttrs::alloc([192, 168, 1, self.races].into());
            self.races -= 1;
            self.force(put.key, winner, put.ttl);
        }
        if put.expect == Expect::Absent
            && self.overlaps > 0
            && let Some(part) = put.key.ipv4().and_then(half)
        {
            let winner = LeaseAttrs::alloc([192, 168, 2, self.overlaps].into());
            self.overlaps -= 1;
            self.force(LeaseKey::V4(part, None), winner, put.ttl);
        }
        let current = self.records.get(&put.key).map(Entry::unchanged);
        if current.unwrap_or(Expect::Absent) != put.expect {
            return PutOutcome::Conflict(self.observe(&put.key));
        }
        let lease_id = put.ttl.map(|ttl| self.grant(ttl));
        PutOutcome::Written {
            mod_revision: self.write(put.key, Ok(put.attrs.clone()), lease_id),
            lease_id,
            ttl: put.ttl,
        }
    }

    pub fn time_to_live(&self, lease_id: i64) -> Option<Duration> {
        let end = self.leases.get(&lease_id)?;
        Some(end.saturating_duration_since(self.now))
    }

    /// What a watch from `revision` on delivers.
    pub fn events(&self, revision: i64) -> Vec<WatchEvent> {
        if revision <= self.compacted {
            let revision = self.compacted;
            return vec![WatchEvent::Compacted { revision }];
        }
        let later = self.history.iter().filter(|(at, _)| *at >= revision);
        later.map(|(_, event)| event.clone()).collect()
    }

    fn grant(&mut self, ttl: Duration) -> i64 {
        self.next_lease += 1;
        self.leases.insert(self.next_lease, self.now + ttl);
        self.next_lease
    }
}
