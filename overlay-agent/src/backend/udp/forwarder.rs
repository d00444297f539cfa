//! The thread that carries packets between the device and the socket.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
        },
    },
};
use tracing::{debug, warn};

use super::{
    counters::{Counters, Event, Tally},
    merge::{About, Kind, Run},
    packet::{self, LONGEST_ERROR},
    socket::{Incoming, Outgoing, Socket},
    table::Table,
    tun::Tun,
};

/// Packets of a batch from the device, the most that one message may hold.
const OUT_BATCH: usize = 64;
/// Messages of a batch from the socket, each of one datagram or many.
const IN_BATCH: usize = 32;

/// A running forwarder. Dropping it ends the thread; the device stays.
#[derive(Debug)]
pub struct Forwarder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Read once for each batch, and held no longer than it takes to clone the pointer.
    table: RwLock<Arc<Table>>,
    /// Set before `stop`, which is for a thread that waits.
    is_stopped: AtomicBool,
    stop: EventFd,
    tun: Tun,
}

impl Forwarder {
    pub fn start(
        tun: Tun,
        socket: Socket,
        table: Table,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            table: RwLock::new(Arc::new(table)),
            is_stopped: AtomicBool::new(false),
            stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            tun,
        });
        let work = Work {
            answers: answer_socket().map_err(|error| {
                warn!(
                    %error,
                    "packets for subnets that no node has are dropped without an answer: that takes \
                     CAP_NET_RAW"
                );
            }),
            socket,
            shared: Arc::clone(&shared),
            counters,
            outgoing: Outgoing::new(OUT_BATCH),
            incoming: Incoming::new(IN_BATCH),
            whole: Whole::default(),
            tally: Tally::default(),
        };
        let thread = thread::Builder::new().name("udp forwarder".to_owned());
        let thread = thread.spawn(move || work.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Goes by another table from the next batch on.
    pub fn set_table(&self, table: Table) {
        let mut current = self
            .shared
            .table
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if **current != table {
            *current = Arc::new(table);
        }
    }

    /// Whether it carries nothing any more: the device has gone from under it.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished) || self.shared.tun.is_gone()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        let _ = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    socket: Socket,
    /// Sends whole packets, headers and all.
    answers: Result<OwnedFd, ()>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    outgoing: Outgoing,
    incoming: Incoming,
    whole: Whole,
    tally: Tally,
}

/// Which packets the kernel takes many as one of.
#[derive(Clone, Copy, Debug)]
struct Whole {
    udp: bool,
    tcp: bool,
}

impl Default for Whole {
    fn default() -> Self {
        Self {
            udp: true,
            tcp: true,
        }
    }
}

impl Whole {
    const fn takes(self, kind: Kind) -> bool {
        match kind {
            Kind::Udp => self.udp,
            Kind::Tcp => self.tcp,
        }
    }

    const fn refuse(&mut self, kind: Kind) {
        match kind {
            Kind::Udp => self.udp = false,
            Kind::Tcp => self.tcp = false,
        }
    }
}

impl Work {
    fn run(mut self) {
        if let Err(error) = self.carry() {
            debug!(%error, "the forwarder ends");
        }
    }

