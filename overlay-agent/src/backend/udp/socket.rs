//! The socket of tunnel packets: many datagrams per system call, and where the kernel can, many per pass
//! of its stack.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's types for counts and lengths that a batch bounds"
)]

use std::{
    io, iter, mem,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr,
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket,
            sockopt,
        },
        time::TimeVal,
    },
};

use super::{
    merge::About,
    packet::{HEADER, LONGEST, MAX_SEGMENTS},
};

/// Datagrams the kernel holds for the forwarder, bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// A packet that the underlay does not take for so long is dropped, so that the others are not held up.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// The UDP socket of this node.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Sends from and receives at this address and port.
    pub fn bind(address: SocketAddrV4) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Udp,
        )?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
        setsockopt(
            &fd,
            sockopt::SendTimeout,
            &TimeVal::new(0, SEND_TIMEOUT.subsec_micros().into()),
        )?;
        // More is better, and less will do.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self(fd))
    }

    /// Another handle on the socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Whether datagrams are to be received as one that a node has sent one behind the other, where the kernel can.
    pub fn merge(&self, is_wanted: bool) {
        // It costs less, and is the same.
        let _ = setsockopt(&self.0, sockopt::UdpGroSegment, &is_wanted);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Datagrams of one message may not have more bytes than an IP packet has room for.
const MAX_MESSAGE: usize = LONGEST - HEADER - 8;

/// Bytes of packets in a batch, beside room for one more, however long: the device's MTU may be raised while packets
/// are read from it.
const BATCH: usize = 3 * LONGEST;

/// Datagrams to be sent. The packets stay where they were read, one behind the other.
pub struct Outgoing {
    bytes: Box<[u8]>,
    /// Where the last packet ends.
    used: usize,
    iovecs: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_in]>,
    controls: Box<[SegmentControl]>,
    headers: Box<[libc::mmsghdr]>,
    packets: Vec<Packet>,
    /// Equal datagrams to one node go as one message.
    segments: bool,
}

/// The control message that says how long each datagram of a message is.
#[derive(Clone, Copy)]
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    size: u16,
}

/// A packet of a batch.
#[derive(Clone, Copy, Debug)]
struct Packet {
    node: Ipv4Addr,
    at: usize,
    len: usize,
}

/// A message: so many packets of a batch, from this one on.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: Packet,
    count: usize,
    bytes: usize,
}

// SAFETY: the pointers in the headers lead into the boxes beside them, which move with them and are nobody
// else's.
unsafe impl Send for Outgoing {}

impl Outgoing {
    /// Room for so many packets.
    pub fn new(count: usize) -> Self {
        // SAFETY: all zeros is a value of each of these structs: null pointers and no lengths.
        let (iovec, name, header) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        // SAFETY: likewise; all of it is written here and later.
        let mut control: SegmentControl = unsafe { mem::zeroed() };
        control.header.cmsg_len = (mem::offset_of!(SegmentControl, size) + size_of::<u16>()) as _;
        control.header.cmsg_level = libc::SOL_UDP;
        control.header.cmsg_type = libc::UDP_SEGMENT;
        Self {
            bytes: vec![0; About::LEN + BATCH + LONGEST].into(),
            used: About::LEN,
            iovecs: vec![iovec; count].into(),
            names: vec![name; count].into(),
            controls: vec![control; count].into(),
            headers: vec![header; count].into(),
            packets: Vec::with_capacity(count),
            segments: true,
        }
    }

