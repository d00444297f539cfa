//! The lease store in etcd, API v3, with flannel's keys.
//!
//! `<prefix>/config` is the network config, `<prefix>/subnets/<key>` the leases, each attached to
//! an etcd lease of its own unless it is a reservation. No keep-alive stream: a renewal puts the
//! key again under a fresh etcd lease, as flannel does, and the old one runs out.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::stream::BoxStream;
use tracing::debug;

use super::{
    endpoints::{Deadlines, Endpoints},
    error::EtcdError,
    keys::{Keys, config_text},
    lease_store::LeaseStore,
    old_api, watch,
    wire::{Range, Wire, Write},
};
use crate::{
    config::options::EtcdOptions,
    core::{Entry, Put, PutOutcome, RecordState, Snapshot, WatchEvent},
    metrics,
    model::{ConfigText, LeaseKey},
};

/// Keys per answer when listing: an answer of 4 MiB is refused by gRPC, and a lease takes about
/// 200 bytes.
const PAGE: i64 = 2000;

/// How often a listing starts over because its revision was compacted between two pages.
const LIST_TRIES: usize = 3;

/// Leases and network config in etcd.
pub struct EtcdStore<W = Endpoints> {
    wire: Arc<W>,
    keys: Keys,
}

impl EtcdStore {
    /// Checks the options, files included. Does not connect.
    pub fn new(
        options: EtcdOptions,
        deadlines: Deadlines,
        metrics: metrics::Store,
    ) -> Result<Self, EtcdError> {
        let keys = Keys::of(&options);
        Ok(Self::on(Endpoints::new(options, deadlines, metrics)?, keys))
    }
}

impl<W: Wire> EtcdStore<W> {
    pub(super) fn on(wire: W, keys: Keys) -> Self {
        Self {
            wire: Arc::new(wire),
            keys,
        }
    }

    /// Gives back a lease no key was attached to. A failure costs nothing but the lease's memory
    /// until it runs out.
    async fn revoke(&self, id: i64) {
        if let Err(error) = self.wire.revoke(id).await {
            debug!(lease = id, %error, "unused lease not revoked");
        }
    }

    /// All records, and the network config, at one revision; `None` if that is compacted meanwhile.
    async fn try_list(&self) -> Result<Option<Snapshot>, EtcdError> {
        let Some((revision, entries)) = self.entries(0).await? else {
            return Ok(None);
        };
        let config = match self.config_at(revision).await {
            Ok(config) => config,
            Err(error) if is_compacted(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Snapshot {
            revision,
            entries,
            config,
        }))
    }

