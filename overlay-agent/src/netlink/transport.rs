//! The request socket: dumps, lookups and pipelined changes.
//!
//! Many requests travel in one datagram and the kernel acknowledges each in order, so programming
//! a peer costs no round trip of its own. A batch is bounded because acknowledgements the receive
//! buffer cannot hold are lost.

use std::{future::Future, io, time::Duration};

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    proto::{ConnectionHandle, new_connection},
    sys::{AsyncSocket as _, Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio_util::task::AbortOnDropHandle;

use super::NetlinkError;

/// Requests per datagram. An acknowledgement occupies about 800 bytes of the receive buffer, whose
/// default is 208 KiB.
const BATCH: usize = 64;

/// The kernel answers in microseconds, unless others hold its RTNL lock: network namespaces with
/// many devices that go away do so for seconds. Only a lost acknowledgement takes this long. Less
/// than `WatchdogSec` of the unit file.
pub const TIMEOUT: Duration = Duration::from_secs(25);

/// A dump that other changes keep interrupting is repeated this often, then taken as it is.
const DUMP_ATTEMPTS: u32 = 8;

/// Receive buffer asked for, in bytes: a burst of events must not overrun the socket.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A message and its flags, beyond "request" and "acknowledge".
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub message: RouteNetlinkMessage,
    pub flags: u16,
}

impl Request {
    pub fn new(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { message, flags }
    }
}

/// The request socket.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    handle: ConnectionHandle<RouteNetlinkMessage>,
}

impl Transport {
    /// Opens the socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let (mut connection, handle, _) = new_connection::<RouteNetlinkMessage>(NETLINK_ROUTE)
            .map_err(|source| NetlinkError::Open { source })?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        enlarge(socket);
        // Absent before Linux 4.20; it only narrows dumps to what is asked for.
        if socket.set_netlink_get_strict_chk(true).is_err() {
            tracing::debug!("kernel without strict netlink checks");
        }
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All objects of a kind.
    pub async fn dump(
        &self,
        operation: &'static str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut attempt = 1;
        loop {
            let (objects, interrupted) =
                in_time(operation, self.dump_once(operation, request.clone())).await??;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(objects);
            }
            attempt += 1;
        }
    }

    async fn dump_once(
        &self,
        operation: &'static str,
        request: RouteNetlinkMessage,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut replies = self
            .handle
            .request(message, SocketAddr::new(0, 0))
            .map_err(|_| NetlinkError::Closed)?;
        let mut objects = Vec::new();
        let mut interrupted = false;
        while let Some(reply) = replies.next().await {
            interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            let code = match reply.payload {
                NetlinkPayload::InnerMessage(object) => {
                    objects.push(object);
                    continue;
                }
                NetlinkPayload::Done(done) => {
                    if done.code == 0 {
                        return Ok((objects, interrupted));
                    }
                    done.code
                }
                NetlinkPayload::Error(error) => error.raw_code(),
                _ => continue,
            };
            return Err(NetlinkError::Refused {
                operation: operation.to_owned(),
                source: io::Error::from_raw_os_error(code.saturating_abs()),
            });
        }
        Err(NetlinkError::Closed)
    }

    /// Carries out changes in order and returns the kernel's verdict on each.
    pub async fn apply(
        &self,
        requests: Vec<Request>,
    ) -> Result<Vec<Result<(), io::Error>>, NetlinkError> {
        let requests = requests
            .into_iter()
            .map(|r| Request::new(r.message, r.flags | NLM_F_ACK))
            .collect();
        let replies = self.exchange("change kernel state", requests).await?;
        Ok(replies.into_iter().map(|reply| reply.map(|_| ())).collect())
    }

    /// Carries out one change.
    pub async fn apply_one(&self, request: Request) -> Result<io::Result<()>, NetlinkError> {
        let mut verdicts = self.apply(vec![request]).await?;
        verdicts.pop().ok_or(NetlinkError::Closed)
    }

    /// One object per query, in order.
    pub async fn query(
        &self,
        operation: &'static str,
        queries: Vec<RouteNetlinkMessage>,
    ) -> Result<Vec<io::Result<Option<RouteNetlinkMessage>>>, NetlinkError> {
        let requests = queries
            .into_iter()
            .map(|message| Request::new(message, 0))
            .collect();
        self.exchange(operation, requests).await
    }

    /// Sends requests in batches. Each gets exactly one reply: an acknowledgement, an error, or an
    /// object.
    async fn exchange(
        &self,
        operation: &'static str,
        requests: Vec<Request>,
    ) -> Result<Vec<io::Result<Option<RouteNetlinkMessage>>>, NetlinkError> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let batch: Vec<_> = requests
                .by_ref()
                .take(BATCH)
                .map(|request| {
                    let mut message = NetlinkMessage::from(request.message);
                    message.header.flags = NLM_F_REQUEST | request.flags;
                    message
                })
                .collect();
            let expected = outcomes.len() + batch.len();
            let mut replies = self
                .handle
                .request_batch(batch, SocketAddr::new(0, 0))
                .map_err(|_| NetlinkError::Closed)?;
            in_time(operation, async {
                while let Some(reply) = replies.next().await {
                    outcomes.push(match reply.payload {
                        NetlinkPayload::InnerMessage(object) => Ok(Some(object)),
                        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
                        _ => Ok(None),
                    });
                }
            })
            .await?;
            if outcomes.len() != expected {
                return Err(NetlinkError::Closed);
            }
        }
        Ok(outcomes)
    }
}

/// Events of multicast groups, from a socket of their own.
pub(super) struct Subscription {
    pub messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    _connection: AbortOnDropHandle<()>,
}

/// Subscribes to a mask of legacy multicast groups in the calling thread's network namespace.
pub(super) fn subscribe(groups: u32) -> Result<Subscription, NetlinkError> {
    let (mut connection, _, messages) = new_connection::<RouteNetlinkMessage>(NETLINK_ROUTE)
        .map_err(|source| NetlinkError::Open { source })?;
    let socket = connection.socket_mut().socket_mut();
    enlarge(socket);
    socket
        .bind(&SocketAddr::new(0, groups))
        .map_err(|source| NetlinkError::Open { source })?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    Ok(Subscription {
        messages,
        _connection: connection,
    })
}

/// Best effort: without CAP_NET_ADMIN the default size stays.
fn enlarge(socket: &Socket) {
    if let Err(error) = setsockopt(socket, RcvBufForce, &RECEIVE_BUFFER) {
        tracing::debug!(%error, "netlink receive buffer keeps its default size");
    }
}

async fn in_time<T>(
    operation: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, NetlinkError> {
    tokio::time::timeout(TIMEOUT, work)
        .await
        .map_err(|_| NetlinkError::Timeout {
            operation,
            seconds: TIMEOUT.as_secs(),
        })
}
