//! Servers that say who they are and whom they talk to, and connections to them on which every
//! byte is verified. Unlike [`crate::traffic`], a connection stays open while a test changes
//! something, and its ends need not agree about each other's address: that is what NAT does.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
            sockopt,
        },
        time::TimeVal,
    },
};

use crate::{
    rules::Protocol,
    traffic::{Address, Endpoint, PATIENCE, pattern},
    wait::scaled,
};

/// The server's own address, and the client's address and port as the server sees them; IPv4 addresses
/// are mapped into IPv6.
const GREETING_LEN: usize = 34;
/// How often a server looks whether it shall end.
const TICK: Duration = Duration::from_millis(20);
/// How long the echo of one datagram may take, and how often it is sent.
const ECHO_PATIENCE: Duration = Duration::from_secs(2);
const ECHO_ATTEMPTS: u32 = 3;
/// Payload of one datagram, the greeting that comes back with it excluded.
const DATAGRAM: usize = 1200;

/// Bytes that show whether a connection is cut.
const PROBE: usize = 100;

/// A server that echoes, until it is dropped.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

/// Who answered, and what it knows of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    pub by: IpAddr,
    pub source: SocketAddr,
}

/// An open conversation with a [`Server`].
#[derive(Debug)]
pub struct Connection {
    pub served: Served,
    stream: Stream,
    /// Bytes sent, and received back, so far.
    offset: u64,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Server {
    pub fn start<A: Address>(on: &Endpoint<A>, protocol: Protocol, port: u16) -> Result<Self> {
        let own = on.address.into();
        let address = SocketAddr::new(own, port);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        match protocol {
            Protocol::Tcp => {
                let listener = on.namespace.enter(|| TcpListener::bind(address));
                let listener = listener.with_context(|| format!("listen on {address}"))?;
                listener.set_nonblocking(true)?;
                thread::spawn(move || accept_all(&listener, own, &stopped));
            }
            Protocol::Udp => {
                let socket = on.namespace.enter(|| UdpSocket::bind(address));
                let socket = socket.with_context(|| format!("bind {address}"))?;
                socket.set_read_timeout(Some(TICK))?;
                thread::spawn(move || answer_datagrams(&socket, own, &stopped));
            }
        }
        Ok(Self { address, stop })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Served {
    fn encode(self) -> [u8; GREETING_LEN] {
        let mut greeting = [0; GREETING_LEN];
        for (at, address) in [(0, self.by), (16, self.source.ip())] {
            let address = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            greeting[at..at + 16].copy_from_slice(&address.octets());
        }
        greeting[32..].copy_from_slice(&self.source.port().to_be_bytes());
        greeting
    }

    fn decode(greeting: [u8; GREETING_LEN]) -> Self {
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&greeting[at..at + 16]);
            Ipv6Addr::from(octets).to_canonical()
        };
        let port = u16::from_be_bytes([greeting[32], greeting[33]]);
        Self {
            by: address(0),
            source: SocketAddr::new(address(16), port),
        }
    }
}

fn accept_all(listener: &TcpListener, own: IpAddr, stopped: &Arc<AtomicBool>) {
    while !stopped.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, source)) => {
                let stopped = Arc::clone(stopped);
                let served = Served { by: own, source };
                // A connection that breaks is the client's to report.
                thread::spawn(move || echo_stream(&stream, served, &stopped));
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn echo_stream(mut stream: &TcpStream, served: Served, stopped: &AtomicBool) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(scaled(PATIENCE)))?;
    stream.write_all(&served.encode())?;
    let mut buffer = vec![0; 1 << 16];
    while !stopped.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => stream.write_all(&buffer[..len])?,
            Err(error) if is_timeout(error.kind()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, own: IpAddr, stopped: &AtomicBool) {
    let mut buffer = [0; 1 << 11];
    while !stopped.load(Ordering::Relaxed) {
        let Ok((len, source)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let served = Served { by: own, source };
        let answer = [&served.encode(), &buffer[..len]].concat();
        // An answer that cannot be sent is missed, and reported, by the client.
        drop(socket.send_to(&answer, source));
    }
}

impl Connection {
    /// Connects `client` to a server behind `target`, from `source_port` unless that is 0.
    pub fn open<A: Address>(
        client: &Endpoint<A>,
        protocol: Protocol,
        target: impl Into<SocketAddr>,
        source_port: u16,
    ) -> Result<Self> {
        let target = target.into();
        let what = || {
            format!(
                "{} connection from {} to {target}",
                protocol.name(),
                client.address
            )
        };
        let socket = client
            .namespace
            .enter(|| connected(protocol, target, source_port, scaled(PATIENCE)))
            .with_context(what)?;
        let mut connection = Self {
            served: Served {
                by: Ipv4Addr::UNSPECIFIED.into(),
                source: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            },
            stream: match protocol {
                Protocol::Tcp => Stream::Tcp(socket.into()),
                Protocol::Udp => Stream::Udp(socket.into()),
            },
            offset: 0,
        };
        connection.greet().with_context(what)?;
        Ok(connection)
    }

    fn greet(&mut self) -> Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(scaled(PATIENCE)))?;
                stream.set_write_timeout(Some(scaled(PATIENCE)))?;
                let mut greeting = [0; GREETING_LEN];
                stream.read_exact(&mut greeting).context("greeting")?;
                self.served = Served::decode(greeting);
            }
            Stream::Udp(socket) => {
                socket.set_read_timeout(Some(scaled(ECHO_PATIENCE)))?;
                self.served = echo_datagram(socket, 0, DATAGRAM)?;
            }
        }
        Ok(())
    }

    /// Sends `bytes` in writes of `write` bytes and verifies that they come back, from the same
    /// server, which still sees the same client.
    pub fn exchange(&mut self, bytes: usize, write: usize) -> Result<()> {
        let offset = self.offset;
        let mut done = 0;
        while done < bytes {
            let len = write.min(bytes - done).min(pattern::MAX_PIECE);
            let at = offset + done as u64;
            let exchanged = match &mut self.stream {
                Stream::Tcp(stream) => echo_bytes(stream, at, len),
                Stream::Udp(socket) => {
                    echo_datagram(socket, at, len.min(DATAGRAM)).and_then(|served| {
                        ensure!(
                            served == self.served,
                            "served as {served:?}, before as {:?}",
                            self.served
                        );
                        Ok(())
                    })
                }
            };
            exchanged.with_context(|| {
                format!(
                    "byte {at} on the connection to {} (which sees {})",
                    self.served.by, self.served.source
                )
            })?;
            done += len;
        }
        self.offset += done as u64;
        Ok(())
    }

    /// Who answers a datagram now. One without an answer is sent again after `patience`.
    pub fn ask(&mut self, patience: Duration) -> Result<Served> {
        let Stream::Udp(socket) = &self.stream else {
            bail!("a TCP connection is answered by one server");
        };
        self.offset += DATAGRAM as u64;
        socket.set_read_timeout(Some(patience))?;
        let served = echo_datagram(socket, self.offset, DATAGRAM);
        socket.set_read_timeout(Some(scaled(ECHO_PATIENCE)))?;
        served
    }

    /// Whether data that is sent on the connection gets no echo within `patience`. What TCP was
    /// given it delivers when it can: [`Self::recover`] takes it.
    pub fn is_cut(&mut self, patience: Duration) -> Result<bool> {
        let payload = pattern::piece(self.offset, PROBE);
        let came = match &mut self.stream {
            Stream::Tcp(stream) => {
                stream.write_all(payload)?;
                stream.set_read_timeout(Some(patience))?;
                stream.peek(&mut [0; 1])
            }
            Stream::Udp(socket) => {
                socket.set_read_timeout(Some(patience))?;
                socket.send(payload)?;
                socket.recv(&mut [0; DATAGRAM])
            }
        };
        match came {
            Ok(_) => Ok(false),
            Err(error) if is_timeout(error.kind()) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the echo that [`Self::is_cut`] asked for, once nothing is in its way any more.
    pub fn recover(&mut self) -> Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(scaled(PATIENCE)))?;
                let mut echo = [0; PROBE];
                stream.read_exact(&mut echo).context("echo of a probe")?;
                pattern::verify(self.offset, &echo)?;
                self.offset += PROBE as u64;
            }
            Stream::Udp(socket) => socket.set_read_timeout(Some(scaled(ECHO_PATIENCE)))?,
        }
        Ok(())
    }

    /// Ends the conversation; an error if TCP does not close in order.
    pub fn close(self) -> Result<()> {
        let Stream::Tcp(mut stream) = self.stream else {
            return Ok(());
        };
        stream.shutdown(std::net::Shutdown::Write)?;
        let rest = stream.read(&mut [0; 1]).context("waiting for the end")?;
        ensure!(rest == 0, "data after the end");
        Ok(())
    }
}