    /// Where the next packet is to be read to, behind [`About::LEN`] bytes that are others'; `None` when the batch is
    /// full.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        let is_full = self.packets.len() == self.headers.len() || self.used > BATCH;
        (!is_full).then(|| &mut self.bytes[self.used - About::LEN..][..About::LEN + LONGEST])
    }

    /// The packet read last goes to this node.
    pub fn push(&mut self, node: Ipv4Addr, len: usize) {
        self.packets.push(Packet {
            node,
            at: self.used,
            len,
        });
        self.used += len;
    }

    /// Sends the batch. Returns how many packets the kernel has taken and how many it has not.
    pub fn send(&mut self, socket: &Socket, port: u16) -> (u64, u64) {
        let total = self.packets.len();
        let mut refused = 0;
        let mut at = 0;
        while at < total {
            let messages = self.fill(at, port);
            let sent = self.send_messages(socket, messages);
            match sent {
                Ok(count) => {
                    let runs = runs(&self.packets[at..], self.segments);
                    at += runs.take(count).map(|run| run.count).sum::<usize>();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The underlay takes nothing, and what waits behind this batch is newer.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    refused += (total - at) as u64;
                    break;
                }
                Err(error) => {
                    let first = runs(&self.packets[at..], self.segments).next();
                    let first = first.map_or(1, |run| run.count);
                    if first > 1 {
                        // Without checksum offload at the interface, or with IPsec, there are no such messages;
                        // nor where the path's MTU is smaller than the interface's.
                        let (sent, not) = self.send_singly(socket, at, first, port);
                        debug_assert_eq!(sent + not, first as u64);
                        refused += not;
                        if error.raw_os_error() == Some(libc::EIO) {
                            self.segments = false;
                        }
                    } else {
                        refused += 1;
                    }
                    at += first;
                }
            }
        }
        self.packets.clear();
        self.used = About::LEN;
        (total as u64 - refused, refused)
    }

    /// Sends these packets one by one, after the kernel would not have them as one message.
    fn send_singly(
        &mut self,
        socket: &Socket,
        first: usize,
        count: usize,
        port: u16,
    ) -> (u64, u64) {
        let segments = mem::replace(&mut self.segments, false);
        let mut refused = 0;
        for at in first..first + count {
            self.fill(at, port);
            loop {
                match self.send_messages(socket, 1) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    sent => {
                        refused += u64::from(!matches!(sent, Ok(1)));
                        break;
                    }
                }
            }
        }
        self.segments = segments;
        (count as u64 - refused, refused)
    }

    /// Writes the headers of the packets from this one on. Returns how many messages they are.
    fn fill(&mut self, from: usize, port: u16) -> usize {
        let mut messages = 0;
        for run in runs(&self.packets[from..], self.segments) {
            self.iovecs[messages] = libc::iovec {
                iov_base: self.bytes[run.first.at..].as_mut_ptr().cast(),
                iov_len: run.bytes,
            };
            self.names[messages] = name(run.first.node, port);
            let header = &mut self.headers[messages].msg_hdr;
            header.msg_name = (&raw mut self.names[messages]).cast();
            header.msg_namelen = socklen::<libc::sockaddr_in>();
            header.msg_iov = &raw mut self.iovecs[messages];
            header.msg_iovlen = 1;
            if run.count > 1 {
                let control = &mut self.controls[messages];
                control.size = run.first.len as u16;
                header.msg_control = (&raw mut *control).cast();
                header.msg_controllen = size_of::<SegmentControl>() as _;
            } else {
                header.msg_control = ptr::null_mut();
                header.msg_controllen = 0;
            }
            messages += 1;
        }
        messages
    }

    fn send_messages(&mut self, socket: &Socket, count: usize) -> io::Result<usize> {
        let headers = &mut self.headers[..count];
        // SAFETY: each header was just filled with pointers to live parts of this value, and there are
        // `count` of them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.0.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Cuts a batch into messages: packets to one node of one length, of which the last may be shorter.
fn runs(packets: &[Packet], segments: bool) -> impl Iterator<Item = Run> {
    let mut rest = packets;
    iter::from_fn(move || {
        let (&first, others) = rest.split_first()?;
        let mut run = Run {
            first,
            count: 1,
            bytes: first.len,
        };
        let candidates = if segments { MAX_SEGMENTS - 1 } else { 0 };
        for other in others.iter().take(candidates) {
            let bytes = run.bytes + other.len;
            if other.node != first.node || other.len > first.len || bytes > MAX_MESSAGE {
                break;
            }
            run.count += 1;
            run.bytes = bytes;
            if other.len < first.len {
                break;
            }
        }
        rest = &rest[run.count..];
        Some(run)
    })
}

fn name(node: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(node).to_be(),
        },
        sin_zero: [0; 8],
    }
}

fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// Datagrams received.
pub struct Incoming {
    slots: Box<[u8]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_in]>,
    controls: Box<[u8]>,
    control: usize,
    headers: Box<[libc::mmsghdr]>,
}

/// The kernel may hand over datagrams of one sender as one message, as long as this.
const MESSAGE: usize = 1 << 16;
/// Messages begin in different sets of the caches.
const STRIDE: usize = MESSAGE + 192;

// SAFETY: as of `Outgoing`.
unsafe impl Send for Incoming {}

impl Incoming {
    /// Room for so many messages.
    pub fn new(count: usize) -> Self {
        // SAFETY: all zeros is a value of each of these structs: null pointers and no lengths.
        let (iovec, name, header) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        let control = cmsg_space!(i32).capacity();
        Self {
            slots: vec![0; count * STRIDE].into(),
            iovecs: vec![iovec; count].into(),
            names: vec![name; count].into(),
            controls: vec![0; count * control].into(),
            control,
            headers: vec![header; count].into(),
        }
    }

    /// Receives what there is. Returns how many messages; none if there was nothing.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        for (at, header) in self.headers.iter_mut().enumerate() {
            self.iovecs[at] = libc::iovec {
                iov_base: self.slots[at * STRIDE..].as_mut_ptr().cast(),
                iov_len: MESSAGE,
            };
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut self.names[at]).cast();
            header.msg_namelen = socklen::<libc::sockaddr_in>();
            header.msg_iov = &raw mut self.iovecs[at];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[at * self.control..].as_mut_ptr().cast();
            header.msg_controllen = self.control as _;
        }
        // SAFETY: each header was just filled with pointers to live parts of this value.
        let received = unsafe {
            libc::recvmmsg(
                socket.0.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        match usize::try_from(received) {
            Ok(count) => Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error => Err(error),
            },
        }
    }

    /// The datagrams of so many messages, each with its sender.
    pub fn datagrams(
        &mut self,
        messages: usize,
    ) -> impl Iterator<Item = (SocketAddrV4, &mut [u8])> {
        let slots = self.slots.chunks_mut(STRIDE);
        let about = self.names.iter().zip(&self.headers);
        slots
            .zip(about)
            .take(messages)
            .flat_map(|(slot, (name, header))| {
                let from = SocketAddrV4::new(
                    u32::from_be(name.sin_addr.s_addr).into(),
                    u16::from_be(name.sin_port),
                );
                let len = (header.msg_len as usize).min(MESSAGE);
                let size = segment_size(&header.msg_hdr).unwrap_or(len);
                let datagrams = slot[..len].chunks_mut(size.max(1));
                datagrams.map(move |datagram| (from, datagram))
            })
    }
}

