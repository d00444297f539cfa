//! A lease store in memory, for unit tests: revisions, leases that run out, compaction, loss of
//! data, and a switch that takes it away.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream, stream::BoxStream};
use ipnetwork::Ipv4Network;
use tokio::sync::watch;

use super::{
    key::LeaseKey,
    store::{
        ConfigText, Entry, Expect, LeaseStore, Observed, Put, PutOutcome, Snapshot, StoreError,
        WatchEvent,
    },
    value::LeaseAttrs,
};

/// The state of the store and its history.
#[derive(Debug)]
pub struct State {
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

impl State {
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
        value: Result<LeaseAttrs, super::value::ValueError>,
        lease_id: Option<i64>,
    ) -> i64 {
        self.revision += 1;
        let entry = Entry {
            key,
            value,
            lease_id,
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
        let event = WatchEvent::Config(self.config.clone());
        self.history.push((self.revision, event));
    }

    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Starts over with nothing.
    pub fn wipe(&mut self) {
        *self = Self {
            next_lease: self.next_lease,
            puts: self.puts,
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
        }
    }

    pub fn observe(&self, key: &LeaseKey) -> Observed {
        Observed {
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

/// A [`LeaseStore`] on a [`State`].
#[derive(Clone)]
pub struct FakeStore {
    state: Arc<Mutex<State>>,
    /// Counts changes, so that watches wake; odd while the store is away.
    changes: Arc<watch::Sender<u64>>,
}

impl FakeStore {
    pub fn new() -> Self {
        let now = tokio::time::Instant::now().into_std();
        Self {
            state: Arc::new(Mutex::new(State::new(now))),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Changes the state and wakes the watches.
    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changes.send_modify(|count| *count += 2);
        result
    }

    /// Takes the store away, or brings it back.
    pub fn set_away(&self, away: bool) {
        self.changes
            .send_modify(|count| *count = (*count & !1) + 2 + u64::from(away));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.advance(tokio::time::Instant::now().into_std());
        state
    }

    fn answer<T>(&self, request: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        if *self.changes.borrow() & 1 == 1 {
            return Err(away());
        }
        let mut state = self.lock();
        let before = state.revision;
        let answer = request(&mut state);
        if state.revision != before {
            self.changes.send_modify(|count| *count += 2);
        }
        Ok(answer)
    }
}

pub fn away() -> StoreError {
    StoreError::Unreachable {
        failures: "switched off".to_owned(),
    }
}

impl LeaseStore for FakeStore {
    async fn config(&self) -> Result<Option<ConfigText>, StoreError> {
        self.answer(|state| state.config.clone())
    }

    async fn list(&self) -> Result<Snapshot, StoreError> {
        self.answer(|state| state.list())
    }

    async fn get(&self, key: &LeaseKey) -> Result<Observed, StoreError> {
        self.answer(|state| state.observe(key))
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, StoreError> {
        self.answer(|state| state.put(put))
    }

    async fn delete(&self, key: &LeaseKey, mod_revision: i64) -> Result<bool, StoreError> {
        self.answer(|state| {
            let same = state.entry(key).map(|entry| entry.mod_revision) == Some(mod_revision);
            if same {
                state.remove(key);
            }
            same
        })
    }

    async fn time_to_live(&self, lease_id: i64) -> Result<Option<Duration>, StoreError> {
        self.answer(|state| state.time_to_live(lease_id))
    }

    fn watch(&self, revision: i64) -> BoxStream<'static, WatchEvent> {
        let store = self.clone();
        let changes = self.changes.subscribe();
        let opened = self.answer(|state| state.revision);
        let first = match opened {
            Ok(revision) => WatchEvent::Opened { revision },
            Err(error) => WatchEvent::Disconnected(error),
        };
        let seed = (store, changes, revision, vec![first]);
        stream::unfold(
            seed,
            |(store, mut changes, mut from, mut queue)| async move {
                while queue.is_empty() {
                    changes.changed().await.ok()?;
                    match store.answer(|state| (state.events(from), state.revision)) {
                        Ok((events, revision)) => {
                            queue = events;
                            from = revision + 1;
                        }
                        Err(error) => queue.push(WatchEvent::Disconnected(error)),
                    }
                }
                let event = queue.remove(0);
                if matches!(event, WatchEvent::Opened { .. }) {
                    changes.mark_changed();
                }
                Some((event, (store, changes, from, queue)))
            },
        )
        .boxed()
    }

    fn config_place(&self) -> String {
        "/test/config of the fake store".to_owned()
    }

    fn config_hint(&self) -> String {
        "put /test/config".to_owned()
    }
}
