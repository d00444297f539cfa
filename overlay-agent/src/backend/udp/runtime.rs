//! Keeps a forwarder as the node is desired to be.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use futures::future::{BoxFuture, FutureExt as _, ready};
use ipnetwork::{IpNetwork, Ipv4Network};
use thiserror::Error;
use tracing::{info, warn};

use super::{
    counters::{Counters, Event},
    device::NAME,
    forwarder::Forwarder,
    served::Served,
    socket::Socket,
    table::Table,
    tun::Tun,
};
use crate::{
    backend::{Runtime, RuntimeError},
    model::{Desired, Family},
    netlink::{PeerPath, Vtep},
};

#[derive(Debug, Error)]
enum UdpError {
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
    #[error("the udp backend carries IPv4 only")]
    NotIpv4,
}

/// The forwarder of a node, once there is a device.
#[derive(Debug)]
pub struct Carrier {
    port: u16,
    running: Option<Running>,
    counters: Arc<Counters>,
    /// Answers `stats`.
    served: Option<Served>,
    /// Datagrams from unknown senders that were reported.
    strangers: u64,
}

#[derive(Debug)]
struct Running {
    forwarder: Forwarder,
    address: Ipv4Addr,
    ifindex: u32,
}

impl Carrier {
    pub fn new(port: u16) -> Self {
        Self {
            port,
            running: None,
            counters: Arc::default(),
            served: None,
            strangers: 0,
        }
    }

    fn keep<F: Family>(
        &mut self,
        desired: &Desired<F>,
        device: &Vtep,
        paths: &BTreeMap<F::Network, PeerPath>,
    ) -> Result<(), UdpError> {
        let (table, address) = self.table(desired, paths).ok_or(UdpError::NotIpv4)?;
        if self.served.is_none() {
            self.served = Served::start(Arc::clone(&self.counters));
        }
        self.report_strangers();
        match &self.running {
            Some(running)
                if running.address == address
                    && running.ifindex == device.ifindex
                    && !running.forwarder.has_ended() =>
            {
                running.forwarder.set_table(table);
                return Ok(());
            }
            // It has what the next one needs.
            _ => self.running = None,
        }
        let address = SocketAddrV4::new(address, self.port);
        let tun = Tun::attach(NAME).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => UdpError::Busy,
            _ => UdpError::Attach(error),
        })?;
        let socket = Socket::bind(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => UdpError::PortTaken(address),
            _ => UdpError::Bind { address, source },
        })?;
        let counters = Arc::clone(&self.counters);
        let forwarder = Forwarder::start(tun, socket, table, counters).map_err(UdpError::Start)?;
        info!(device = NAME, %address, "forwarding in user space");
        self.running = Some(Running {
            forwarder,
            address: *address.ip(),
            ifindex: device.ifindex,
        });
        Ok(())
    }

    /// What the forwarder goes by, and the address it sends from.
    fn table<F: Family>(
        &self,
        desired: &Desired<F>,
        paths: &BTreeMap<F::Network, PeerPath>,
    ) -> Option<(Table, Ipv4Addr)> {
        let local = &desired.local;
        let peers = desired.peers.values();
        let accepted = peers.filter(|peer| paths.contains_key(&peer.subnet));
        let peers =
            accepted.filter_map(|peer| Some((v4_network::<F>(peer.subnet)?, v4(peer.public_ip)?)));
        let table = Table::new(
            v4_network::<F>(local.network)?,
            v4_network::<F>(local.subnet)?,
            self.port,
            peers,
        );
        Some((table, v4(local.underlay.address)?))
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

impl<F: Family> Runtime<F> for Carrier {
    fn follow<'a>(
        &'a mut self,
        desired: &'a Desired<F>,
        device: Option<&'a Vtep>,
        paths: &'a BTreeMap<F::Network, PeerPath>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let kept = device.map_or(Ok(()), |device| self.keep(desired, device, paths));
        ready(kept.map_err(RuntimeError::from)).boxed()
    }
}

fn v4(address: impl Into<IpAddr>) -> Option<Ipv4Addr> {
    match address.into() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v4_network<F: Family>(network: F::Network) -> Option<Ipv4Network> {
    match network.into() {
        IpNetwork::V4(network) => Some(network),
        IpNetwork::V6(_) => None,
    }
}