    /// Carries packets until it is stopped.
    fn carry(&mut self) -> io::Result<()> {
        while self.wait()? {
            // As long as there is something, asking for it is cheaper than waiting for it.
            loop {
                let table = self.table();
                let (out, received) = (self.carry_out(&table), self.carry_in(&table));
                self.counters.take(&mut self.tally);
                // Both have been tried.
                let (out, received) = (out?, received?);
                if !out && !received {
                    break;
                }
                if self.shared.is_stopped.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn table(&self) -> Arc<Table> {
        let table = self.shared.table.read();
        Arc::clone(&table.unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for packets. Returns whether there are any: otherwise the thread is to end.
    fn wait(&self) -> io::Result<bool> {
        let fds = [
            self.shared.stop.as_fd(),
            self.shared.tun.as_fd(),
            self.socket.as_fd(),
        ];
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        let [stop, tun, _] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        // The device was deleted.
        Ok(stop.is_empty() && !tun.contains(PollFlags::POLLERR))
    }

    /// Carries a batch from the device to the socket. Returns whether there was any.
    fn carry_out(&mut self, table: &Table) -> io::Result<bool> {
        let mut read = 0;
        while let Some(room) = self.outgoing.room() {
            let len = match self.shared.tun.read(room) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            read += 1;
            let packet = &mut room[About::LEN..][..len];
            match table.outbound(packet) {
                Ok(node) => self.outgoing.push(node, len),
                Err(event) => {
                    self.tally.add(event);
                    if event == Event::NoNode {
                        answer(&self.answers, packet, table.own_address());
                    }
                }
            }
            // Packets that are dropped take no room in the batch.
            if read == OUT_BATCH {
                break;
            }
        }
        let (sent, refused) = self.outgoing.send(&self.socket, table.port());
        self.tally.add_many(Event::Sent, sent);
        self.tally.add_many(Event::SendRefused, refused);
        Ok(read > 0)
    }

    /// Carries a batch from the socket to the device. Returns whether there was any.
    fn carry_in(&mut self, table: &Table) -> io::Result<bool> {
        let messages = match self.incoming.receive(&self.socket) {
            Ok(messages) => messages,
            // ICMP errors about what was sent, should the kernel report one.
            Err(error) => {
                debug!(%error, "receiving");
                0
            }
        };
        let mut run = Run::new();
        for (from, packet) in self.incoming.datagrams(messages) {
            if let Err(event) = table.inbound(from, packet) {
                self.tally.add(event);
                continue;
            }
            let packet: &[u8] = packet;
            if !run.push(packet, |kind| self.whole.takes(kind)) {
                give(&self.shared.tun, &mut run, &mut self.whole, &mut self.tally)?;
                run.push(packet, |kind| self.whole.takes(kind));
            }
        }
        give(&self.shared.tun, &mut run, &mut self.whole, &mut self.tally)?;
        Ok(messages > 0)
    }
}

/// Gives packets to the device, as one if they are several, and empties the run.
fn give(tun: &Tun, run: &mut Run<'_>, whole: &mut Whole, tally: &mut Tally) -> io::Result<()> {
    let kind = run.kind();
    let taken = run.whole().map(|(parts, count)| tun.write(&parts[..count]));
    match (taken, kind) {
        (Some(Ok(())), _) => {
            tally.add_many(Event::Received, run.packets().len() as u64);
            run.clear();
            return Ok(());
        }
        // The kernel knows no such packets: before Linux 6.2 it has none of UDP.
        (Some(Err(error)), Some(kind)) if error.kind() == io::ErrorKind::InvalidInput => {
            debug!(?kind, "the device takes packets one by one");
            whole.refuse(kind);
        }
        _ => {}
    }
    for packet in run.packets() {
        let parts = [IoSlice::new(&About::PLAIN), IoSlice::new(packet)];
        match tun.write(&parts) {
            Ok(()) => tally.add(Event::Received),
            // There is no device any more.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Err(error),
            Err(_) => tally.add(Event::DeviceRefused),
        }
    }
    run.clear();
    Ok(())
}

/// A socket for packets with their own IP headers.
fn answer_socket() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::Raw,
    )
}

/// Tells the sender of a packet that nobody has the destination's subnet. The packet comes from this host's own
/// address: at the device, where flannel writes it, the kernel would take it for a forgery.
fn answer(socket: &Result<OwnedFd, ()>, offender: &[u8], own: Ipv4Addr) {
    let mut packet = [0; LONGEST_ERROR];
    let (Ok(socket), Some(len), Some((source, _))) = (
        socket,
        packet::net_unreachable(offender, own, &mut packet),
        packet::addresses(offender),
    ) else {
        return;
    };
    let to = SockaddrIn::from(SocketAddrV4::new(source, 0));
    let sent = sendto(socket.as_raw_fd(), &packet[..len], &to, MsgFlags::empty());
    if let Err(error) = sent {
        debug!(%error, %source, "no answer about a subnet that no node has");
    }
}
