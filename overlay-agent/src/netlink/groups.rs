//! Sockets of multicast groups. What was not read yet is in the kernel's buffer and nowhere else, so
//! that is the bound; if it overflows, the next read says so.

use std::{
    io,
    task::{Context, Poll, ready},
};

use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use super::transport::enlarge;

/// More than one notification. The kernel writes them into pages of up to 32 KiB.
const DATAGRAM_BYTES: usize = 64 << 10;

/// A socket that receives what some groups are told.
pub(super) struct GroupSocket {
    socket: TokioSocket,
    datagram: Vec<u8>,
}

impl GroupSocket {
    /// Joins a mask of legacy multicast groups in the calling thread's network namespace.
    pub fn join(protocol: isize, groups: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        enlarge(socket.socket_ref());
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self {
            socket,
            datagram: Vec::with_capacity(DATAGRAM_BYTES),
        })
    }

    /// The next datagram; `None` if some were lost before it.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<&[u8]>>> {
        self.datagram.clear();
        let received = ready!(self.socket.poll_recv(cx, &mut self.datagram));
        Poll::Ready(match received {
            Ok(()) => Ok(Some(&self.datagram)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None),
            Err(error) => Err(error),
        })
    }
}
