//! Failures of the packet filter.

use std::{io, path::PathBuf, time::Duration};

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
        "cannot subscribe to packet filter changes: {source}; the daemon needs CAP_NET_ADMIN and a \
         kernel with nf_tables"
    )]
    Subscribe { source: io::Error },
    #[error("reading packet filter changes failed: {source}")]
    Notifications { source: io::Error },
}
