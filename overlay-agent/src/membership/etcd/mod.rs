//! Leases in etcd, with flannel's keys and values: who owns which subnet is settled by compare-and-swap.
//!
//! [`acquire`] gets a record, the [`driver`] keeps it. The decisions of the first are in [`decide`],
//! those of the second in [`crate::core`].

mod acquire;
mod clock;
mod decide;
mod driver;
mod endpoints;
mod error;
#[cfg(test)]
mod fake;
mod http;
mod keys;
mod kv;
mod lease_store;
mod machine;
#[cfg(test)]
mod model;
mod old_api;
mod options;
mod requests;
mod store;
#[cfg(test)]
mod tests;
mod verdict;
mod watch;
mod wire;
mod words;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use self::{
    acquire::{AcquireError, acquire},
    machine::Machine,
};
pub use self::{endpoints::Deadlines, error::EtcdError, lease_store::LeaseStore, store::EtcdStore};
use super::member::{JoinError, Member, Membership, Wish};
use crate::{
    core::{Renewal, Snapshot},
    model::{ConfigText, LeaseAttrs, StoreError},
};

/// Membership by records in etcd.
pub struct Etcd<S> {
    store: Arc<S>,
    renewal: Renewal,
    /// What was listed last, for the choice of the own lease.
    known: Mutex<Option<Snapshot>>,
}

impl<S: LeaseStore> Etcd<S> {
    pub fn new(store: S, renewal: Renewal) -> Self {
        Self {
            store: Arc::new(store),
            renewal,
            known: Mutex::new(None),
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<Snapshot>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn join_from(
        &self,
        mut machine: Machine,
        wish: Wish,
        config: ConfigText,
        stop: CancellationToken,
    ) -> Result<Option<Member>, AcquireError> {
        let known = self.known().take();
        match acquire(
            &*self.store,
            known,
            &wish,
            self.renewal,
            &mut machine,
            &stop,
        )
        .await
        {
            Ok(acquired) => {
                let store = Arc::clone(&self.store);
                let member = driver::spawn(store, acquired, self.renewal, config, machine, stop);
                Ok(Some(member))
            }
            Err(AcquireError::Cancelled) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<S: LeaseStore> Membership for Etcd<S> {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn config(&self) -> BoxFuture<'_, Result<Option<ConfigText>, StoreError>> {
        Box::pin(async { Ok(self.store.config().await?) })
    }

    fn config_place(&self) -> String {
        self.store.config_place()
    }

    fn config_missing(&self) -> BoxFuture<'_, String> {
        Box::pin(async {
            let remedy = self.store.config_remedy().await;
            words::config_missing(&self.store.config_place(), &remedy)
        })
    }

    fn clock(&self) -> BoxFuture<'_, Option<SystemTime>> {
        Box::pin(self.store.clock())
    }

    fn known(&self) -> BoxFuture<'_, Result<Vec<LeaseAttrs>, StoreError>> {
        Box::pin(async {
            let snapshot = self.store.list().await?;
            let attrs = snapshot.entries.iter();
            let attrs = attrs.filter_map(|entry| entry.value.clone().ok()).collect();
            *self.known() = Some(snapshot);
            Ok(attrs)
        })
    }

    fn join(
        &self,
        wish: Wish,
        config: ConfigText,
        stop: CancellationToken,
    ) -> BoxFuture<'_, Result<Option<Member>, JoinError>> {
        Box::pin(async move {
            let joined = self.join_from(Machine::real(), wish, config, stop).await;
            joined.map_err(|error| JoinError::from(Box::from(error)))
        })
    }
}
