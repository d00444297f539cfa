//! The requests as `etcd-client` makes them, on the endpoint in use or the next one.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_client::{
    Compare, CompareOp, Error, GetOptions, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp,
    TxnOpResponse, WatchOptions, WatchResponse, WatchStream,
};
use futures::{StreamExt, stream, stream::BoxStream};

use super::{
    clock,
    endpoints::Endpoints,
    error::EtcdError,
    keys::Keys,
    kv::Kv,
    old_api, options,
    wire::{Ended, Event, Failed, Message, Page, Range, Wire, Write},
};
use crate::core::Expect;

const WATCH: &str = "watch the leases";

/// etcd grants none for longer, in seconds. It can be added to any time.
const LONGEST_LIFE: u64 = 9_000_000_000;

/// A watcher that was away long catches up with up to a thousand revisions in one message.
const MESSAGE_LIMIT: usize = 64 << 20;

impl Wire for Endpoints {
    async fn range(&self, operation: &'static str, range: Range) -> Result<Page, EtcdError> {
        let page = self
            .call(operation, |mut client| {
                let mut options = GetOptions::new()
                    .with_revision(range.revision)
                    .with_min_mod_revision(range.after.saturating_add(1))
                    .with_limit(range.limit);
                if !range.end.is_empty() {
                    options = options.with_range(range.end.clone());
                }
                let from = range.from.clone();
                async move {
                    let mut answer = client.get(from, Some(options)).await?;
                    let kvs = answer.take_kvs();
                    Ok(Page {
                        revision: revision_of(answer.header())?,
                        more: answer.more(),
                        kvs: kvs.into_iter().map(Kv::from).collect(),
                    })
                }
            })
            .await?;
        self.metrics.answered(page.revision);
        Ok(page)
    }

    async fn grant(&self, ttl: Duration) -> Result<(i64, Duration), EtcdError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        self.call("grant a lease", |mut client| async move {
            let grant = client.lease_grant(seconds, None).await?;
            Ok((grant.id(), life(grant.ttl()).unwrap_or_default()))
        })
        .await
    }

    async fn revoke(&self, id: i64) -> Result<(), EtcdError> {
        self.call("revoke a lease", |mut client| async move {
            client.lease_revoke(id).await.map(drop)
        })
        .await
    }

    async fn time_to_live(&self, id: i64) -> Result<Option<Duration>, EtcdError> {
        let answer = self
            .call("read the lease's remaining time", |mut client| async move {
                client.lease_time_to_live(id, None).await
            })
            .await?;
        Ok(life(answer.ttl()))
    }

    async fn write(&self, write: Write) -> Result<Ended, Failed> {
        let key = write.key;
        let equal = CompareOp::Equal;
        let unchanged = match write.expect {
            Expect::Absent => vec![Compare::version(key.clone(), equal, 0)],
            Expect::Unchanged {
                mod_revision,
                lease_id,
            } => vec![
                Compare::mod_revision(key.clone(), equal, mod_revision),
                Compare::lease(key.clone(), equal, lease_id.unwrap_or_default()),
            ],
        };
        let options = write.lease.map(|id| PutOptions::new().with_lease(id));
        let txn = Txn::new()
            .when(unchanged)
            .and_then([TxnOp::put(key.clone(), write.value, options)])
            .or_else([TxnOp::get(key, None)]);
        txn_of(self, "write the lease", txn).await
    }

    async fn delete(&self, key: String, mod_revision: i64) -> Result<bool, EtcdError> {
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, mod_revision);
        let txn = Txn::new()
            .when([unchanged])
            .and_then([TxnOp::delete(key, None)]);
        Ok(txn_of(self, "delete a lease", txn).await?.done)
    }

    fn watch(
        wire: Arc<Self>,
        keys: Keys,
        revision: i64,
    ) -> BoxStream<'static, Result<Message, EtcdError>> {
        let watch = Watch {
            endpoints: wire,
            keys,
            stage: Stage::Unopened { revision },
        };
        stream::unfold(watch, |mut watch| async move {
            let message = watch.next().await?;
            Some((message, watch))
        })
        .boxed()
    }

    async fn old_value(&self, key: &str) -> Option<String> {
        old_api::value(self.options(), key).await
    }

    async fn clock(&self) -> Option<SystemTime> {
        clock::now(self.options()).await
    }

    fn urls(&self) -> String {
        Endpoints::urls(self)
    }

    fn etcdctl(&self) -> String {
        options::etcdctl(self.options(), &Endpoints::urls(self))
    }
}

