//! Failures of the packet filter.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

#[derive(Debug, Error)]
pub enum FilterError {
    #[error(
        "neither iptables nor nft can be used here, so packet filter rules cannot be managed; \
         install one of them (Debian: `apt-get install nftables` or `iptables`), or start with \
         --ip-masq=false --iptables-forward-rules=false --pod-source-keep=false"
    )]
    NoTool,
    #[error("cannot run {}: {source}", command.display())]
    Exec { command: PathBuf, source: io::Error },
    #[error("{} did not end within {} s and was killed", command.display(), after.as_secs())]
    Deadline { command: PathBuf, after: Duration },
    #[error("{} failed: {message}", command.display())]
    Refused { command: PathBuf, message: String },
    #[error(
        "{} is not permitted: {message}; run as root or grant CAP_NET_ADMIN, for iptables-legacy \
         CAP_NET_RAW too",
        command.display()
    )]
    NotPermitted { command: PathBuf, message: String },
    #[error(
        "cannot subscribe to packet filter changes: {source}; the daemon needs CAP_NET_ADMIN and a \
         kernel with nf_tables"
    )]
    Subscribe { source: io::Error },
    #[error("reading packet filter changes failed: {source}")]
    Notifications { source: io::Error },
}

/// What the commands print when a capability is missing. iptables-legacy-restore does not tell it
/// from a missing kernel module.
const PERMISSION_MESSAGES: [&str; 4] = [
    "you must be root",
    "Operation not permitted",
    "Permission denied",
    "unable to initialize table",
];

impl FilterError {
    /// A command ended with a status other than 0 and this on stderr.
    pub(super) fn refused(command: &Path, stderr: String) -> Self {
        let (command, message) = (command.to_owned(), stderr);
        if PERMISSION_MESSAGES
            .iter()
            .any(|text| message.contains(text))
        {
            Self::NotPermitted { command, message }
        } else {
            Self::Refused { command, message }
        }
    }
}
