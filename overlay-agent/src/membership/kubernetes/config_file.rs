//! The network config of `--net-config-path`, which a ConfigMap keeps the same on all nodes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::model::{ConfigText, StoreError};

/// The file, and what it said last.
pub struct ConfigFile {
    path: PathBuf,
    last: Mutex<Option<ConfigText>>,
}

impl ConfigFile {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            last: Mutex::default(),
        }
    }

    pub fn place(&self) -> String {
        self.path.display().to_string()
    }

    pub fn missing(&self) -> String {
        format!(
            "{} does not exist; in a cluster it is net-conf.json of the ConfigMap kube-flannel-cfg, elsewhere \
             --net-config-path says where it is",
            self.path.display()
        )
    }

    /// What the file says; its revision is how many different texts there were. `None` if there is no file.
    pub async fn read(&self) -> Result<Option<ConfigText>, StoreError> {
        let bytes = match tokio::fs::read(&self.path).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let reason = format!("cannot read {}: {error}", self.path.display());
                return Err(StoreError { reason });
            }
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let version = match last.take() {
            Some(same) if same.text == text => same,
            other => ConfigText {
                mod_revision: other.map_or(0, |other| other.mod_revision) + 1,
                text,
            },
        };
        Ok(Some(last.insert(version).clone()))
    }
}
