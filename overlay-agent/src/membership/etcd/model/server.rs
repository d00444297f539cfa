//! etcd in memory: keys with revisions, leases that run out, a history that is compacted, loss of
//! data.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::super::{
    kv::Kv,
    wire::{Ended, Event, Page, Range, Write},
};
use crate::core::Expect;

/// One write, and when it was made.
#[derive(Clone, Debug)]
pub struct Record {
    pub at: Instant,
    pub event: Event,
    pub before: Option<Kv>,
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    end: Instant,
}

/// The data of a cluster.
#[derive(Clone, Debug)]
pub struct Server {
    pub revision: i64,
    kvs: BTreeMap<Vec<u8>, Kv>,
    leases: BTreeMap<i64, Lease>,
    pub history: Vec<Record>,
    pub compacted: i64,
    next_lease: i64,
    /// Counts the times the data was lost or the servers were restarted: watches end with them.
    pub life: u32,
}

/// The revision asked for is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted;

impl Server {
    pub fn new() -> Self {
        Self {
            revision: 1,
            kvs: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            next_lease: 7000,
            life: 0,
        }
    }

    /// Lets leases run out.
    pub fn advance(&mut self, now: Instant) {
        while let Some(end) = self.next_end().filter(|end| *end <= now) {
            let over = self.leases.iter().find(|(_, lease)| lease.end == end);
            let Some(id) = over.map(|(id, _)| *id) else {
                return;
            };
            self.revoke(end, id);
        }
    }

    /// When the next lease runs out.
    pub fn next_end(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.end).min()
    }

    /// A new leader gives each lease its whole life again.
    pub fn prolong_all(&mut self, now: Instant) {
        for lease in self.leases.values_mut() {
            lease.end = now + lease.ttl;
        }
    }

    pub fn grant(&mut self, now: Instant, ttl: Duration) -> i64 {
        self.next_lease += 1;
        let end = now + ttl;
        self.leases.insert(self.next_lease, Lease { ttl, end });
        self.next_lease
    }

    pub fn revoke(&mut self, now: Instant, id: i64) {
        self.leases.remove(&id);
        let attached = self.kvs.values().filter(|kv| kv.lease == id);
        let keys: Vec<_> = attached.map(|kv| kv.key.clone()).collect();
        if !keys.is_empty() {
            self.revision += 1;
        }
        for key in keys {
            self.remove(now, &key);
        }
    }

    pub fn time_to_live(&self, now: Instant, id: i64) -> Option<Duration> {
        let lease = self.leases.get(&id)?;
        let left = lease.end.saturating_duration_since(now);
        Some(Duration::from_secs(left.as_secs()))
    }

    pub fn get(&self, key: &[u8]) -> Option<&Kv> {
        self.kvs.get(key)
    }

    pub fn kvs(&self) -> impl Iterator<Item = &Kv> {
        self.kvs.values()
    }

    pub fn range(&self, range: &Range, most: usize) -> Result<Page, Compacted> {
        if range.revision != 0 && range.revision < self.compacted {
            return Err(Compacted);
        }
        let at = self.at(range.revision);
        let inside = |key: &[u8]| match range.end.as_slice() {
            [] => key == range.from.as_slice(),
            end => key >= range.from.as_slice() && key < end,
        };
        let mut kvs: Vec<_> = at.into_values().filter(|kv| inside(&kv.key)).collect();
        let more = kvs.len() > most;
        kvs.truncate(most);
        Ok(Page {
            kvs,
            revision: self.revision,
            more,
        })
    }

    /// The keys as they were at a revision.
    fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, Kv> {
        let mut kvs = self.kvs.clone();
        if revision == 0 {
            return kvs;
        }
        let later = |record: &&Record| record.event.kv.mod_revision > revision;
        for record in self.history.iter().rev().take_while(later) {
            match &record.before {
                Some(kv) => kvs.insert(kv.key.clone(), kv.clone()),
                None => kvs.remove(&record.event.kv.key),
            };
        }
        kvs
    }

    pub fn write(&mut self, now: Instant, write: &Write) -> Result<Ended, NoSuchLease> {
        let key = write.key.as_bytes();
        let current = self.kvs.get(key).map(|kv| Expect::Unchanged {
            mod_revision: kv.mod_revision,
            lease_id: Some(kv.lease).filter(|id| *id != 0),
        });
        if current.unwrap_or(Expect::Absent) != write.expect {
            return Ok(Ended {
                done: false,
                revision: self.revision,
                found: self.kvs.get(key).cloned(),
            });
        }
        self.put(now, key, write.value.as_bytes(), write.lease)?;
        Ok(Ended {
            done: true,
            revision: self.revision,
            found: None,
        })
    }

    /// Writes without asking.
    pub fn put(
        &mut self,
        now: Instant,
        key: &[u8],
        value: &[u8],
        lease: Option<i64>,
    ) -> Result<(), NoSuchLease> {
        if lease.is_some_and(|id| !self.leases.contains_key(&id)) {
            return Err(NoSuchLease);
        }
        self.revision += 1;
        let current = self.kvs.get(key);
        let kv = Kv {
            key: key.to_vec(),
            value: value.to_vec(),
            lease: lease.unwrap_or_default(),
            create_revision: current.map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
        };
        let before = self.kvs.insert(kv.key.clone(), kv.clone());
        self.record(now, kv, false, before);
        Ok(())
    }

    pub fn delete(&mut self, now: Instant, key: &[u8], mod_revision: Option<i64>) -> bool {
        let same = self.kvs.get(key).is_some_and(|kv| {
            mod_revision.is_none_or(|mod_revision| kv.mod_revision == mod_revision)
        });
        if same {
            self.revision += 1;
            self.remove(now, key);
        }
        same
    }

    fn remove(&mut self, now: Instant, key: &[u8]) {
        let before = self.kvs.remove(key);
        let kv = Kv {
            key: key.to_vec(),
            value: Vec::new(),
            lease: 0,
            create_revision: 0,
            mod_revision: self.revision,
        };
        self.record(now, kv, true, before);
    }

    fn record(&mut self, at: Instant, kv: Kv, deleted: bool, before: Option<Kv>) {
        let event = Event { kv, deleted };
        self.history.push(Record { at, event, before });
    }

    pub fn compact(&mut self) {
        self.compacted = self.revision;
    }

    /// Goes on with the data of a backup, or with none at all.
    pub fn lose_data(&mut self, now: Instant, backup: Option<&Self>) {
        let (life, next_lease) = (self.life, self.next_lease);
        *self = backup.cloned().unwrap_or_else(Self::new);
        self.life = life + 1;
        self.next_lease = next_lease;
        self.prolong_all(now);
    }
}

/// A key cannot be attached to a lease that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchLease;
