//! The request sockets: one for lookups, one for changes ([`bulk`](super::bulk)), and one for each list
//! ([`dump`](super::dump)).
//!
//! Many lookups travel in one datagram, and the kernel answers each in order. A batch is bounded because
//! answers the receive buffer cannot hold are lost.

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    proto::{ConnectionHandle, new_connection},
    sys::{AsyncSocket as _, Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::task::yield_now;
use tokio_util::task::AbortOnDropHandle;

use super::{
    NetlinkError,
    bulk::{self, Bulk, enlarge_to},
    dump::{Dump, Progress},
};

pub(super) use super::bulk::Request;

/// Lookups per datagram. An answer occupies about 800 bytes of the receive buffer, which has
/// 208 KiB where the kernel does not grant more.
const BATCH: usize = 64;

/// The kernel answers in microseconds, unless others hold its RTNL lock: network namespaces with
/// many devices that go away do so for seconds. Only a lost acknowledgement takes this long. Less
/// than `WatchdogSec` of the unit file.
pub const TIMEOUT: Duration = Duration::from_secs(25);

/// A dump that other changes keep interrupting is repeated this often, then taken as it is.
const DUMP_ATTEMPTS: u32 = 8;

/// Receive buffer asked for, in bytes: neither a burst of events nor a large dump must overrun a socket.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The request sockets, opened again when they break.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    connection: Arc<Mutex<Connection>>,
    bulk: Arc<Mutex<Bulk>>,
    /// Receive buffer asked for, in bytes.
    buffer: usize,
}

#[derive(Debug)]
struct Connection {
    handle: ConnectionHandle<RouteNetlinkMessage>,
    task: AbortOnDropHandle<()>,
}

impl Connection {
    fn open(buffer: usize) -> Result<Self, NetlinkError> {
        let (mut connection, handle, messages) =
            new_connection::<RouteNetlinkMessage>(NETLINK_ROUTE)
                .map_err(|source| NetlinkError::Open { source })?;
        connection.set_forward_ack(true);
        let socket = connection.socket_mut().socket_mut();
        enlarge_to(socket, buffer);
        // Absent before Linux 4.20; it only narrows dumps to what is asked for.
        if socket.set_netlink_get_strict_chk(true).is_err() {
            tracing::debug!("kernel without strict netlink checks");
        }
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::select! {
                () = connection => {}
                () = answers_lost(messages) => {}
            }
        }));
        Ok(Self { handle, task })
    }
}

/// Waits until the receive buffer overflows. Nobody knows whose answers are lost then: the connection
/// ends, so that whoever waits for one learns it at once.
async fn answers_lost(
    mut messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
) {
    while let Some((message, _)) = messages.next().await {
        if matches!(message.payload, NetlinkPayload::Overrun(_)) {
            return;
        }
    }
}

