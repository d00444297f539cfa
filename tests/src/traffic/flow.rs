//! A steady flow in the background, for tests that change something while packets are under way.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use super::{
    Address, Endpoint,
    udp::{EchoServer, Report, bind, fill, is_timeout, verify},
};
use crate::wait::scaled;

/// What a reply may take after the last request.
const STRAGGLERS: Duration = Duration::from_secs(1);
/// Bytes of each datagram.
const SIZE: usize = 200;

/// One UDP flow of echoed datagrams at a fixed rate, each counted.
#[derive(Debug)]
pub struct SteadyFlow {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    sender: JoinHandle<Result<FlowReport>>,
    server: EchoServer,
}

/// What became of the flow.
#[derive(Clone, Debug)]
pub struct FlowReport {
    pub datagrams: Report,
    /// Longest time between two replies.
    pub longest_gap: Duration,
}

impl SteadyFlow {
    /// Sends from `from` every `interval`, whether or not replies come.
    pub fn start<A: Address>(
        from: &Endpoint<A>,
        to: &Endpoint<A>,
        interval: Duration,
    ) -> Result<Self> {
        let server = EchoServer::start(to)?;
        let socket = bind(from)?;
        // Routes are looked up in the socket's namespace, not in that of the calling thread.
        socket.connect(server.address)?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = from
            .namespace
            .spawn(move || send_and_count(&socket, interval, &count, &stopped));
        Ok(Self {
            stop,
            sent,
            sender,
            server,
        })
    }

    /// How many datagrams have been sent so far: fewer than the interval says, where timers are coarse
    /// or the machine is busy.
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the flow and waits for replies still under way.
    pub fn stop(self) -> Result<FlowReport> {
        self.stop.store(true, Ordering::Relaxed);
        let report = self
            .sender
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("panicked")));
        self.server.stop()?;
        report.context("steady UDP flow")
    }
}

fn send_and_count(
    socket: &UdpSocket,
    interval: Duration,
    sent: &AtomicU32,
    stopped: &AtomicBool,
) -> Result<FlowReport> {
    let receiving = socket.try_clone()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive_replies(&receiving, &done));
        let sending = send_until(socket, interval, sent, stopped);
        thread::sleep(scaled(STRAGGLERS));
        done.store(true, Ordering::Relaxed);
        let replies = receiver
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("panicked")));
        sending?;
        Ok(summarise(sent.load(Ordering::Relaxed), &replies?))
    })
}

fn send_until(
    socket: &UdpSocket,
    interval: Duration,
    sent: &AtomicU32,
    stopped: &AtomicBool,
) -> Result<()> {
    let mut next = Instant::now();
    while !stopped.load(Ordering::Relaxed) {
        let number = sent.load(Ordering::Relaxed);
        socket
            .send(&fill(number, SIZE))
            .with_context(|| format!("send datagram {number}"))?;
        sent.store(number + 1, Ordering::Relaxed);
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// When the reply to each datagram came.
fn receive_replies(socket: &UdpSocket, done: &AtomicBool) -> Result<BTreeMap<u32, Instant>> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut replies = BTreeMap::new();
    let mut buffer = [0; SIZE + 1];
    while !done.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(len) => drop(replies.insert(verify(&buffer[..len])?, Instant::now())),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    Ok(replies)
}

fn summarise(sent: u32, replies: &BTreeMap<u32, Instant>) -> FlowReport {
    let mut times: Vec<_> = replies.values().collect();
    times.sort();
    let gaps = times
        .windows(2)
        .map(|pair| pair[1].duration_since(*pair[0]));
    let longest_gap = gaps.max().unwrap_or_default();
    let lost = (0..sent)
        .filter(|number| !replies.contains_key(number))
        .collect();
    FlowReport {
        datagrams: Report {
            path: "steady UDP flow".to_owned(),
            sent,
            lost,
        },
        longest_gap,
    }
}
