//! The peers file as it is on the disk.

use std::{
    io,
    net::IpAddr,
    path::{Display, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::cluster::{Cluster, FileError};
use crate::model::{PeerLease, StoreError};

/// How often the file is looked at.
pub const PERIOD: Duration = Duration::from_secs(1);

/// The file, and what it said last.
pub struct Source {
    path: PathBuf,
    last: Mutex<Option<Version>>,
}

struct Version {
    text: String,
    /// How many different texts there were, with this one.
    number: i64,
    cluster: Result<Arc<Cluster>, FileError>,
}

impl Source {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            last: Mutex::default(),
        }
    }

    /// Where the file is, for messages.
    pub fn place(&self) -> Display<'_> {
        self.path.display()
    }

    /// What the file says now, and which version of it that is; `None` if there is no file. A text that is
    /// the same as before is not understood anew.
    pub async fn read(&self) -> Result<Option<(Arc<Cluster>, i64)>, StoreError> {
        let text = match tokio::fs::read_to_string(&self.path).await {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let reason = format!("cannot read {}: {error}", self.path.display());
                return Err(StoreError { reason });
            }
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let version = match last.take() {
            Some(same) if same.text == text => same,
            other => Version {
                number: other.map_or(0, |other| other.number) + 1,
                cluster: Cluster::parse(&text).map(Arc::new),
                text,
            },
        };
        let version = last.insert(version);
        match &version.cluster {
            Ok(cluster) => Ok(Some((Arc::clone(cluster), version.number))),
            Err(error) => {
                let reason = format!("{}, {error}", self.path.display());
                Err(StoreError { reason })
            }
        }
    }

    /// This node's subnet; the error says why there is none yet.
    pub async fn own(&self, address: IpAddr) -> Result<(PeerLease, Arc<Cluster>, i64), String> {
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

    pub fn missing(&self) -> String {
        format!(
            "{} does not exist; write it with `overlay-agent init`, the same on every node",
            self.path.display()
        )
    }
}
