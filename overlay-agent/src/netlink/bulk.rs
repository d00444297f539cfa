//! Changes, many in one datagram: the kernel carries them out in order before the system call returns,
//! and acknowledges only the last one and those that it refuses. So programming a peer costs neither a
//! round trip nor an answer of its own.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NetlinkMessage},
    packet_route::RouteNetlinkMessage,
};

use super::datagram::messages;

/// Requests per datagram. It is bounded because refusals that the receive buffer cannot hold are lost:
/// each occupies about 800 bytes, of 208 KiB where the kernel does not grant more.
pub(super) const BATCH: usize = 256;

/// Of a datagram with answers.
const ANSWERS: usize = 32 << 10;

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

/// What the kernel made of each request.
pub(super) type Verdicts = Vec<io::Result<()>>;

/// A socket for changes.
#[derive(Debug)]
pub(super) struct Bulk {
    socket: Socket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Bulk {
    /// Opens the socket in the network namespace of the calling thread. `buffer` is the receive buffer
    /// asked for, in bytes.
    pub fn open(buffer: usize) -> io::Result<Self> {
        Ok(Self {
            socket: open(buffer)?,
            sequence: 0,
            datagram: Vec::new(),
        })
    }

    /// Carries out up to [`BATCH`] changes in order; `None` if answers were lost.
    pub fn apply(&mut self, requests: Vec<Request>) -> io::Result<Option<Verdicts>> {
        let count = requests.len();
        let first = self.sequence.wrapping_add(1);
        self.datagram.clear();
        for (at, request) in (1..).zip(requests) {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::from(request.message);
            let acknowledge = if at == count { NLM_F_ACK } else { 0 };
            message.header.flags = NLM_F_REQUEST | request.flags | acknowledge;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = self.datagram.len();
            let end = start + message.buffer_len();
            self.datagram.resize(end.next_multiple_of(4), 0);
            message.serialize(&mut self.datagram[start..end]);
        }
        if count == 0 {
            return Ok(Some(Vec::new()));
        }
        self.socket.send(&self.datagram, 0)?;
        self.verdicts(first, count)
    }

    /// Reads the answers up to that of the last request.
    fn verdicts(&self, first: u32, count: usize) -> io::Result<Option<Verdicts>> {
        let mut verdicts: Verdicts = (0..count).map(|_| Ok(())).collect();
        let mut answers = Vec::with_capacity(ANSWERS);
        loop {
            answers.clear();
            match self.socket.recv(&mut answers, 0) {
                Ok(_) => {}
                // All answers there are were there when the requests were sent.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(None),
                Err(error) => return Err(error),
            }
            for (sequence, verdict) in errors(&answers) {
                // Others are late answers to requests that nobody waits for any more.
                let at = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let Some(place) = verdicts.get_mut(at) {
                    *place = verdict;
                    if at + 1 == count {
                        return Ok(Some(verdicts));
                    }
                }
            }
        }
    }
}

/// A socket to the kernel, in the network namespace of the calling thread, that is never waited for.
pub(super) fn open(buffer: usize) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    enlarge_to(&socket, buffer);
    Ok(socket)
}

pub(super) fn enlarge_to(socket: &Socket, bytes: usize) {
    if let Err(error) = setsockopt(socket, RcvBufForce, &bytes) {
        tracing::debug!(%error, "netlink receive buffer keeps its default size");
    }
}

/// The acknowledgements and refusals of one datagram, by sequence number.
fn errors(datagram: &[u8]) -> Vec<(u32, io::Result<()>)> {
    let mut errors = Vec::new();
    for message in messages(datagram) {
        let code = message.payload().first_chunk();
        if let Some(code) = code.filter(|_| message.message_type() == NLMSG_ERROR) {
            let verdict = match i32::from_ne_bytes(*code) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            };
            errors.push((message.sequence_number(), verdict));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::request;

    /// No interface has it.
    const NOBODY: u32 = i32::MAX.cast_unsigned();

    fn look() -> Request {
        Request::new(request::link_at(1), 0)
    }

    #[test]
    fn each_refusal_is_that_of_its_request() {
        let mut bulk = Bulk::open(1 << 20).unwrap();
        for _ in 0..3 {
            let requests = vec![
                look(),
                request::delete_link(NOBODY),
                look(),
                request::delete_link(NOBODY),
            ];
            let verdicts = bulk.apply(requests).unwrap().unwrap();
            let refused: Vec<_> = verdicts.iter().map(Result::is_err).collect();
            assert_eq!(refused, [false, true, false, true]);
        }
        assert_eq!(bulk.apply(Vec::new()).unwrap().unwrap().len(), 0);
    }

    #[test]
    fn lost_answers_are_noticed_and_the_next_request_is_answered() {
        // The kernel answers a batch before anybody reads: that does not fit.
        let mut bulk = Bulk::open(1).unwrap();
        let requests = (0..BATCH).map(|_| look()).collect();
        assert!(bulk.apply(requests).unwrap().is_none());
        let mut verdicts = None;
        // What is still in the buffer is told apart from the answer.
        for _ in 0..BATCH {
            verdicts = verdicts.or(bulk.apply(vec![request::delete_link(NOBODY)]).unwrap());
        }
        assert!(verdicts.unwrap()[0].is_err());
    }
}
