//! What is asked of etcd. Tests answer from memory.
//!
//! Every write is a compare-and-swap and every request has a deadline. A timed-out write may have
//! been applied: the next attempt then meets its own record, which the caller recognises.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use futures::stream::BoxStream;

use super::error::EtcdError;
use crate::{
    core::{Entry, Put, PutOutcome, RecordState, Snapshot, WatchEvent},
    model::{ConfigText, LeaseKey},
};

/// A shared table of leases and the network config.
pub trait LeaseStore: Send + Sync + 'static {
    /// The network config; `None` when the key does not exist.
    fn config(&self) -> impl Future<Output = Result<Option<ConfigText>, EtcdError>> + Send;

    fn list(&self) -> impl Future<Output = Result<Snapshot, EtcdError>> + Send;

    /// Those records of the list that were written after a revision.
    fn list_after(
        &self,
        revision: i64,
    ) -> impl Future<Output = Result<Vec<Entry>, EtcdError>> + Send;

    fn get(&self, key: &LeaseKey) -> impl Future<Output = Result<RecordState, EtcdError>> + Send;

    fn put(&self, put: &Put) -> impl Future<Output = Result<PutOutcome, EtcdError>> + Send;

    /// Deletes a record that still has this revision; false if it has another or is gone.
    fn delete(
        &self,
        key: &LeaseKey,
        mod_revision: i64,
    ) -> impl Future<Output = Result<bool, EtcdError>> + Send;

    /// Remaining life of a lease; `None` if it has ended.
    fn time_to_live(
        &self,
        lease_id: i64,
    ) -> impl Future<Output = Result<Option<Duration>, EtcdError>> + Send;

    /// Changes from `revision` on, until the watch ends with `Compacted` or `Disconnected`.
    fn watch(&self, revision: i64) -> BoxStream<'static, WatchEvent>;

    /// Where the config is looked for: key, API and servers, without secrets.
    fn config_place(&self) -> String;

    /// What is to be done when there is none there.
    fn config_remedy(&self) -> impl Future<Output = String> + Send;

    /// What time it is at the store, if it says.
    fn clock(&self) -> impl Future<Output = Option<SystemTime>> + Send {
        std::future::ready(None)
    }
}
