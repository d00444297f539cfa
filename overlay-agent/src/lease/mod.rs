//! Leases: who owns which subnet of the pod network, kept in etcd with flannel's keys and values.

mod endpoints;
mod etcd;
mod etcd_watch;
mod key;
mod options;
mod store;
mod value;

pub use endpoints::Deadlines;
pub use etcd::EtcdStore;
pub use key::LeaseKey;
pub use options::EtcdOptions;
pub use store::{
    ConfigText, Entry, Expect, LeaseStore, Observed, Put, PutOutcome, Snapshot, StoreError,
    WatchEvent,
};
pub use value::{LeaseAttrs, ValueError, VxlanData};
