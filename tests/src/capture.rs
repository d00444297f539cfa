//! Capturing frames from an interface, both directions, whole.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::{
        socket::{LinkAddr, recvfrom, setsockopt, sockopt},
        time::TimeVal,
    },
};

use crate::{
    differ::offload::{HEADER_LEN, Offload},
    netns::Namespace,
    sys,
    wait::scaled,
};

/// Room for what arrives while the capturing thread does not run.
const SOCKET_BUFFER: usize = 64 << 20;
/// Larger than any GSO packet.
const LARGEST_FRAME: usize = 1 << 18;
/// How often a capture looks whether it shall end.
const TICK: TimeVal = TimeVal::new(0, 20_000);
/// What a stopped capture takes to drain its socket, where frames go on passing.
const GRACE: Duration = Duration::from_millis(200);

/// Which way a frame passed the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Received,
    Sent,
}

/// A frame as it passed the interface, Ethernet header first.
#[derive(Clone, Debug)]
pub struct Frame {
    pub direction: Direction,
    pub bytes: Vec<u8>,
    /// What a card would still have to do, of a capture that asks.
    pub offload: Offload,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<Result<Vec<Frame>>>,
}

impl Capture {
    /// Every frame that passes from the return of this call on is captured.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::open(namespace, interface, false)
    }

    /// With what is left to the card. Such a capture fails of packets that no virtual card could send.
    pub fn with_offloads(namespace: &Namespace, interface: &str) -> Result<Self> {
        Self::open(namespace, interface, true)
    }

    fn open(namespace: &Namespace, interface: &str, offloads: bool) -> Result<Self> {
        let place = || format!("capture on {interface} in {}", namespace.name());
        let socket = namespace.enter(|| open(interface)).with_context(place)?;
        if offloads {
            sys::show_offloads(&socket)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let thread = std::thread::spawn(move || receive(&socket, offloads, &stopped, &counted));
        Ok(Self {
            stop,
            count,
            thread,
        })
    }

    /// Number of frames captured so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Every frame that passed before this call, in order.
    pub fn stop(self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("panicked")))
            .context("capture")
    }
}

fn open(interface: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(interface)?;
    let socket = sys::packet_socket(index)?;
    setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TICK)?;
    Ok(socket)
}

/// Receives until it is told to stop and the socket is drained.
fn receive(
    socket: &OwnedFd,
    offloads: bool,
    stopped: &AtomicBool,
    count: &AtomicUsize,
) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; LARGEST_FRAME];
    let mut end = None;
    loop {
        if stopped.load(Ordering::Relaxed) {
            let end = *end.get_or_insert_with(|| Instant::now() + scaled(GRACE));
            if Instant::now() > end {
                return Ok(frames);
            }
        }
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((len, address)) => {
                let address = address.context("a frame without link-layer address")?;
                let direction = match address.pkttype() {
                    libc::PACKET_OUTGOING => Direction::Sent,
                    _ => Direction::Received,
                };
                let (offload, bytes) = match buffer[..len].split_first_chunk::<HEADER_LEN>() {
                    Some((header, frame)) if offloads => (Offload::decode(*header), frame),
                    _ => (Offload::default(), &buffer[..len]),
                };
                frames.push(Frame {
                    direction,
                    bytes: bytes.to_vec(),
                    offload,
                });
                count.store(frames.len(), Ordering::Relaxed);
            }
            Err(Errno::EAGAIN) if end.is_some() => return Ok(frames),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
