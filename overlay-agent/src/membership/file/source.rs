//! The peers file as it is on the disk.

use std::{
    io,
    net::IpAddr,
    path::{Display, Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::cluster::Cluster;
use crate::model::{PeerLease, StoreError};

/// How often the file is looked at.
pub const PERIOD: Duration = Duration::from_secs(1);

/// The file, and what it said last.
pub struct Source {
    path: PathBuf,
    last: Mutex<Version>,
}

#[derive(Clone, Default)]
struct Version {
    text: String,
    /// How many different texts there were.
    number: i64,
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

    /// What the file says now, and which version of it that is; `None` if there is no file.
    pub async fn read(&self) -> Result<Option<(Cluster, i64)>, StoreError> {
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
    pub async fn own(&self, address: IpAddr) -> Result<(PeerLease, Cluster, i64), String> {
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
