//! When the kernel got each route: its own notifications, read by a thread that does nothing else.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use ipnetwork::Ipv4Network;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use rtnetlink::{
    constants::RTMGRP_IPV4_ROUTE,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::cluster::is_ghost;
use crate::netns::Namespace;

const PAUSE: Duration = Duration::from_micros(200);
/// For every route of the largest cluster, twice.
const RECEIVE_BUFFER: usize = 64 << 20;
const DATAGRAM: usize = 64 << 10;
const POLL_MS: u16 = 50;

/// Routes to invented nodes, and when each appeared last.
type Seen = Arc<Mutex<BTreeMap<Ipv4Network, Instant>>>;

/// Follows the routes of a namespace until it is dropped.
pub struct RouteLog {
    seen: Seen,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl RouteLog {
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let mut socket = namespace.enter(|| Socket::new(NETLINK_ROUTE))?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        socket.bind(&SocketAddr::new(0, RTMGRP_IPV4_ROUTE))?;
        socket.set_non_blocking(true)?;
        let seen = Seen::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || follow(&socket, &seen, &stop)
        });
        Ok(Self {
            seen,
            stop,
            thread: Some(thread),
        })
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<Ipv4Network, Instant>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was seen.
    pub fn clear(&self) {
        self.seen().clear();
    }

    pub fn count(&self) -> usize {
        self.seen().len()
    }

    /// Waits until there are routes to `count` invented nodes. Returns when the last of them came.
    pub fn wait_count(&self, count: usize, within: Duration) -> Result<Instant> {
        let found = self.wait(within, |seen| {
            (seen.len() >= count).then(|| seen.values().max().copied())?
        });
        found.with_context(|| format!("{} of {count} routes", self.count()))
    }

    /// Waits for the route to a subnet. Returns when it came.
    pub fn wait_route(&self, subnet: Ipv4Network, within: Duration) -> Result<Instant> {
        let found = self.wait(within, |seen| seen.get(&subnet).copied());
        found.with_context(|| format!("the route to {subnet}"))
    }

    fn wait<T>(
        &self,
        within: Duration,
        probe: impl Fn(&BTreeMap<Ipv4Network, Instant>) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = probe(&self.seen()) {
                return Ok(found);
            }
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                bail!("nobody follows the routes any more");
            }
            if start.elapsed() > within {
                bail!("not within {within:?}");
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for RouteLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("following the routes: {error:#}"),
            Some(Err(_)) => eprintln!("following the routes ended with a panic"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

fn follow(socket: &Socket, seen: &Seen, stop: &AtomicBool) -> Result<()> {
    let mut buffer = Vec::with_capacity(DATAGRAM);
    while !stop.load(Ordering::Relaxed) {
        let mut readable = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut readable, PollTimeout::from(POLL_MS))?;
        loop {
            buffer.clear();
            match socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("read the kernel's notifications"),
            }
            let now = Instant::now();
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            for (subnet, added) in changes(&buffer) {
                if added {
                    seen.insert(subnet, now);
                } else {
                    seen.remove(&subnet);
                }
            }
        }
    }
    Ok(())
}

/// Routes to invented nodes that appear or go.
fn changes(datagram: &[u8]) -> Vec<(Ipv4Network, bool)> {
    let mut changes = Vec::new();
    let mut rest = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        let length = message.length() as usize;
        if let Ok(NetlinkMessage {
            payload: NetlinkPayload::InnerMessage(message),
            ..
        }) = NetlinkMessage::deserialize(rest)
        {
            let change = match &message {
                RouteNetlinkMessage::NewRoute(route) => destination(route).zip(Some(true)),
                RouteNetlinkMessage::DelRoute(route) => destination(route).zip(Some(false)),
                _ => None,
            };
            changes.extend(change.filter(|(subnet, _)| is_ghost(*subnet)));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}

fn destination(route: &RouteMessage) -> Option<Ipv4Network> {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
    let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    Ipv4Network::new(address, route.header.destination_prefix_length).ok()
}
