//! Leases in a file that is the same on every node (`--peers`): who has which subnet is decided by whoever
//! writes it. Nothing is written, nothing runs out, and no server is needed.

mod cluster;
mod follow;
mod source;

use std::{path::Path, sync::Arc};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use self::cluster::{Cluster, FileError};
use self::{follow::Follower, source::Source};
use super::{
    member::{JoinError, Member, Membership, Wish},
    wait,
};
use crate::model::{ConfigText, LeaseAttrs, StoreError};

/// A cluster in a file.
pub struct PeersFile(Arc<Source>);

impl PeersFile {
    pub fn new(path: &Path) -> Self {
        Self(Arc::new(Source::new(path)))
    }
}

impl Membership for PeersFile {
    fn name(&self) -> &'static str {
        "the peers file"
    }

    fn config(&self) -> BoxFuture<'_, Result<Option<ConfigText>, StoreError>> {
        Box::pin(async {
            let read = self.0.read().await?;
            Ok(read.map(|(cluster, number)| ConfigText {
                text: cluster.config.clone(),
                mod_revision: number,
            }))
        })
    }

    fn config_place(&self) -> String {
        format!("[network] of {}", self.0.place())
    }

    fn config_missing(&self) -> BoxFuture<'_, String> {
        Box::pin(async { self.0.missing() })
    }

    fn known(&self) -> BoxFuture<'_, Result<Vec<LeaseAttrs>, StoreError>> {
        Box::pin(async {
            let Some((cluster, _)) = self.0.read().await? else {
                return Err(StoreError {
                    reason: self.0.missing(),
                });
            };
            Ok(cluster
                .nodes
                .iter()
                .map(|node| (*node.attrs).clone())
                .collect())
        })
    }

    fn join(
        &self,
        wish: Wish,
        config: ConfigText,
        stop: CancellationToken,
    ) -> BoxFuture<'_, Result<Option<Member>, JoinError>> {
        Box::pin(async move {
            let address = wish.attrs.node_ip();
            let own = wait::until_done(
                &stop,
                || self.0.own(address),
                |problem| error!("no subnet for this node yet: {problem}"),
            );
            Ok(own.await.map(|(own, cluster, number)| {
                let follower = Follower::new(Arc::clone(&self.0), own, config);
                follower.spawn(&cluster, number, stop.clone())
            }))
        })
    }
}

#[cfg(test)]
mod tests;
