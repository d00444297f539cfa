//! What can be wrong, and how the runtime is told (CNI specification, "Error").

use std::{io, path::PathBuf};

use serde_json::json;
use thiserror::Error;

/// An error, for which the specification has a number.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot read the network's configuration from standard input: {source}")]
    Input { source: io::Error },
    #[error("{reason}; this program is run by a container runtime (CNI), not by hand")]
    Environment { reason: String },
    #[error("the network's configuration is not understood: {reason}")]
    Decode { reason: String },
    #[error("the network's configuration: {reason}")]
    Config { reason: String },
    #[error("{} is not there yet; overlay-agent writes it when the node has its subnet: does it run?", path.display())]
    NotReady { path: PathBuf },
    #[error("{}: {reason}", path.display())]
    SubnetFile { path: PathBuf, reason: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("no plugin {name} in CNI_PATH ({path}); Debian has it in containernetworking-plugins")]
    NoPlugin { name: String, path: String },
    #[error("plugin {name}: {reason}")]
    Delegate {
        name: String,
        /// The plugin's own, if it gave one.
        code: Option<u64>,
        reason: String,
    },
    #[error(
        "pods of type \"overlay\" are made from version 0.3.0 of the specification on, and cniVersion is {version:?}"
    )]
    Version { version: String },
    #[error("{what}: {source}")]
    Kernel { what: String, source: io::Error },
    /// The pod is not as it was made; an answer to `CHECK`.
    #[error("{reason}")]
    Check { reason: String },
    /// The node cannot take pods now; an answer to `STATUS`.
    #[error("{reason}")]
    Unavailable { reason: String },
}

impl Error {
    /// Numbers below 100 are the specification's.
    fn code(&self) -> u64 {
        match self {
            Self::Version { .. } => 1,
            Self::Environment { .. } => 4,
            Self::Input { .. } | Self::Io { .. } | Self::Kernel { .. } => 5,
            Self::Decode { .. } => 6,
            Self::Config { .. } | Self::NoPlugin { .. } => 7,
            // Try again later.
            Self::NotReady { .. } | Self::SubnetFile { .. } => 11,
            Self::Unavailable { .. } => 50,
            // The plugin's own begin here.
            Self::Check { .. } => 100,
            Self::Delegate { code, .. } => code.unwrap_or(999),
        }
    }

    /// As the runtime reads it.
    pub fn json(&self, version: &str) -> Vec<u8> {
        let value = json!({
            "cniVersion": version,
            "code": self.code(),
            "msg": self.to_string(),
        });
        value.to_string().into_bytes()
    }
}
