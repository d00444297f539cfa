//! Leases: who owns which subnet of the pod network, kept in etcd with flannel's keys and values.
//!
//! A start is [`await_config`] and [`await_leases`], then (once the device and with it the VTEP MAC
//! address exist) [`acquire`], then [`spawn`], which keeps the lease and publishes a
//! [`LeaseView`](crate::core::LeaseView). The decisions are in [`crate::core`].

mod acquire;
mod await_config;
mod driver;
mod endpoints;
mod etcd;
mod etcd_watch;
#[cfg(test)]
pub(crate) mod fake;
mod key;
mod options;
#[cfg(test)]
mod properties;
mod store;
#[cfg(test)]
mod tests;
mod value;
mod verdict;

pub use acquire::{AcquireError, Acquired, acquire};
pub use await_config::{await_config, await_leases};
pub use driver::{LeaseHandle, spawn};
pub use endpoints::Deadlines;
pub use etcd::EtcdStore;
pub use key::LeaseKey;
pub use store::{
    ConfigText, Entry, Expect, LeaseStore, Observed, Put, PutOutcome, Snapshot, StoreError,
    WatchEvent,
};
pub use value::{LeaseAttrs, ValueError, VxlanData};
