//! Two pods, and what one of them finds out about the path to the other.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    differ::Mode,
    lab::{Lab, family::LabFamily},
    rules::Protocol,
    services::{Connection, Server},
    sys::{self, PathMtuDiscovery},
    traffic::Endpoint,
    wait::wait_for,
};

const PORT: u16 = 8080;
pub const DEADLINE: Duration = Duration::from_secs(15);

/// A pod on each of the first two nodes, the second of which serves.
pub struct Ends<A> {
    pub from: Endpoint<A>,
    pub to: Endpoint<A>,
    target: SocketAddr,
    _servers: [Server; 2],
}

impl<A: LabFamily> Ends<A> {
    pub fn start(lab: &Lab) -> Result<Self> {
        let pods = A::add_pods(lab, &['a'])?;
        let [from, to] = &pods[..] else {
            bail!("{} pods", pods.len());
        };
        Ok(Self {
            from: from.clone(),
            to: to.clone(),
            target: SocketAddr::new(to.address.into(), PORT),
            _servers: [
                Server::start(to, Protocol::Tcp, PORT)?,
                Server::start(to, Protocol::Udp, PORT)?,
            ],
        })
    }

    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.from, Protocol::Tcp, self.target, 0)
    }

    pub fn probe(&self, discovery: PathMtuDiscovery) -> Result<UdpSocket> {
        let own = SocketAddr::new(self.from.address.into(), 0);
        let socket = self.from.namespace.enter(|| -> Result<_> {
            let socket = UdpSocket::bind(own)?;
            socket.connect(self.target)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        sys::set_path_mtu_discovery(&socket, discovery)?;
        Ok(socket)
    }
}

/// Whether a datagram of `len` bytes comes back.
pub fn echo(socket: &UdpSocket, len: usize) -> Result<bool> {
    socket.send(&vec![7; len])?;
    Ok(socket.recv(&mut [0; 8_192]).is_ok())
}

/// Sends datagrams of `len` bytes, too large and not to be fragmented, until the kernel of the pod
/// knows better.
pub fn wait_refused(socket: &UdpSocket, len: usize) -> Result<()> {
    wait_for(
        "a datagram to be refused as too large",
        DEADLINE,
        || match socket.send(&vec![7; len]) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
            other => bail!("sent: {other:?}"),
        },
    )
}

/// Exchanges small packets until the fast path carries them, if there is one.
pub fn warm(lab: &Lab, mode: Mode, mut exchange: impl FnMut() -> Result<()>) -> Result<()> {
    wait_for("the fast path to carry a flow", DEADLINE, || {
        let before = lab.node(0).counters()?.fast(Hook::Egress);
        (0..10).try_for_each(|_| exchange())?;
        let fast = lab.node(0).counters()?.fast(Hook::Egress) - before;
        ensure!(
            mode == Mode::Off || fast >= 8,
            "{fast} of 10 packets were fast"
        );
        Ok(())
    })
}
