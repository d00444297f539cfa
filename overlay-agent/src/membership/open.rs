//! Which store this node uses.

use std::sync::Arc;

use super::{
    etcd::{Deadlines, Etcd, EtcdStore},
    file::PeersFile,
    kubernetes::Kubernetes,
    member::Membership,
};
use crate::{config::DaemonOptions, core::Renewal, metrics, model::StoreError};

/// The store that the options name. Checks them, files included; does not connect.
pub fn open(
    options: &DaemonOptions,
    metrics: metrics::Store,
) -> Result<Arc<dyn Membership>, StoreError> {
    if let Some(path) = &options.lease.peers_file {
        return Ok(Arc::new(PeersFile::new(path)));
    }
    if options.kubernetes.is_on {
        return Ok(Arc::new(Kubernetes::new(&options.kubernetes)?));
    }
    let store = EtcdStore::new(options.etcd.clone(), Deadlines::default(), metrics)?;
    let renewal = Renewal {
        ttl: Renewal::TTL,
        margin: options.lease.renew_margin,
    };
    Ok(Arc::new(Etcd::new(store, renewal)))
}
