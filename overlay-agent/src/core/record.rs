//! What the agent needs of a lease store. etcd implements it; tests use an in-memory one.
//!
//! Every write is a compare-and-swap and every request has a deadline. A timed-out write may have
//! been applied: the next attempt then meets its own record, which the caller recognises.

use std::{future::Future, time::Duration};

use futures::stream::BoxStream;
use thiserror::Error;

use super::{
    key::LeaseKey,
    value::{LeaseAttrs, ValueError},
};

/// A lease record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: LeaseKey,
    pub value: Result<LeaseAttrs, ValueError>,
    /// The store's lease the key is attached to; `None` makes the record a reservation.
    pub lease_id: Option<i64>,
    pub mod_revision: i64,
}

/// All lease records at one revision, in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: i64,
    pub entries: Vec<Entry>,
}

/// One record, or its absence, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub revision: i64,
    pub entry: Option<Entry>,
}

/// The text under `<prefix>/config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigText {
    pub text: String,
    pub mod_revision: i64,
}

/// The state a key must be in for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// Not written since. The lease is compared too, because revisions repeat in a store that
    /// lost its data; lease ids do not.
    Unchanged {
        mod_revision: i64,
        lease_id: Option<i64>,
    },
}

impl Entry {
    /// What a write that replaces this record expects.
    pub fn unchanged(&self) -> Expect {
        Expect::Unchanged {
            mod_revision: self.mod_revision,
            lease_id: self.lease_id,
        }
    }
}

/// A conditional write of a lease record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub key: LeaseKey,
    pub attrs: LeaseAttrs,
    pub expect: Expect,
    /// Life of the record; `None` writes a reservation, which does not expire.
    pub ttl: Option<Duration>,
}

/// How a conditional write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    Written {
        mod_revision: i64,
        lease_id: Option<i64>,
        /// Granted life; `None` for a reservation.
        ttl: Option<Duration>,
    },
    /// The key was not in the expected state; this is the state it was in.
    Conflict(Observed),
}

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The watch stands; the store is at `revision`.
    Opened {
        revision: i64,
    },
    Put(Entry),
    Delete {
        key: LeaseKey,
        revision: i64,
    },
    /// The network config was written, or deleted.
    Config(Option<ConfigText>),
    /// Everything up to `revision` has been delivered.
    Progress {
        revision: i64,
    },
    /// The start revision is gone from the store's history: list again. Ends the watch.
    Compacted {
        revision: i64,
    },
    /// The watch broke. Ends the watch.
    Disconnected(StoreError),
}

/// Why a request failed. All but `Options` may go away by themselves.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    #[error("etcd options: {reason}")]
    Options { reason: String },
    #[error("no etcd endpoint answered: {failures}; check --etcd-endpoints and that etcd runs")]
    Unreachable { failures: String },
    #[error(
        "TLS to etcd failed: {failures}; check --etcd-cafile against the CA that signed the \
         server's certificate, and --etcd-certfile and --etcd-keyfile if etcd asks for a client \
         certificate"
    )]
    Tls { failures: String },
    #[error("etcd refused the login: {reason}; check --etcd-username and --etcd-password")]
    Login { reason: String },
    #[error(
        "etcd denied {operation}: {reason}; the user needs read permission on {prefix}/config and \
         readwrite permission on keys with the prefix {prefix}/subnets/"
    )]
    Denied {
        operation: &'static str,
        prefix: String,
        reason: String,
    },
    #[error("etcd failed to {operation}: {reason}")]
    Rejected {
        operation: &'static str,
        reason: String,
    },
}

/// A shared table of leases and the network config.
pub trait LeaseStore: Send + Sync + 'static {
    /// The network config; `None` when the key does not exist.
    fn config(&self) -> impl Future<Output = Result<Option<ConfigText>, StoreError>> + Send;

    fn list(&self) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    fn get(&self, key: &LeaseKey) -> impl Future<Output = Result<Observed, StoreError>> + Send;

    fn put(&self, put: &Put) -> impl Future<Output = Result<PutOutcome, StoreError>> + Send;

    /// Deletes a record that still has this revision; false if it has another or is gone.
    fn delete(
        &self,
        key: &LeaseKey,
        mod_revision: i64,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Remaining life of a lease; `None` if it has ended.
    fn time_to_live(
        &self,
        lease_id: i64,
    ) -> impl Future<Output = Result<Option<Duration>, StoreError>> + Send;

    /// Changes from `revision` on, until the watch ends with `Compacted` or `Disconnected`.
    fn watch(&self, revision: i64) -> BoxStream<'static, WatchEvent>;

    /// Where the config is looked for: key, API and servers, without secrets.
    fn config_place(&self) -> String;

    /// A command that creates the config.
    fn config_hint(&self) -> String;
}
