//! Tells when the rule set of this network namespace changes, and whether it was us.
//!
//! nf_tables multicasts every committed transaction to `NFNLGRP_NFTABLES` and ends it with a
//! `NFT_MSG_NEWGEN` that names the process (`nf_tables_gen_notify` in the kernel); iptables-nft,
//! nft, dockerd and kube-proxy all end up there. The old ip_tables is polled.
//!
//! The number is the one of the initial PID namespace. In another one, a container that has not the
//! host's, own changes look foreign: each then costs the flows one packet on the kernel path.

use std::{io, sync::Arc, time::Duration};

use netlink_packet_core::NlasIterator;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_NETFILTER};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{error::FilterError, exec::Executor, legacy::LegacyTables};
use crate::{netlink::messages, ticks};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const NFTABLES_GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `NFTA_GEN_PROC_PID` and `NFTA_GEN_PROC_NAME`.
const PROCESS_ID: u16 = 2;
const PROCESS_NAME: u16 = 3;
/// `struct nfgenmsg` before the attributes.
const GENERIC_HEADER_BYTES: usize = 4;

/// Holds the notifications of a few hundred thousand rules; the kernel may grant less.
const RECEIVE_BUFFER_BYTES: i32 = 4 << 20;
/// More than one notification datagram.
const DATAGRAM_BYTES: usize = 256 << 10;

/// How often the rule set has changed since the watch began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RulesetVersion {
    /// Changes made by commands of this agent.
    pub own: u64,
    /// Changes made by anybody else, and moments after which one may have been missed.
    pub foreign: u64,
}

/// Watches the rule set; any number of subscribers.
#[derive(Clone, Debug)]
pub struct FilterWatch {
    version: Arc<watch::Sender<RulesetVersion>>,
    executor: Executor,
    legacy_period: Duration,
}

/// The process that committed a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// 0 if the message does not say.
    pub pid: u32,
    pub name: String,
}

impl FilterWatch {
    /// `executor` must be the one the [`Filter`](super::Filter) uses: it knows which processes are
    /// ours. Legacy tables, if there are any, are looked at every `legacy_period`.
    pub fn new(executor: Executor, legacy_period: Duration) -> Self {
        Self {
            version: Arc::default(),
            executor,
            legacy_period,
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<RulesetVersion> {
        self.version.subscribe()
    }

    /// Watches until told to stop. May be called again after an error; a change in between is
    /// reported as a foreign one.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), FilterError> {
        let socket = subscribe().map_err(|source| FilterError::Subscribe { source })?;
        self.note_foreign();
        // A look at the legacy tables may take long; notifications are read meanwhile.
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = self.follow_notifications(socket) => ended,
            () = self.poll_legacy() => Ok(()),
        }
    }

    /// Ends with an error only.
    async fn follow_notifications(&self, socket: TokioSocket) -> Result<(), FilterError> {
        let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
        loop {
            match socket.recv(&mut datagram).await {
                Ok(()) => self.note(&writers(&datagram)),
                // Notifications were lost; any of them may have been a foreign change.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.note_foreign(),
                Err(source) => return Err(FilterError::Notifications { source }),
            }
            datagram.clear();
        }
    }

    /// Never ends.
    async fn poll_legacy(&self) {
        let mut legacy = LegacyTables::open(&self.executor).await;
        let mut blind = false;
        let mut ticks = ticks::together(LegacyTables::period(self.legacy_period));
        loop {
            ticks.tick().await;
            let started = Instant::now();
            match legacy.changed().await {
                Ok(changed) => {
                    blind = false;
                    if changed {
                        self.note_foreign();
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut blind, true) {
                        warn!(%error, "cannot look for changes of legacy iptables rules");
                    }
                }
            }
            if let Some(pause) = LegacyTables::pause(self.legacy_period, started.elapsed()) {
                sleep(pause).await;
            }
        }
    }

    fn note(&self, writers: &[Writer]) {
        let foreign = writers
            .iter()
            .filter(|writer| !self.executor.started(writer.pid));
        let mut count = 0;
        for writer in foreign {
            debug!(
                pid = writer.pid,
                process = writer.name,
                "packet filter changed"
            );
            count += 1;
        }
        if !writers.is_empty() {
            self.version.send_modify(|version| {
                version.foreign += count;
                version.own += writers.len() as u64 - count;
            });
        }
    }

    fn note_foreign(&self) {
        self.version.send_modify(|version| version.foreign += 1);
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().add_membership(NFTABLES_GROUP)?;
    Ok(socket)
}

/// The writers of the transactions that end in this datagram.
pub fn writers(datagram: &[u8]) -> Vec<Writer> {
    messages(datagram)
        .filter(|message| message.message_type() == NEW_GENERATION)
        .map(|message| writer(message.payload()))
        .collect()
}

/// Attributes that are absent or malformed leave a writer that is nobody of ours.
fn writer(payload: &[u8]) -> Writer {
    let mut writer = Writer {
        pid: 0,
        name: String::new(),
    };
    let attributes = payload.get(GENERIC_HEADER_BYTES..).unwrap_or_default();
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        match (attribute.kind(), attribute.value()) {
            (PROCESS_ID, value) => {
                writer.pid = value.try_into().map(u32::from_be_bytes).unwrap_or_default();
            }
            (PROCESS_NAME, value) => {
                String::from_utf8_lossy(value)
                    .trim_end_matches('\0')
                    .clone_into(&mut writer.name);
            }
            _ => {}
        }
    }
    writer
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `NFT_MSG_NEWGEN` of generation 7 by process 4242, `nft`, preceded by a message of another
    /// type, as captured from a socket in the group.
    fn datagram() -> Vec<u8> {
        let mut bytes = Vec::new();
        let message = |kind: u16, payload: &[u8]| {
            let length = u32::try_from(16 + payload.len()).unwrap();
            let mut message = length.to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.extend([0; 10]);
            message.extend(payload);
            message.resize(message.len().next_multiple_of(4), 0);
            message
        };
        bytes.extend(message(10 << 8, &[2, 0, 0, 9, 8, 0, 1, 0, b'a', 0, 0, 0]));
        let mut generation = vec![0, 0, 0, 7];
        generation.extend([8, 0, 1, 0, 0, 0, 0, 7]);
        generation.extend([8, 0, 2, 0, 0, 0, 0x10, 0x92]);
        generation.extend([8, 0, 3, 0, b'n', b'f', b't', 0]);
        bytes.extend(message(NEW_GENERATION, &generation));
        bytes
    }

    #[test]
    fn the_writer_of_a_transaction_is_named() {
        assert_eq!(
            writers(&datagram()),
            [Writer {
                pid: 4242,
                name: "nft".into()
            }]
        );
    }

    #[test]
    fn every_prefix_of_a_datagram_is_read_without_trouble() {
        let datagram = datagram();
        for end in 0..datagram.len() {
            writers(&datagram[..end]);
        }
    }
}
