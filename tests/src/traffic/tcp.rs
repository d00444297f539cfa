//! TCP transfers: both directions at once over one connection, every byte verified.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{Address, Endpoint, PATIENCE, pattern};
use crate::wait::scaled;

/// What each side sends.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Bytes from client to server.
    pub forward: u64,
    /// Bytes from server to client.
    pub backward: u64,
    /// Bytes per write; at most [`pattern::MAX_PIECE`]. Small ones go out as small packets.
    pub write: usize,
}

/// How long it took.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub bytes: u64,
    pub elapsed: Duration,
}

impl Spec {
    /// `bytes` in each direction, in writes that fill GSO packets.
    pub fn bulk(bytes: u64) -> Self {
        Self {
            forward: bytes,
            backward: bytes,
            write: pattern::MAX_PIECE,
        }
    }

    /// `bytes` from client to server only.
    pub fn upload(bytes: u64) -> Self {
        Self {
            backward: 0,
            ..Self::bulk(bytes)
        }
    }

    /// `bytes` in each direction, in writes of `write` bytes that go out at once.
    pub fn small_writes(bytes: u64, write: usize) -> Self {
        Self {
            forward: bytes,
            backward: bytes,
            write,
        }
    }
}

impl Report {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate for people, three digits of it"
    )]
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64() / 1e9
    }
}

/// Connects `client` to a listener on `server` and transfers both ways. The server must see the
/// client's own address. An error says which side saw what.
pub fn transfer<A: Address>(
    client: &Endpoint<A>,
    server: &Endpoint<A>,
    spec: Spec,
) -> Result<Report> {
    let path = || format!("TCP from {} to {}", client.address, server.address);
    run(client, server, spec).with_context(path)
}

fn run<A: Address>(client: &Endpoint<A>, server: &Endpoint<A>, spec: Spec) -> Result<Report> {
    let bound = server.any_port();
    let listener = server
        .namespace
        .enter(|| TcpListener::bind(bound))
        .context("listen")?;
    let address = listener.local_addr()?;
    let source: std::net::IpAddr = client.address.into();
    let start = Instant::now();
    let serving = server.namespace.spawn(move || -> Result<()> {
        let stream = accept(&listener)?;
        let peer = stream.peer_addr()?.ip();
        ensure!(
            peer == source,
            "the server sees {peer}, not the client's {source}"
        );
        both_ways(&stream, spec.backward, spec.forward, spec.write)
    });
    let connected = client.namespace.enter(|| -> Result<()> {
        let stream = TcpStream::connect_timeout(&address, scaled(PATIENCE)).context("connect")?;
        both_ways(&stream, spec.forward, spec.backward, spec.write)
    });
    let accepted = serving
        .join()
        .unwrap_or_else(|_panic| Err(anyhow!("panicked")));
    match (connected, accepted) {
        (Ok(()), Ok(())) => Ok(Report {
            bytes: spec.forward + spec.backward,
            elapsed: start.elapsed(),
        }),
        (client, server) => bail!("client: {}; server: {}", outcome(client), outcome(server)),
    }
}

fn outcome(result: Result<()>) -> String {
    result.map_or_else(|error| format!("{error:#}"), |()| "complete".to_owned())
}

/// Accepts one connection, in bounded time.
pub(super) fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + scaled(PATIENCE);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                ensure!(
                    Instant::now() < deadline,
                    "no connection within {:?}",
                    scaled(PATIENCE)
                );
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("accept"),
        }
    }
}

fn both_ways(stream: &TcpStream, send: u64, receive: u64, write: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(scaled(PATIENCE)))?;
    stream.set_write_timeout(Some(scaled(PATIENCE)))?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| send_pattern(stream, send, write));
        let received = receive_pattern(stream, receive);
        let outcome = sending
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("panicked")));
        outcome.context("sending")?;
        received.context("receiving")
    })
}

fn send_pattern(mut stream: &TcpStream, bytes: u64, write: usize) -> Result<()> {
    let mut offset = 0;
    while offset < bytes {
        let len = usize::try_from(bytes - offset).unwrap_or(write).min(write);
        let written = stream.write(pattern::piece(offset, len));
        let written = written.with_context(|| format!("after {offset} of {bytes} bytes"))?;
        offset += written as u64;
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn receive_pattern(mut stream: &TcpStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 17];
    let mut offset = 0;
    loop {
        let len = stream.read(&mut buffer);
        let len = len.with_context(|| format!("after {offset} of {bytes} bytes"))?;
        if len == 0 {
            ensure!(
                offset == bytes,
                "the stream ends after {offset} of {bytes} bytes"
            );
            return Ok(());
        }
        pattern::verify(offset, &buffer[..len])?;
        offset += len as u64;
        ensure!(offset <= bytes, "{offset} bytes arrived, {bytes} were sent");
    }
}
