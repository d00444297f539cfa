//! Leases in a file that is the same on every node (`--peers`): who has which subnet is decided by whoever
//! writes it. Nothing is written, nothing runs out, and no server is needed.

mod cluster;
mod follow;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use self::cluster::{Cluster, FileError};
use self::follow::Follower;
use super::member::{JoinError, Member, Membership, Wish};
use crate::model::{ConfigText, LeaseAttrs, PeerLease, StoreError};

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// A cluster in a file.
pub struct PeersFile(Arc<Source>);

/// The file, and what it said last.
struct Source {
    path: PathBuf,
    last: Mutex<Version>,
}

#[derive(Clone, Default)]
struct Version {
    text: String,
    /// How many different texts there were.
    number: i64,
}

impl PeersFile {
    pub fn new(path: &Path) -> Self {
        Self(Arc::new(Source {
            path: path.to_owned(),
            last: Mutex::default(),
        }))
    }
}

impl Source {
    /// What the file says now, and which version of it that is; `None` if there is no file.
    async fn read(&self) -> Result<Option<(Cluster, i64)>, StoreError> {
        let Some((text, number)) = self.text().await? else {
            return Ok(None);
        };
        let cluster = Cluster::parse(&text).map_err(|error| StoreError {
            reason: format!("{}, {error}", self.path.display()),
        })?;
        Ok(Some((cluster, number)))
    }

    async fn text(&self) -> Result<Option<(String, i64)>, StoreError> {
        let text = match tokio::fs::read_to_string(&self.path).await {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let reason = format!("cannot read {}: {error}", self.path.display());
                return Err(StoreError { reason });
            }
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.number == 0 || last.text != text {
            *last = Version {
                text: text.clone(),
                number: last.number + 1,
            };
        }
        Ok(Some((text, last.number)))
    }

    /// This node's subnet; the error says why there is none yet.
    async fn own(&self, address: IpAddr) -> Result<(PeerLease, Cluster, i64), String> {
        let path = self.path.display();
        let Some((cluster, number)) = self.read().await.map_err(|error| error.to_string())? else {
            return Err(self.missing());
        };
        let Some(own) = cluster.node(address) else {
            return Err(format!(
                "no [[node]] of {path} has the address of this node, {address}; add one to the file on every \
                 node, or choose the address with --iface or --public-ip"
            ));
        };
        Ok((own.clone(), cluster, number))
    }

    fn missing(&self) -> String {
        format!(
            "{} does not exist; write it with `overlay-agent init`, the same on every node",
            self.path.display()
        )
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
                text: cluster.config,
                mod_revision: number,
            }))
        })
    }

    fn config_place(&self) -> String {
        format!("[network] of {}", self.0.path.display())
    }

    fn config_missing(&self) -> String {
        self.0.missing()
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
            let mut reported = None;
            loop {
                let Some(own) = stop.run_until_cancelled(self.0.own(address)).await else {
                    return Ok(None);
                };
                let problem = match own {
                    Ok((own, cluster, number)) => {
                        let follower = Follower::new(Arc::clone(&self.0), own, config);
                        return Ok(Some(follower.spawn(&cluster, number, stop)));
                    }
                    Err(problem) => problem,
                };
                if reported.as_ref() != Some(&problem) {
                    error!("no subnet for this node yet: {problem}");
                    reported = Some(problem);
                }
                if stop.run_until_cancelled(sleep(PERIOD)).await.is_none() {
                    return Ok(None);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
