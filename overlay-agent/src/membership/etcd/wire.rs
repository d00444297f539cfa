//! The requests the lease store is made of, in etcd's terms: each is carried out by one cluster,
//! whichever of its members answers. The model answers them from memory.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::stream::BoxStream;

use super::{error::EtcdError, keys::Keys, kv::Kv};
use crate::core::Expect;

/// Keys of `[from, end)`, or the one key `from` when there is no end.
#[derive(Clone, Debug)]
pub struct Range {
    pub from: Vec<u8>,
    pub end: Vec<u8>,
    /// 0: the latest.
    pub revision: i64,
    /// Only keys that were written after this revision.
    pub after: i64,
    /// 0: no limit.
    pub limit: i64,
}

/// An answer to a [`Range`].
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub kvs: Vec<Kv>,
    pub revision: i64,
    /// There are more than the limit.
    pub more: bool,
}

/// A write of one key that happens if the key is as expected.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: String,
    pub value: String,
    pub lease: Option<i64>,
    pub expect: Expect,
}

/// How a [`Write`] ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub done: bool,
    pub revision: i64,
    /// The key as it was, when it was not as expected.
    pub found: Option<Kv>,
}

/// A request that no endpoint carried out, as far as known.
#[derive(Debug)]
pub struct Failed {
    pub error: EtcdError,
    /// One of them may have.
    pub in_doubt: bool,
}

/// One message of a watch on the leases and the network config.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The store's revision when it was sent, which may be ahead of the events delivered.
    pub revision: Option<i64>,
    /// From the leases' watcher, not the config's.
    pub of_leases: bool,
    /// The watcher's first.
    pub created: bool,
    /// The start revision is gone; the store has everything from here on.
    pub compacted: Option<i64>,
    pub events: Vec<Event>,
}

/// A change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    /// Of a deleted key, only name and revision.
    pub kv: Kv,
    pub deleted: bool,
}

/// What etcd does.
pub trait Wire: Send + Sync + 'static {
    fn range(
        &self,
        operation: &'static str,
        range: Range,
    ) -> impl Future<Output = Result<Page, EtcdError>> + Send;

    /// Id and granted life of a new lease.
    fn grant(
        &self,
        ttl: Duration,
    ) -> impl Future<Output = Result<(i64, Duration), EtcdError>> + Send;

    fn revoke(&self, id: i64) -> impl Future<Output = Result<(), EtcdError>> + Send;

    /// Remaining life of a lease; `None` if there is no such lease.
    fn time_to_live(
        &self,
        id: i64,
    ) -> impl Future<Output = Result<Option<Duration>, EtcdError>> + Send;

    fn write(&self, write: Write) -> impl Future<Output = Result<Ended, Failed>> + Send;

    /// Deletes a key that still has this revision; false if it has another or is gone.
    fn delete(
        &self,
        key: String,
        mod_revision: i64,
    ) -> impl Future<Output = Result<bool, EtcdError>> + Send;

    /// What happens from `revision` on, beginning with the message that the leases' watcher stands.
    /// Ends after an error.
    fn watch(
        wire: Arc<Self>,
        keys: Keys,
        revision: i64,
    ) -> BoxStream<'static, Result<Message, EtcdError>>;

    /// What the API v2 has under a key; `None` also where it does not answer.
    fn old_value(&self, key: &str) -> impl Future<Output = Option<String>> + Send;

    /// The servers' clock, if one says.
    fn clock(&self) -> impl Future<Output = Option<SystemTime>> + Send {
        std::future::ready(None)
    }

    /// The servers, without secrets.
    fn urls(&self) -> String;

    /// How `etcdctl` is called for these servers, without secrets.
    fn etcdctl(&self) -> String;
}

impl From<Failed> for EtcdError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}
