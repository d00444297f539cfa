//! The lease store in etcd, API v3, with flannel's keys.
//!
//! `<prefix>/config` is the network config, `<prefix>/subnets/<key>` the leases, each attached to
//! an etcd lease of its own unless it is a reservation. No keep-alive stream: a renewal puts the
//! key again under a fresh etcd lease, as flannel does, and the old one runs out.

use std::{sync::Arc, time::Duration};

use etcd_client::{
    Compare, CompareOp, Error, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use futures::stream::BoxStream;
use tracing::debug;

use super::{
    endpoints::{Deadlines, Endpoints, Failed},
    error::EtcdError,
    keys::{Keys, config_text},
    lease_store::LeaseStore,
    watch,
};
use crate::{
    config::options::EtcdOptions,
    core::{Expect, Put, PutOutcome, RecordState, Snapshot, WatchEvent},
    model::{ConfigText, LeaseKey},
};

/// Keys per answer when listing: an answer of 4 MiB is refused by gRPC, and a lease takes about
/// 200 bytes.
const PAGE: i64 = 2000;

/// How often a listing starts over because its revision was compacted between two pages.
const LIST_TRIES: usize = 3;

/// Leases and network config in etcd.
pub struct EtcdStore {
    endpoints: Arc<Endpoints>,
    keys: Keys,
}

impl EtcdStore {
    /// Checks the options, files included. Does not connect.
    pub fn new(options: EtcdOptions, deadlines: Deadlines) -> Result<Self, EtcdError> {
        let keys = Keys::of(&options);
        Ok(Self {
            endpoints: Arc::new(Endpoints::new(options, deadlines)?),
            keys,
        })
    }

    async fn grant(&self, ttl: Duration) -> Result<(i64, Duration), EtcdError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        self.endpoints
            .call("grant a lease", |mut client| async move {
                let grant = client.lease_grant(seconds, None).await?;
                let granted = u64::try_from(grant.ttl()).unwrap_or_default();
                Ok((grant.id(), Duration::from_secs(granted)))
            })
            .await
    }

    /// Gives back a lease no key was attached to. A failure costs nothing but the lease's memory
    /// until it runs out.
    async fn revoke(&self, id: i64) {
        let revoked = self
            .endpoints
            .call("revoke a lease", |mut client| async move {
                client.lease_revoke(id).await
            })
            .await;
        if let Err(error) = revoked {
            debug!(lease = id, %error, "unused lease not revoked");
        }
    }

    async fn try_list(&self) -> Result<Option<Snapshot>, EtcdError> {
        let mut snapshot = Snapshot::default();
        let mut from = self.keys.subnets.clone().into_bytes();
        let end = prefix_end(&self.keys.subnets);
        loop {
            let page = self.page(from, end.clone(), snapshot.revision).await;
            let (keys, revision, more) = match page {
                Ok(page) => page,
                Err(error) if is_compacted(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            if snapshot.revision == 0 {
                snapshot.revision = revision;
            }
            snapshot
                .entries
                .extend(keys.iter().filter_map(|kv| self.keys.entry(kv)));
            match keys.last() {
                Some(last) if more => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => break,
            }
        }
        match self.config_at(snapshot.revision).await {
            Ok(config) => snapshot.config = config,
            Err(error) if is_compacted(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(snapshot))
    }

    /// The network config as it was at a revision (0: as it is).
    async fn config_at(&self, revision: i64) -> Result<Option<ConfigText>, EtcdError> {
        self.endpoints
            .call("read the network config", |mut client| {
                let key = self.keys.config.clone();
                let options = GetOptions::new().with_revision(revision);
                async move {
                    let answer = client.get(key, Some(options)).await?;
                    Ok(answer.kvs().first().map(config_text))
                }
            })
            .await
    }

    /// Keys of `[from, end)` at a revision (0: the latest), the revision, and if there are more.
    async fn page(
        &self,
        from: Vec<u8>,
        end: Vec<u8>,
        revision: i64,
    ) -> Result<(Vec<KeyValue>, i64, bool), EtcdError> {
        self.endpoints
            .call("list leases", |mut client| {
                let options = GetOptions::new()
                    .with_range(end.clone())
                    .with_revision(revision)
                    .with_limit(PAGE);
                let from = from.clone();
                async move {
                    let mut answer = client.get(from, Some(options)).await?;
                    let revision = revision_of(answer.header())?;
                    Ok((answer.take_kvs(), revision, answer.more()))
                }
            })
            .await
    }

    async fn write(&self, put: &Put, lease: Option<i64>) -> Result<TxnEnd, Failed> {
        let key = self.keys.lease(&put.key);
        let value = put.attrs.encode();
        let equal = CompareOp::Equal;
        let unchanged = match put.expect {
            Expect::Absent => vec![Compare::version(key.clone(), equal, 0)],
            Expect::Unchanged {
                mod_revision,
                lease_id,
            } => vec![
                Compare::mod_revision(key.clone(), equal, mod_revision),
                Compare::lease(key.clone(), equal, lease_id.unwrap_or_default()),
            ],
        };
        let options = lease.map(|id| PutOptions::new().with_lease(id));
        let txn = Txn::new()
            .when(unchanged)
            .and_then([TxnOp::put(key.clone(), value, options)])
            .or_else([TxnOp::get(key, None)]);
        self.txn("write the lease", txn).await
    }

    async fn txn(&self, operation: &'static str, txn: Txn) -> Result<TxnEnd, Failed> {
        let (_, end) = self
            .endpoints
            .call_at(operation, |mut client| {
                let txn = txn.clone();
                async move {
                    let answer = client.txn(txn).await?;
                    let revision = revision_of(answer.header())?;
                    let found = answer.op_responses().into_iter().find_map(|op| match op {
                        TxnOpResponse::Get(get) => get.kvs().first().cloned(),
                        _ => None,
                    });
                    Ok(TxnEnd {
                        done: answer.succeeded(),
                        revision,
                        found,
                    })
                }
            })
            .await?;
        Ok(end)
    }
}

/// How a transaction ended.
struct TxnEnd {
    done: bool,
    revision: i64,
    /// The key as it was, when it was not as expected.
    found: Option<KeyValue>,
}

impl LeaseStore for EtcdStore {
    async fn config(&self) -> Result<Option<ConfigText>, EtcdError> {
        self.config_at(0).await
    }

    async fn list(&self) -> Result<Snapshot, EtcdError> {
        for _ in 0..LIST_TRIES {
            if let Some(snapshot) = self.try_list().await? {
                return Ok(snapshot);
            }
        }
        Err(EtcdError::Rejected {
            operation: "list leases",
            reason: "the history is compacted faster than the list can be read".to_owned(),
        })
    }

    async fn get(&self, key: &LeaseKey) -> Result<RecordState, EtcdError> {
        self.endpoints
            .call("read the own lease", |mut client| {
                let key = self.keys.lease(key);
                async move {
                    let answer = client.get(key, None).await?;
                    Ok(RecordState {
                        revision: revision_of(answer.header())?,
                        entry: answer.kvs().first().and_then(|kv| self.keys.entry(kv)),
                    })
                }
            })
            .await
    }

    async fn put(&self, put: &Put) -> Result<PutOutcome, EtcdError> {
        let grant = match put.ttl {
            Some(ttl) => Some(self.grant(ttl).await?),
            None => None,
        };
        let (lease_id, ttl) = grant.unzip();
        let end = match self.write(put, lease_id).await {
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
        let earlier = earlier.filter(|kv| Some(kv.lease()) == lease_id);
        if end.done || earlier.is_some() {
            return Ok(PutOutcome::Written {
                mod_revision: earlier.map_or(end.revision, KeyValue::mod_revision),
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
        let key = self.keys.lease(key);
        let txn = Txn::new()
            .when([Compare::mod_revision(
                key.clone(),
                CompareOp::Equal,
                mod_revision,
            )])
            .and_then([TxnOp::delete(key, None)]);
        Ok(self.txn("delete a lease", txn).await?.done)
    }

    async fn time_to_live(&self, lease_id: i64) -> Result<Option<Duration>, EtcdError> {
        let answer = self
            .endpoints
            .call("read the lease's remaining time", |mut client| async move {
                client.lease_time_to_live(lease_id, None).await
            })
            .await?;
        // -1: no such lease.
        Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs))
    }

    fn watch(&self, revision: i64) -> BoxStream<'static, WatchEvent> {
        watch::open(self.endpoints.clone(), self.keys.clone(), revision)
    }

    fn config_place(&self) -> String {
        format!(
            "{} with the etcd v3 API at {}",
            self.keys.config,
            self.endpoints.urls()
        )
    }

    fn config_hint(&self) -> String {
        format!(
            r#"ETCDCTL_API=3 etcdctl put {} '{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"}}}}'"#,
            self.keys.config
        )
    }
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Result<i64, Error> {
    let header = header.ok_or_else(|| Error::Internal("answer without a header".to_owned()))?;
    Ok(header.revision())
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
