//! UDP datagrams, numbered and verified: one at a time with an echo, or in bursts that the kernel
//! cuts into datagrams (UDP_SEGMENT).

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Address, Endpoint, pattern};
use crate::wait::scaled;

/// Number and length precede the payload.
pub const HEADER_LEN: usize = 8;
/// How long an echo may take before it counts as lost.
const ECHO_PATIENCE: Duration = Duration::from_secs(1);
/// A receiver that hears nothing for so long has heard everything.
const SILENCE: Duration = Duration::from_secs(1);
/// Room for a whole transfer, so that loss is the network's and not a slow thread's.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Largest datagram.
const BUFFER: usize = 1 << 16;

/// What was sent and what came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// For people: what was sent from where to where.
    pub path: String,
    pub sent: u32,
    /// Numbers of datagrams that did not come.
    pub lost: Vec<u32>,
}

impl Report {
    /// An error that names the lost ones, if any.
    pub fn ensure_lossless(&self) -> Result<()> {
        ensure!(
            self.lost.is_empty(),
            "{}: {} of {} datagrams were lost: {:?}…",
            self.path,
            self.lost.len(),
            self.sent,
            &self.lost[..self.lost.len().min(10)]
        );
        Ok(())
    }
}

/// Datagram `number` with a total of `len` bytes, at least [`HEADER_LEN`].
pub fn fill(number: u32, len: usize) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(len);
    datagram.extend(number.to_be_bytes());
    datagram.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    datagram.extend(pattern::piece(u64::from(number), len - HEADER_LEN));
    datagram
}

/// The number of a datagram that is whole and unchanged.
pub fn verify(datagram: &[u8]) -> Result<u32> {
    let (header, payload) = datagram
        .split_first_chunk::<HEADER_LEN>()
        .with_context(|| format!("a datagram of {} bytes", datagram.len()))?;
    let header = u64::from_be_bytes(*header);
    let (number, len) = ((header >> 32) as u32, header & 0xffff_ffff);
    ensure!(
        len == datagram.len() as u64,
        "datagram {number} of {len} bytes arrives with {}",
        datagram.len()
    );
    pattern::verify(u64::from(number), payload).with_context(|| format!("datagram {number}"))?;
    Ok(number)
}

/// A socket at `endpoint`, on a port of the kernel's choice.
pub fn bind<A: Address>(endpoint: &Endpoint<A>) -> Result<UdpSocket> {
    let address = endpoint.any_port();
    let socket = endpoint.namespace.enter(|| UdpSocket::bind(address));
    let socket = socket.with_context(|| format!("bind UDP at {address}"))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    Ok(socket)
}

/// Answers every datagram with itself until it is dropped.
#[derive(Debug)]
pub struct EchoServer {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl EchoServer {
    pub fn start<A: Address>(on: &Endpoint<A>) -> Result<Self> {
        let socket = bind(on)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = on.namespace.spawn(move || echo(&socket, &stopped));
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the server; an error if a datagram arrived damaged.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("panicked")))
            .context("echo server")
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

fn echo(socket: &UdpSocket, stopped: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    while !stopped.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                verify(&buffer[..len])?;
                socket.send_to(&buffer[..len], from)?;
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends `count` datagrams of each size, one at a time; each must come back before the next goes
/// out, or counts as lost. An error is damage, or a failing socket.
pub fn echo_each<A: Address>(
    from: &Endpoint<A>,
    to: &Endpoint<A>,
    sizes: &[usize],
    count: u32,
) -> Result<Report> {
    let path = format!("UDP from {} to {}", from.address, to.address);
    let server = EchoServer::start(to)?;
    let lost = send_and_await(&bind(from)?, server.address, sizes, count);
    server.stop().with_context(|| path.clone())?;
    let lost = lost.with_context(|| path.clone())?;
    Ok(Report {
        path,
        sent: u32::try_from(sizes.len())? * count,
        lost,
    })
}

/// The numbers of the datagrams that did not come back.
fn send_and_await(
    socket: &UdpSocket,
    server: SocketAddr,
    sizes: &[usize],
    count: u32,
) -> Result<Vec<u32>> {
    socket.connect(server)?;
    let mut lost = Vec::new();
    for (number, size) in (0..).zip(sizes.iter().flat_map(|&size| (0..count).map(move |_| size))) {
        socket
            .send(&fill(number, size))
            .with_context(|| format!("send {size} bytes"))?;
        if !comes_back(socket, number)? {
            lost.push(number);
        }
    }
    Ok(lost)
}

fn comes_back(socket: &UdpSocket, number: u32) -> Result<bool> {
    let deadline = Instant::now() + scaled(ECHO_PATIENCE);
    let mut buffer = vec![0; BUFFER];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(len) if verify(&buffer[..len])? == number => return Ok(true),
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
}

/// Sends `bursts` writes of `segments` datagrams of `size` bytes each, which the kernel segments
/// as late as it can, and reports which datagrams arrived.
pub fn send_segmented<A: Address>(
    from: &Endpoint<A>,
    to: &Endpoint<A>,
    size: usize,
    segments: u32,
    bursts: u32,
) -> Result<Report> {
    let path = format!("segmented UDP from {} to {}", from.address, to.address);
    let (sender, receiver) = (bind(from)?, bind(to)?);
    let target = receiver.local_addr()?;
    setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(size)?)
        .context("set UDP_SEGMENT")?;
    let total = segments * bursts;
    let arrived = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_all(&receiver, total));
        for burst in 0..bursts {
            let numbers = burst * segments..(burst + 1) * segments;
            let datagrams: Vec<u8> = numbers.flat_map(|number| fill(number, size)).collect();
            sender
                .send_to(&datagrams, target)
                .with_context(|| format!("{path}: send"))?;
            // A receiver that waits for the processor must not be overrun.
            thread::sleep(Duration::from_millis(2));
        }
        receiving
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("panicked")))
    })
    .with_context(|| path.clone())?;
    let lost = (0..total)
        .filter(|number| !arrived.contains(number))
        .collect();
    Ok(Report {
        path,
        sent: total,
        lost,
    })
}

fn receive_all(socket: &UdpSocket, total: u32) -> Result<BTreeSet<u32>> {
    socket.set_read_timeout(Some(scaled(SILENCE)))?;
    let mut numbers = BTreeSet::new();
    let mut buffer = vec![0; BUFFER];
    while numbers.len() < total as usize {
        match socket.recv(&mut buffer) {
            Ok(len) => ensure!(
                numbers.insert(verify(&buffer[..len])?),
                "a datagram came twice"
            ),
            Err(error) if is_timeout(&error) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(numbers)
}

pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_recognised_and_damage_is_not_accepted() {
        let datagram = fill(77, 1400);
        assert_eq!(verify(&datagram).unwrap(), 77);
        assert!(verify(&datagram[..1399]).is_err());
        let mut damaged = datagram;
        damaged[1000] ^= 0x10;
        assert!(verify(&damaged).is_err());
    }
}