/// Whether a new connection to `target` finds nobody within `patience`.
pub fn is_unreachable<A: Address>(
    client: &Endpoint<A>,
    protocol: Protocol,
    target: impl Into<SocketAddr>,
    patience: Duration,
) -> Result<bool> {
    let target = target.into();
    let socket = client
        .namespace
        .enter(|| connected(protocol, target, 0, patience));
    match (protocol, socket) {
        (Protocol::Tcp, Ok(_)) => Ok(false),
        (Protocol::Tcp, Err(error)) if error.downcast_ref() == Some(&Errno::EINPROGRESS) => {
            Ok(true)
        }
        (Protocol::Udp, Ok(socket)) => {
            let socket = UdpSocket::from(socket);
            socket.set_read_timeout(Some(patience))?;
            socket.send(pattern::piece(0, PROBE))?;
            match socket.recv(&mut [0; DATAGRAM]) {
                Ok(_) => Ok(false),
                Err(error) if is_timeout(error.kind()) => Ok(true),
                Err(error) => Err(error.into()),
            }
        }
        (_, Err(error)) => Err(error),
    }
}

fn connected(
    protocol: Protocol,
    target: SocketAddr,
    source_port: u16,
    patience: Duration,
) -> Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let (family, any) = match target {
        SocketAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if source_port != 0 {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        let source = SocketAddr::new(any, source_port);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(source)).context("bind")?;
    }
    // The send timeout bounds connect, too.
    let micros = i64::from(patience.subsec_micros());
    let limit = TimeVal::new(i64::try_from(patience.as_secs())?, micros);
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(target)).context("connect")?;
    Ok(socket)
}

