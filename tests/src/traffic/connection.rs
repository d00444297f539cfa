//! A TCP connection that is in use all the time, for tests that change something meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Address, Endpoint, PATIENCE, pattern, tcp::accept};
use crate::wait::scaled;

/// Bytes of each message.
const SIZE: usize = 200;

/// One connection over which verified messages go to and fro.
#[derive(Debug)]
pub struct SteadyConnection {
    stop: Arc<AtomicBool>,
    client: JoinHandle<Result<ConnectionReport>>,
    server: JoinHandle<Result<()>>,
}

/// What became of the connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionReport {
    /// Messages that were sent and came back.
    pub exchanges: u64,
    /// Longest time an exchange took.
    pub longest: Duration,
}

impl SteadyConnection {
    /// Connects, and exchanges a message every `interval`. The server must see the client's own
    /// address.
    pub fn open<A: Address>(
        from: &Endpoint<A>,
        to: &Endpoint<A>,
        interval: Duration,
    ) -> Result<Self> {
        let bound = to.any_port();
        let listener = to.namespace.enter(|| TcpListener::bind(bound))?;
        let address = listener.local_addr()?;
        let source: std::net::IpAddr = from.address.into();
        let server = to.namespace.spawn(move || {
            let stream = accept(&listener)?;
            let peer = stream.peer_addr()?.ip();
            ensure!(peer == source, "the server sees {peer}, not {source}");
            echo(stream)
        });
        let stream = from
            .namespace
            .enter(|| TcpStream::connect_timeout(&address, scaled(PATIENCE)))
            .with_context(|| format!("connect {} to {}", from.address, to.address))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let client = thread::spawn(move || exchange(stream, interval, &stopped));
        Ok(Self {
            stop,
            client,
            server,
        })
    }

    /// Ends the connection; an error if it broke before.
    pub fn close(self) -> Result<ConnectionReport> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| Err(anyhow!("panicked"));
        let report = self.client.join().unwrap_or_else(panicked);
        let served = self
            .server
            .join()
            .unwrap_or_else(|_| Err(anyhow!("panicked")));
        let report = report.context("client of the steady TCP connection")?;
        served.context("server of the steady TCP connection")?;
        Ok(report)
    }
}

fn echo(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(scaled(PATIENCE)))?;
    let mut buffer = [0; SIZE];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len])?;
    }
}

fn exchange(
    mut stream: TcpStream,
    interval: Duration,
    stopped: &AtomicBool,
) -> Result<ConnectionReport> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(scaled(PATIENCE)))?;
    let mut report = ConnectionReport {
        exchanges: 0,
        longest: Duration::ZERO,
    };
    let mut buffer = [0; SIZE];
    while !stopped.load(Ordering::Relaxed) {
        let number = report.exchanges;
        let sent = Instant::now();
        stream
            .write_all(pattern::piece(number, SIZE))
            .and_then(|()| stream.read_exact(&mut buffer))
            .with_context(|| format!("exchange {number}"))?;
        pattern::verify(number, &buffer)?;
        report.exchanges += 1;
        report.longest = report.longest.max(sent.elapsed());
        thread::sleep(interval.saturating_sub(sent.elapsed()));
    }
    Ok(report)
}
