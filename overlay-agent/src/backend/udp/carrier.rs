//! Keeps a forwarder as the node is desired to be.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use thiserror::Error;
use tracing::{info, warn};

use super::{
    counters::{Counters, Event},
    device::NAME,
    forwarder::Forwarder,
    served,
    socket::Socket,
    table::Table,
    tun::Tun,
};
use crate::{inquiry::Served, model::Desired, netlink::admit};

/// Why there is no forwarder.
#[derive(Debug, Error)]
pub enum UdpError {
    #[error(
        "cannot attach to {NAME}: another process has it; stop flanneld, or whoever it is, and the agent \
         takes over"
    )]
    Busy,
    #[error("cannot attach to {NAME}: {0}")]
    Attach(io::Error),
    #[error(
        "UDP port {} of {} is in use by another process; stop flanneld, or whoever it is, and the agent \
         takes over", .0.port(), .0.ip()
    )]
    PortTaken(SocketAddrV4),
    #[error("cannot receive at UDP {address}: {source}")]
    Bind {
        address: SocketAddrV4,
        source: io::Error,
    },
    #[error("cannot start the forwarder: {0}")]
    Start(io::Error),
}

/// The forwarder of a node, once there is a device.
#[derive(Debug)]
pub struct Carrier {
    port: u16,
    running: Option<Running>,
    counters: Arc<Counters>,
    /// Answers `stats`.
    served: Option<Served>,
    is_unserved: bool,
    /// Datagrams from unknown senders that were reported.
    strangers: u64,
    /// The programs look at datagrams one by one, before the socket gets them.
    is_apart: bool,
}

#[derive(Debug)]
struct Running {
    forwarder: Forwarder,
    address: Ipv4Addr,
    socket: Socket,
}

impl Carrier {
    pub fn new(port: u16) -> Self {
        Self {
            port,
            running: None,
            counters: Arc::default(),
            served: None,
            is_unserved: false,
            strangers: 0,
            is_apart: false,
        }
    }

    /// Has a forwarder run as the node is desired to be, once its device is there.
    pub fn keep(&mut self, desired: &Desired) -> Result<(), UdpError> {
        let table = self.table(desired);
        let address = desired.local.underlay.address;
        self.serve();
        self.report_strangers();
        match &self.running {
            Some(running) if running.address == address && !running.forwarder.has_ended() => {
                running.forwarder.set_table(table);
                return Ok(());
            }
            // It has what the next one needs.
            _ => self.running = None,
        }
        let end = SocketAddrV4::new(address, self.port);
        let tun = Tun::attach(NAME).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => UdpError::Busy,
            _ => UdpError::Attach(error),
        })?;
        let socket = Socket::bind(end).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => UdpError::PortTaken(end),
            _ => UdpError::Bind {
                address: end,
                source,
            },
        })?;
        socket.merge(!self.is_apart);
        let counters = Arc::clone(&self.counters);
        let handle = socket.try_clone().map_err(UdpError::Start)?;
        let forwarder = Forwarder::start(tun, socket, table, counters).map_err(UdpError::Start)?;
        info!(device = NAME, address = %end, "forwarding in user space");
        self.running = Some(Running {
            forwarder,
            address,
            socket: handle,
        });
        Ok(())
    }

    /// Has the kernel put no datagrams together that the programs could carry, or does again.
    pub fn keep_apart(&mut self, is_apart: bool) {
        if self.is_apart == is_apart {
            return;
        }
        self.is_apart = is_apart;
        if let Some(running) = &self.running {
            running.socket.merge(!is_apart);
        }
    }

    /// Has the counters be asked for. Packets are forwarded all the same.
    fn serve(&mut self) {
        if self.served.is_some() {
            return;
        }
        match served::start(Arc::clone(&self.counters)) {
            Ok(served) => self.served = Some(served),
            Err(error) if !self.is_unserved => {
                self.is_unserved = true;
                warn!(%error, "`overlay-agent stats` does not show what the forwarder does");
            }
            // Said before.
            Err(_) => {}
        }
    }

    /// What the forwarder goes by. Leases that would steal others' packets have no say.
    fn table(&self, desired: &Desired) -> Table {
        let accepted = admit(desired, &BTreeMap::new()).accepted;
        let peers = accepted.into_values();
        Table::new(
            desired.local.network,
            desired.local.subnet,
            self.port,
            peers.map(|(peer, _)| (peer.subnet, peer.public_ip)),
        )
    }

    /// Whoever sends from an address that no lease shows is a node whose lease is not known, or whose
    /// address is changed on the way, or nobody's.
    fn report_strangers(&mut self) {
        let now = self.counters.packets(Event::UnknownSender);
        if now > self.strangers {
            warn!(
                packets = now - self.strangers,
                port = self.port,
                "tunnel packets from addresses that no lease shows were dropped"
            );
            self.strangers = now;
        }
    }
}