fn echo_bytes(stream: &TcpStream, offset: u64, len: usize) -> Result<()> {
    let (mut sending, mut receiving) = (stream, stream);
    let mut back = vec![0; len];
    // Each side's buffers hold less than the largest piece.
    thread::scope(|scope| {
        let sent = scope.spawn(move || sending.write_all(pattern::piece(offset, len)));
        let received = receiving.read_exact(&mut back).context("receive");
        let sent = sent.join();
        received?;
        sent.unwrap_or_else(|panic| resume_unwind(panic))
            .context("send")
    })?;
    pattern::verify(offset, &back)
}

fn echo_datagram(socket: &UdpSocket, offset: u64, len: usize) -> Result<Served> {
    let payload = pattern::piece(offset, len);
    let mut buffer = [0; 1 << 11];
    for _attempt in 0..ECHO_ATTEMPTS {
        socket.send(payload).context("send")?;
        loop {
            match socket.recv(&mut buffer) {
                Ok(received) => {
                    let (greeting, echoed) = buffer[..received]
                        .split_first_chunk::<GREETING_LEN>()
                        .ok_or_else(|| anyhow!("an answer of {received} bytes"))?;
                    // A late answer to an earlier attempt has another payload.
                    if echoed == payload {
                        return Ok(Served::decode(*greeting));
                    }
                }
                Err(error) if is_timeout(error.kind()) => break,
                Err(error) => return Err(error).context("receive"),
            }
        }
    }
    bail!("{ECHO_ATTEMPTS} datagrams without an answer")
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