/// How long the datagrams are that the kernel has put together.
fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has just written the header's control messages, into the room they lead to.
    let first = unsafe { libc::CMSG_FIRSTHDR(header).as_ref() }?;
    if (first.cmsg_level, first.cmsg_type) != (libc::SOL_UDP, libc::UDP_GRO) {
        return None;
    }
    // SAFETY: a message of this type carries an `int`.
    let size = unsafe { libc::CMSG_DATA(first).cast::<i32>().read_unaligned() };
    usize::try_from(size).ok().filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn counts(packets: &[(Ipv4Addr, usize)], segments: bool) -> Vec<usize> {
        let packet = |&(node, len): &_| Packet { node, at: 0, len };
        let packets: Vec<_> = packets.iter().map(packet).collect();
        runs(&packets, segments).map(|run| run.count).collect()
    }

    #[test]
    fn equal_packets_to_one_node_are_one_message_that_a_shorter_one_ends() {
        let packets = [(A, 100), (A, 100), (A, 60), (A, 100), (B, 100), (B, 101)];
        assert_eq!(counts(&packets, true), [3, 1, 1, 1]);
        assert_eq!(counts(&packets, false), [1; 6]);
        assert_eq!(counts(&[], true), [0; 0]);
    }

    #[test]
    fn messages_are_no_longer_than_the_kernel_takes() {
        assert_eq!(counts(&[(A, 20); 100], true), [64, 36]);
        assert_eq!(counts(&[(A, 1472); 64], true), [44, 20]);
        assert_eq!(counts(&[(A, 9000); 8], true), [7, 1]);
    }

    #[test]
    fn what_is_sent_in_messages_arrives_as_datagrams() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let receiver = UdpSocket::bind(any).unwrap();
        let port = receiver.local_addr().unwrap().port();
        let sender = Socket::bind(any).unwrap();
        let mut outgoing = Outgoing::new(8);
        let lengths = [100, 100, 100, 20, 1500, 21];
        for (number, len) in (0..).zip(lengths) {
            outgoing.room().unwrap()[About::LEN..][..len].fill(number);
            outgoing.push(Ipv4Addr::LOCALHOST, len);
        }
        assert_eq!(outgoing.send(&sender, port), (6, 0));
        let mut datagram = [0; 2000];
        for (number, len) in (0..).zip(lengths) {
            assert_eq!(receiver.recv(&mut datagram).unwrap(), len);
            assert!(datagram[..len].iter().all(|byte| *byte == number));
        }
    }

    #[test]
    fn a_batch_that_meets_a_refusal_goes_on_behind_it() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let receiver = UdpSocket::bind(any).unwrap();
        let port = receiver.local_addr().unwrap().port();
        let sender = Socket::bind(any).unwrap();
        let mut outgoing = Outgoing::new(8);
        // From a loopback address nothing else is reached.
        let elsewhere = Ipv4Addr::new(192, 0, 2, 1);
        for node in [elsewhere, elsewhere, Ipv4Addr::LOCALHOST, elsewhere] {
            outgoing.push(node, 50);
        }
        assert_eq!(outgoing.send(&sender, port), (1, 3));
        assert_eq!(receiver.recv(&mut [0; 100]).unwrap(), 50);
    }

    #[test]
    fn what_arrives_is_told_apart_by_sender_and_datagram() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let receiver = Socket::bind(any).unwrap();
        let address = nix::sys::socket::getsockname::<SockaddrIn>(receiver.0.as_raw_fd()).unwrap();
        let sender = Socket::bind(any).unwrap();
        let from = nix::sys::socket::getsockname::<SockaddrIn>(sender.0.as_raw_fd()).unwrap();
        let mut outgoing = Outgoing::new(8);
        for (number, len) in (0..).zip([80, 80, 80, 7, 900]) {
            outgoing.room().unwrap()[About::LEN..][..len].fill(number);
            outgoing.push(Ipv4Addr::LOCALHOST, len);
        }
        assert_eq!(outgoing.send(&sender, address.port()), (5, 0));
        let mut incoming = Incoming::new(4);
        let mut seen = Vec::new();
        while seen.len() < 5 {
            let messages = incoming.receive(&receiver).unwrap();
            for (sender, bytes) in incoming.datagrams(messages) {
                assert_eq!(sender.port(), from.port());
                seen.push((bytes[0], bytes.len()));
            }
        }
        assert_eq!(seen, [(0, 80), (1, 80), (2, 80), (3, 7), (4, 900)]);
        assert_eq!(incoming.receive(&receiver).unwrap(), 0);
    }
}
