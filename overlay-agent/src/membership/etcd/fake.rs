//! etcd as unit tests have it: a store in memory, with a switch that takes it away.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::{StreamExt, stream, stream::BoxStream};
use tokio::sync::watch;

use super::{error::EtcdError, lease_store::LeaseStore};
use crate::{
    core::{Entry, Put, PutOutcome, RecordState, Snapshot, WatchEvent, fake::MemoryStore},
    model::{ConfigText, LeaseKey},
};

/// A [`LeaseStore`] on a [`MemoryStore`].
#[derive(Clone)]
pub struct FakeStore {
    state: Arc<Mutex<MemoryStore>>,
    /// Counts changes, so that watches wake; odd while the store is away.
    changes: Arc<watch::Sender<u64>>,
}

impl FakeStore {
    pub fn new() -> Self {
        let now = tokio::time::Instant::now().into_std();
        Self {
            state: Arc::new(Mutex::new(MemoryStore::new(now))),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Changes the state and wakes the watches.
    pub fn with<T>(&self, change: impl FnOnce(&mut MemoryStore) -> T) -> T {
        let result = change(&mut self.lock());
        self.changes.send_modify(|count| *count += 2);
        result
    }

    /// Takes the store away, or brings it back.
    pub fn set_away(&self, away: bool) {
        self.changes
            .send_modify(|count| *count = (*count & !1) + 2 + u64::from(away));
    }

    fn lock(&self) -> MutexGuard<'_, MemoryStore> {
        let mut state = self.state.lock().unwrap();
        state.advance(tokio::time::Instant::now().into_std());
        state
    }

    fn answer<T>(&self, request: impl FnOnce(&mut MemoryStore) -> T) -> Result<T, EtcdError> {
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

fn away() -> EtcdError {
    EtcdError::Unreachable {
        failures: "switched off".to_owned(),
    }
}

impl LeaseStore for FakeStore {
    async fn config(&self) -> Result<Option<ConfigText>, EtcdError> {
        self.answer(|state| state.config.clone())
    }

    async fn list(&self) -> Result<Snapshot, EtcdError> {
        self.answer(|state| state.list())
    }

    async fn list_after(&self, revision: i64) -> Result<Vec<Entry>, EtcdError> {
        let mut entries = self.list().await?.entries;
        entries.retain(|entry| entry.mod_revision > revision);
        Ok(entries)
    }

    async fn get(&self, key: &LeaseKey) -> Result<RecordState, EtcdError> {
        self.answer(|state| state.observe(key))
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, EtcdError> {
        self.answer(|state| state.put(put))
    }

    async fn delete(&self, key: &LeaseKey, mod_revision: i64) -> Result<bool, EtcdError> {
        self.answer(|state| {
            let same = state.entry(key).map(|entry| entry.mod_revision) == Some(mod_revision);
            if same {
                state.remove(key);
            }
            same
        })
    }

    async fn time_to_live(&self, lease_id: i64) -> Result<Option<Duration>, EtcdError> {
        self.answer(|state| state.time_to_live(lease_id))
    }

    fn watch(&self, revision: i64) -> BoxStream<'static, WatchEvent> {
        let store = self.clone();
        let changes = self.changes.subscribe();
        let opened = self.answer(|state| state.revision);
        let first = match opened {
            Ok(revision) => WatchEvent::Opened { revision },
            Err(error) => WatchEvent::Disconnected(error.into()),
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
                        Err(error) => queue.push(WatchEvent::Disconnected(error.into())),
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

    async fn config_remedy(&self) -> String {
        "create it with: put /test/config".to_owned()
    }
}