    /// The records written after a revision, at one revision; `None` if that is compacted meanwhile.
    async fn entries(&self, after: i64) -> Result<Option<(i64, Vec<Entry>)>, EtcdError> {
        let (mut revision, mut entries) = (0, Vec::new());
        let mut from = self.keys.subnets.clone().into_bytes();
        loop {
            let range = Range {
                from,
                end: prefix_end(&self.keys.subnets),
                revision,
                after,
                limit: PAGE,
            };
            let page = match self.wire.range("list leases", range).await {
                Ok(page) => page,
                Err(error) if is_compacted(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            if revision == 0 {
                revision = page.revision;
            }
            entries.extend(page.kvs.iter().filter_map(|kv| self.keys.entry(kv)));
            match page.kvs.into_iter().next_back() {
                Some(last) if page.more => {
                    from = last.key;
                    from.push(0);
                }
                _ => return Ok(Some((revision, entries))),
            }
        }
    }

    /// The network config as it was at a revision (0: as it is).
    async fn config_at(&self, revision: i64) -> Result<Option<ConfigText>, EtcdError> {
        let key = self.keys.config.clone().into_bytes();
        let answer = self
            .wire
            .range("read the network config", one(key, revision))
            .await?;
        Ok(answer.kvs.first().map(config_text))
    }
}

impl<W: Wire> LeaseStore for EtcdStore<W> {
    async fn config(&self) -> Result<Option<ConfigText>, EtcdError> {
        self.config_at(0).await
    }

    async fn list(&self) -> Result<Snapshot, EtcdError> {
        for _ in 0..LIST_TRIES {
            if let Some(snapshot) = self.try_list().await? {
                return Ok(snapshot);
            }
        }
        Err(compacted_too_fast())
    }

    async fn list_after(&self, revision: i64) -> Result<Vec<Entry>, EtcdError> {
        for _ in 0..LIST_TRIES {
            if let Some((_, entries)) = self.entries(revision).await? {
                return Ok(entries);
            }
        }
        Err(compacted_too_fast())
    }

    async fn get(&self, key: &LeaseKey) -> Result<RecordState, EtcdError> {
        let key = self.keys.lease(key).into_bytes();
        let answer = self.wire.range("read the own lease", one(key, 0)).await?;
        Ok(RecordState {
            revision: answer.revision,
            entry: answer.kvs.first().and_then(|kv| self.keys.entry(kv)),
        })
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, EtcdError> {
        let grant = match put.ttl {
            Some(ttl) => Some(self.wire.grant(ttl).await?),
            None => None,
        };
        let (lease_id, ttl) = grant.unzip();
        let write = Write {
            key: self.keys.lease(&put.key),
            value: put.attrs.encode(),
            lease: lease_id,
            expect: put.expect,
        };
        let end = match self.wire.write(write).await {
            Ok(end) => end,
            Err(failed) => {
                // A write in doubt may have attached the key, which would go with the lease.
                if let Some(id) = lease_id
                    && !failed.in_doubt
                {
                    self.revoke(id).await;
                }
                return Err(failed.error);
            }
        };
        // Attached to this very lease: carried out by an endpoint whose answer did not arrive.
        let earlier = end.found.as_ref().filter(|_| lease_id.is_some());
        let earlier = earlier.filter(|kv| Some(kv.lease) == lease_id);
        if end.done || earlier.is_some() {
            return Ok(PutOutcome::Written {
                mod_revision: earlier.map_or(end.revision, |kv| kv.mod_revision),
                lease_id,
                ttl,
            });
        }
        if let Some(id) = lease_id {
            self.revoke(id).await;
        }
        Ok(PutOutcome::Conflict(RecordState {
            revision: end.revision,
            entry: end.found.and_then(|kv| self.keys.entry(&kv)),
        }))
    }

    async fn delete(&self, key: &LeaseKey, mod_revision: i64) -> Result<bool, EtcdError> {
        self.wire.delete(self.keys.lease(key), mod_revision).await
    }

    async fn time_to_live(&self, lease_id: i64) -> Result<Option<Duration>, EtcdError> {
        self.wire.time_to_live(lease_id).await
    }

    fn watch(&self, revision: i64) -> BoxStream<'static, WatchEvent> {
        watch::open(self.wire.clone(), self.keys.clone(), revision)
    }

    fn config_place(&self) -> String {
        format!(
            "{} with the etcd v3 API at {}",
            self.keys.config,
            self.wire.urls()
        )
    }

    async fn config_remedy(&self) -> String {
        let key = &self.keys.config;
        let old = self.wire.old_value(key).await;
        old_api::remedy(&self.wire.etcdctl(), key, old.as_deref())
    }

    async fn clock(&self) -> Option<SystemTime> {
        self.wire.clock().await
    }
}

/// One key at a revision (0: the latest).
fn one(key: Vec<u8>, revision: i64) -> Range {
    Range {
        from: key,
        end: Vec::new(),
        revision,
        after: 0,
        limit: 0,
    }
}

fn compacted_too_fast() -> EtcdError {
    EtcdError::Rejected {
        operation: "list leases",
        reason: "the history is compacted faster than the list can be read".to_owned(),
    }
}

/// Whether the revision asked for is gone.
fn is_compacted(error: &EtcdError) -> bool {
    matches!(error, EtcdError::Rejected { reason, .. } if reason.contains("compacted"))
}

/// The first key after all keys with this prefix, which ends with a slash.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
