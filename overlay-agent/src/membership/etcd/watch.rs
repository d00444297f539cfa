//! A watch on the leases and the network config, over one gRPC stream.
//!
//! The position to resume from is taken from the leases' watcher only. Header revisions of a
//! watcher that catches up run ahead of the events it has delivered, so only event revisions and
//! progress notifications count.

use std::{collections::VecDeque, sync::Arc};

use etcd_client::{Error, WatchOptions, WatchResponse, WatchStream};
use futures::{StreamExt, stream, stream::BoxStream};

use super::{
    endpoints::Endpoints,
    error::EtcdError,
    keys::{Keys, config_text},
};
use crate::core::WatchEvent;

const OPERATION: &str = "watch the leases";

/// A watcher that was away long catches up with up to a thousand revisions in one message.
const MESSAGE_LIMIT: usize = 64 << 20;

struct Watch {
    endpoints: Arc<Endpoints>,
    keys: Keys,
    stage: Stage,
    queue: VecDeque<WatchEvent>,
}

struct Stream {
    messages: WatchStream,
    endpoint: usize,
    /// Id of the leases' watcher.
    leases: i64,
}

enum Stage {
    Unopened { revision: i64 },
    Open(Box<Stream>),
    Ended,
}

/// The events from `revision` on. The stream ends after `Compacted` or `Disconnected`.
pub(super) fn open(
    endpoints: Arc<Endpoints>,
    keys: Keys,
    revision: i64,
) -> BoxStream<'static, WatchEvent> {
    let watch = Watch {
        endpoints,
        keys,
        stage: Stage::Unopened { revision },
        queue: VecDeque::new(),
    };
    stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((event, watch))
    })
    .boxed()
}

impl Watch {
    async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            match &mut self.stage {
                Stage::Ended => return None,
                Stage::Unopened { revision } => {
                    let revision = *revision;
                    match self.open(revision).await {
                        Ok(stage) => self.stage = stage,
                        Err(error) => self.end(WatchEvent::Disconnected(error.into())),
                    }
                }
                Stage::Open(stream) => {
                    let (endpoint, leases) = (stream.endpoint, stream.leases);
                    match stream.messages.message().await {
                        Ok(Some(answer)) => self.digest(&answer, endpoint, leases),
                        Ok(None) => self.broke(endpoint, &closed()),
                        Err(error) => self.broke(endpoint, &error),
                    }
                }
            }
        }
    }

    /// Opens the stream, first with the leases' watcher, so that its id is known.
    async fn open(&mut self, revision: i64) -> Result<Stage, EtcdError> {
        let from = WatchOptions::new().with_start_revision(revision);
        let leases = from.clone().with_prefix().with_progress_notify();
        let keys = &self.keys;
        let (endpoint, (messages, created)) = self
            .endpoints
            .call_at(OPERATION, |client| {
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
        if let Some(header) = created.header() {
            let revision = header.revision();
            self.queue.push_back(WatchEvent::Opened { revision });
        }
        self.stage = Stage::Ended;
        self.digest(&created, endpoint, leases);
        Ok(match self.queue.back() {
            Some(WatchEvent::Compacted { .. } | WatchEvent::Disconnected(_)) => Stage::Ended,
            _ => Stage::Open(Box::new(Stream {
                messages,
                endpoint,
                leases,
            })),
        })
    }

    fn digest(&mut self, answer: &WatchResponse, endpoint: usize, leases: i64) {
        if answer.compact_revision() != 0 {
            return self.end(WatchEvent::Compacted {
                revision: answer.compact_revision(),
            });
        }
        if answer.canceled() {
            let reason = Error::WatchError(answer.cancel_reason().to_owned());
            return self.broke(endpoint, &reason);
        }
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            // `event_type()` panics on a type it does not know.
            let deleted = kv.version() == 0;
            let revision = kv.mod_revision();
            if kv.key() == self.keys.config.as_bytes() {
                let config = (!deleted).then(|| config_text(kv));
                self.queue
                    .push_back(WatchEvent::Config { config, revision });
            } else if deleted {
                let key = self.keys.parse(kv);
                self.queue
                    .extend(key.map(|key| WatchEvent::Delete { key, revision }));
            } else {
                self.queue.extend(self.keys.entry(kv).map(WatchEvent::Put));
            }
        }
        if answer.watch_id() == leases
            && !answer.created()
            && answer.events().is_empty()
            && let Some(header) = answer.header()
        {
            let revision = header.revision();
            self.queue.push_back(WatchEvent::Progress { revision });
        }
    }

    fn broke(&mut self, endpoint: usize, error: &Error) {
        let error = self.endpoints.stream_broke(endpoint, OPERATION, error);
        self.end(WatchEvent::Disconnected(error.into()));
    }

    fn end(&mut self, event: WatchEvent) {
        self.stage = Stage::Ended;
        self.queue.push_back(event);
    }
}

fn closed() -> Error {
    Error::WatchError("closed by etcd".to_owned())
}
