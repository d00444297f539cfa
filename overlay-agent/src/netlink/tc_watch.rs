//! Notifications of tc.

use std::future::poll_fn;

use rtnetlink::{constants::RTMGRP_TC, sys::protocols::NETLINK_ROUTE};

use super::{Netlink, NetlinkError, groups::GroupSocket};

/// Tells that a queueing discipline, a class or a filter came, changed or went. Of tcx programs the kernel says nothing.
pub struct TcWatch(GroupSocket);

impl Netlink {
    /// Subscribes to tc, in the network namespace of the calling thread.
    pub fn watch_tc() -> Result<TcWatch, NetlinkError> {
        let socket = GroupSocket::join(NETLINK_ROUTE, RTMGRP_TC);
        socket
            .map(TcWatch)
            .map_err(|source| NetlinkError::Open { source })
    }
}

impl TcWatch {
    /// Waits for the next change. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        let received = poll_fn(|cx| self.0.poll_next(cx).map_ok(drop)).await;
        received.map_err(|_| NetlinkError::Closed)
    }
}