async fn txn_of(endpoints: &Endpoints, operation: &'static str, txn: Txn) -> Result<Ended, Failed> {
    let (_, end) = endpoints
        .call_at(operation, |mut client| {
            let txn = txn.clone();
            async move {
                let answer = client.txn(txn).await?;
                let revision = revision_of(answer.header())?;
                let found = answer.op_responses().into_iter().find_map(|op| match op {
                    TxnOpResponse::Get(get) => get.kvs().first().cloned(),
                    _ => None,
                });
                Ok(Ended {
                    done: answer.succeeded(),
                    revision,
                    found: found.map(Kv::from),
                })
            }
        })
        .await?;
    endpoints.metrics.answered(end.revision);
    Ok(end)
}

/// A watch on the leases and the network config, over one gRPC stream.
struct Watch {
    endpoints: Arc<Endpoints>,
    keys: Keys,
    stage: Stage,
}

enum Stage {
    Unopened {
        revision: i64,
    },
    Open {
        messages: Box<WatchStream>,
        endpoint: usize,
        /// Id of the leases' watcher.
        leases: i64,
    },
    Ended,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Message, EtcdError>> {
        let message = match &mut self.stage {
            Stage::Ended => return None,
            Stage::Unopened { revision } => {
                let revision = *revision;
                self.open(revision).await
            }
            Stage::Open {
                messages,
                endpoint,
                leases,
            } => {
                let message = match messages.message().await {
                    Ok(Some(answer)) => digest(&answer, *leases),
                    Ok(None) => Err(closed()),
                    Err(error) => Err(error),
                };
                message.map_err(|error| self.endpoints.stream_broke(*endpoint, WATCH, &error))
            }
        };
        match &message {
            Ok(message) => self.endpoints.metrics.watched(message.revision),
            Err(_) => self.stage = Stage::Ended,
        }
        Some(message)
    }

    /// Opens the stream, first with the leases' watcher, so that its id is known.
    async fn open(&mut self, revision: i64) -> Result<Message, EtcdError> {
        let from = WatchOptions::new().with_start_revision(revision);
        let leases = from.clone().with_prefix().with_progress_notify();
        let keys = &self.keys;
        let (endpoint, (messages, created)) = self
            .endpoints
            .call_at(WATCH, |client| {
                let (leases, from) = (leases.clone(), from.clone());
                async move {
                    let mut client = client
                        .watch_client()
                        .max_decoding_message_size(MESSAGE_LIMIT);
                    let mut stream = client.watch(keys.subnets.as_str(), Some(leases)).await?;
                    let Some(created) = stream.message().await? else {
                        return Err(closed());
                    };
                    stream.watch(keys.config.as_str(), Some(from)).await?;
                    Ok((stream, created))
                }
            })
            .await?;
        let leases = created.watch_id();
        self.stage = Stage::Open {
            messages: Box::new(messages),
            endpoint,
            leases,
        };
        digest(&created, leases)
            .map_err(|error| self.endpoints.stream_broke(endpoint, WATCH, &error))
    }
}

/// What a message says; an error if it ends the watch for no reason of the history.
fn digest(answer: &WatchResponse, leases: i64) -> Result<Message, Error> {
    let compacted = Some(answer.compact_revision()).filter(|revision| *revision != 0);
    if answer.canceled() && compacted.is_none() {
        return Err(Error::WatchError(answer.cancel_reason().to_owned()));
    }
    let events = answer.events().iter().filter_map(|event| {
        let kv = event.kv()?.clone();
        // `event_type()` panics on a type it does not know.
        let deleted = kv.version() == 0;
        let kv = kv.into();
        Some(Event { kv, deleted })
    });
    Ok(Message {
        revision: answer.header().map(ResponseHeader::revision),
        of_leases: answer.watch_id() == leases,
        created: answer.created(),
        compacted,
        events: events.collect(),
    })
}

impl From<KeyValue> for Kv {
    fn from(kv: KeyValue) -> Self {
        let (lease, mod_revision) = (kv.lease(), kv.mod_revision());
        let create_revision = kv.create_revision();
        let (key, value) = kv.into_key_value();
        Self {
            key,
            value,
            lease,
            create_revision,
            mod_revision,
        }
    }
}

fn revision_of(header: Option<&ResponseHeader>) -> Result<i64, Error> {
    let header = header.ok_or_else(|| Error::Internal("answer without a header".to_owned()))?;
    Ok(header.revision())
}

/// What is left of a lease's life, in seconds; -1 where there is no such lease.
fn life(seconds: i64) -> Option<Duration> {
    let seconds = u64::try_from(seconds).ok()?;
    Some(Duration::from_secs(seconds.min(LONGEST_LIFE)))
}

fn closed() -> Error {
    Error::WatchError("closed by etcd".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn whatever_etcd_answers_a_lease_ends_at_a_time_that_there_is() {
        assert_eq!(life(-1), None);
        assert_eq!(life(86_400), Some(Duration::from_hours(24)));
        let longest = life(i64::MAX).expect("a lease");
        assert!(Instant::now().checked_add(longest).is_some());
    }
}
