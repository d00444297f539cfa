//! A watch on the leases and the network config, as the state machine is told of it.
//!
//! The position to resume from is taken from the leases' watcher only. Header revisions of a
//! watcher that catches up run ahead of the events it has delivered, so only event revisions and
//! progress notifications count.

use std::{collections::VecDeque, sync::Arc};

use futures::{StreamExt, stream, stream::BoxStream};

use super::{
    error::EtcdError,
    keys::{Keys, config_text},
    wire::{Message, Wire},
};
use crate::core::WatchEvent;

struct Watch {
    /// `None` once it has ended.
    messages: Option<BoxStream<'static, Result<Message, EtcdError>>>,
    keys: Keys,
    queue: VecDeque<WatchEvent>,
}

/// The events from `revision` on. The stream ends after `Compacted` or `Disconnected`.
pub(super) fn open<W: Wire>(
    wire: Arc<W>,
    keys: Keys,
    revision: i64,
) -> BoxStream<'static, WatchEvent> {
    let watch = Watch {
        messages: Some(W::watch(wire, keys.clone(), revision)),
        keys,
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
        while self.queue.is_empty() {
            match self.messages.as_mut()?.next().await {
                Some(Ok(message)) => self.digest(message),
                Some(Err(error)) => self.end(WatchEvent::Disconnected(error.into())),
                None => self.messages = None,
            }
        }
        self.queue.pop_front()
    }

    fn digest(&mut self, message: Message) {
        if message.created
            && message.of_leases
            && let Some(revision) = message.revision
        {
            self.queue.push_back(WatchEvent::Opened { revision });
        }
        if let Some(revision) = message.compacted {
            return self.end(WatchEvent::Compacted { revision });
        }
        if message.of_leases
            && !message.created
            && message.events.is_empty()
            && let Some(revision) = message.revision
        {
            self.queue.push_back(WatchEvent::Progress { revision });
        }
        for event in message.events {
            let (revision, kv) = (event.kv.mod_revision, event.kv);
            if kv.key == self.keys.config.as_bytes() {
                let config = (!event.deleted).then(|| config_text(&kv));
                self.queue
                    .push_back(WatchEvent::Config { config, revision });
            } else if event.deleted {
                let key = self.keys.parse(&kv);
                self.queue
                    .extend(key.map(|key| WatchEvent::Delete { key, revision }));
            } else {
                self.queue.extend(self.keys.entry(&kv).map(WatchEvent::Put));
            }
        }
    }

    fn end(&mut self, event: WatchEvent) {
        self.messages = None;
        self.queue.push_back(event);
    }
}