impl Transport {
    /// Opens the socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::with_buffer(RECEIVE_BUFFER)
    }

    fn with_buffer(buffer: usize) -> Result<Self, NetlinkError> {
        Ok(Self {
            connection: Arc::new(Mutex::new(Connection::open(buffer)?)),
            bulk: Arc::new(Mutex::new(
                Bulk::open(buffer).map_err(|source| NetlinkError::Open { source })?,
            )),
            buffer,
        })
    }

    /// The connection that stands, or another one in its place: in the network namespace of the
    /// calling thread, which is that of every thread of an agent.
    fn handle(&self) -> Result<ConnectionHandle<RouteNetlinkMessage>, NetlinkError> {
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if connection.task.is_finished() {
            tracing::debug!("netlink connection opened again");
            *connection = Connection::open(self.buffer)?;
        }
        Ok(connection.handle.clone())
    }

    /// All objects of a kind of which `decode` makes something. As messages those of a large cluster would take
    /// ten times the room.
    pub async fn dump<T>(
        &self,
        operation: &'static str,
        request: RouteNetlinkMessage,
        decode: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut attempt = 1;
        loop {
            let once = self.dump_once(operation, request.clone(), &decode);
            let dumped = in_time(operation, once).await?;
            match dumped {
                Err(NetlinkError::Closed) | Ok((_, true)) if attempt < DUMP_ATTEMPTS => {}
                dumped => return dumped.map(|(objects, _)| objects),
            }
            attempt += 1;
        }
    }

    async fn dump_once<T>(
        &self,
        operation: &'static str,
        request: RouteNetlinkMessage,
        decode: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<(Vec<T>, bool), NetlinkError> {
        let broken = |source| NetlinkError::Open { source };
        let mut dump = Dump::start(request, self.buffer).map_err(broken)?;
        let mut objects = Vec::new();
        loop {
            match dump.read(|object| objects.extend(decode(object))) {
                Ok(Progress::More) => yield_now().await,
                Ok(Progress::Done) => return Ok((objects, dump.interrupted)),
                Ok(Progress::Refused(code)) => {
                    return Err(NetlinkError::Refused {
                        operation: operation.to_owned(),
                        source: io::Error::from_raw_os_error(code.saturating_abs()),
                    });
                }
                Ok(Progress::Lost) => return Err(NetlinkError::Closed),
                Err(source) => return Err(broken(source)),
            }
        }
    }

    /// Carries out changes in order and returns the kernel's verdict on each.
    pub async fn apply(
        &self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Result<(), io::Error>>, NetlinkError> {
        let mut verdicts = Vec::new();
        let mut requests = requests.into_iter();
        loop {
            let batch: Vec<_> = requests.by_ref().take(bulk::BATCH).collect();
            if batch.is_empty() {
                break;
            }
            verdicts.extend(self.apply_batch(batch)?);
            // The kernel tells of every change; whoever listens gets its turn.
            yield_now().await;
        }
        Ok(verdicts)
    }

    fn apply_batch(&self, requests: Vec<Request>) -> Result<bulk::Verdicts, NetlinkError> {
        let bulk = &mut *self.bulk.lock().unwrap_or_else(PoisonError::into_inner);
        match bulk.apply(requests) {
            Ok(Some(verdicts)) => Ok(verdicts),
            Ok(None) => Err(NetlinkError::Closed),
            Err(source) => {
                tracing::debug!(%source, "netlink socket opened again");
                *bulk = Bulk::open(self.buffer).map_err(|source| NetlinkError::Open { source })?;
                Err(NetlinkError::Closed)
            }
        }
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
        let requests: Vec<_> = queries
            .into_iter()
            .map(|message| Request::new(message, 0))
            .collect();
        match self.exchange(operation, requests.clone()).await {
            Err(NetlinkError::Closed) => self.exchange(operation, requests).await,
            answers => answers,
        }
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
                .handle()?
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

/// Best effort: without CAP_NET_ADMIN the default size stays.
pub(super) fn enlarge(socket: &Socket) {
    enlarge_to(socket, RECEIVE_BUFFER);
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::netlink::request;

    /// What no answer within 25 s would take.
    const AT_ONCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_connection_that_broke_is_opened_again() {
        let transport = Transport::open().unwrap();
        transport.connection.lock().unwrap().task.abort();
        tokio::task::yield_now().await;
        let link = transport.query("look up an interface", vec![request::link_at(1)]);
        assert!(matches!(link.await.unwrap()[..], [Ok(Some(_))]));
        let links = transport.dump("list interfaces", request::dump_links(), Some);
        assert!(!links.await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn lost_answers_are_noticed_at_once_and_the_next_request_is_answered() {
        // The kernel answers a batch before anybody reads: that does not fit.
        let transport = Transport::with_buffer(1).unwrap();
        let queries = || vec![request::link_at(1); BATCH];
        let start = Instant::now();
        let answers = transport.query("look up an interface", queries()).await;
        assert!(matches!(answers, Err(NetlinkError::Closed)), "{answers:?}");
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        let one = transport.query("look up an interface", vec![request::link_at(1)]);
        assert!(matches!(one.await.unwrap()[..], [Ok(Some(_))]));
    }
}
