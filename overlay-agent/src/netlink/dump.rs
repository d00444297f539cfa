//! Lists of the kernel's objects, read one datagram after the other: the kernel goes on with the list when the last
//! one was read, and nobody has to keep the messages of them all.

use std::io;

use netlink_sys::Socket;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};

use super::{bulk, datagram::messages};

/// The kernel makes no larger ones for a list.
const DATAGRAM: usize = 32 << 10;

/// A list that is being read, over a socket of its own.
pub(super) struct Dump {
    socket: Socket,
    datagram: Vec<u8>,
    /// Something changed meanwhile: the list may lack objects, or have them twice.
    pub interrupted: bool,
}

/// What has come of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
    /// With the kernel's number of the error.
    Refused(i32),
    /// Answers did not find room.
    Lost,
}

impl Dump {
    /// Asks in the network namespace of the calling thread. `buffer` is the receive buffer asked for, in bytes.
    pub fn start(request: RouteNetlinkMessage, buffer: usize) -> io::Result<Self> {
        let socket = bulk::open(buffer)?;
        // Absent before Linux 4.20; it only narrows lists to what is asked for.
        if socket.set_netlink_get_strict_chk(true).is_err() {
            tracing::debug!("kernel without strict netlink checks");
        }
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.finalize();
        let mut datagram = vec![0; message.buffer_len()];
        message.serialize(&mut datagram);
        socket.send(&datagram, 0)?;
        Ok(Self {
            socket,
            datagram: Vec::with_capacity(DATAGRAM),
            interrupted: false,
        })
    }

    /// Reads a datagram, and hands its objects out.
    pub fn read(&mut self, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<Progress> {
        self.datagram.clear();
        match self.socket.recv(&mut self.datagram, 0) {
            Ok(_) => {}
            // The next one is there as soon as the last was read.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Lost),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Progress::Lost),
            Err(error) => return Err(error),
        }
        for message in messages(&self.datagram) {
            let message = match NetlinkMessage::deserialize(message.into_inner()) {
                Ok(message) => message,
                Err(error) => {
                    tracing::debug!(%error, "a message of the kernel that cannot be read");
                    continue;
                }
            };
            self.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(object) => each(object),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(Progress::Done),
                NetlinkPayload::Done(done) => return Ok(Progress::Refused(done.code)),
                NetlinkPayload::Error(error) => return Ok(Progress::Refused(error.raw_code())),
                _ => {}
            }
        }
        Ok(Progress::More)
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::{AddressFamily, route::RouteMessage};

    use super::*;
    use crate::netlink::request;

    #[test]
    fn a_list_ends_with_its_last_object() {
        let mut dump = Dump::start(request::dump_links(), 1 << 20).unwrap();
        let mut links = 0;
        let mut progress = Progress::More;
        while progress == Progress::More {
            progress = dump.read(|_| links += 1).unwrap();
        }
        assert_eq!(progress, Progress::Done);
        // The loopback interface is in every network namespace.
        assert!(links > 0);
        assert_eq!(dump.read(|_| ()).unwrap(), Progress::Lost);
    }

    #[test]
    fn a_refusal_carries_the_number_of_the_error() {
        // The kernel lists no routes to one network alone.
        let mut routes = RouteMessage::default();
        routes.header.address_family = AddressFamily::Inet;
        routes.header.destination_prefix_length = 24;
        let mut dump = Dump::start(RouteNetlinkMessage::GetRoute(routes), 1 << 20).unwrap();
        let refused = dump.read(|object| panic!("{object:?}")).unwrap();
        assert_eq!(refused, Progress::Refused(-libc::EINVAL));
    }
}
