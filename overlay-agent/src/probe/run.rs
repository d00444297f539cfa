//! The task that asks and answers.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    book::{Ask, Book, Target},
    checksum,
    echo::Echo,
    metrics,
    own::{LARGEST, Own},
    packet::{Kind, LEN, Packet},
    survey::Report,
    told::{self, Told},
};
use crate::{
    backend::Backend,
    inquiry::Served,
    metrics::{Sheet, Source},
    model::{Family, LeaseView, V4, V6},
    ticks,
};

/// Leases that change together are taken over together.
const SETTLE: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_secs(1);
/// ICMP sockets get everybody's packets: they are closed when nobody was asked for so long.
const ECHO_IDLE: Duration = Duration::from_secs(30);

/// What is known of the peers. Clones share it.
#[derive(Clone)]
pub struct Probes {
    book: Arc<Mutex<Book>>,
    idle: Arc<Mutex<Option<String>>>,
    port: u16,
    own: watch::Sender<Vec<Own>>,
}

/// Sockets of one family.
struct End {
    own: Own,
    socket: UdpSocket,
    echo: Option<(Echo, Instant)>,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").finish_non_exhaustive()
    }
}

impl Source for Probes {
    fn tell(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        metrics::tell(&self.book(), Instant::now(), sheet)
    }
}

impl Probes {
    /// Peers listen at `port` as well.
    pub fn new(port: u16) -> Self {
        Self {
            book: Arc::new(Mutex::new(Book::new(Instant::now()))),
            idle: Arc::new(Mutex::new(Some("the node is starting".to_owned()))),
            port,
            own: watch::Sender::new(Vec::new()),
        }
    }

    /// Has the commands ask.
    pub fn serve(&self) -> Option<Served> {
        let this = self.clone();
        let served = told::serve(move || {
            let idle = this
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let own = this.own.borrow().clone();
            Told::of(&this.book(), this.port, &own, idle, Instant::now())
        });
        if let Err(error) = &served {
            warn!(%error, "`overlay-agent peers` cannot ask this agent");
        }
        served.ok()
    }

    /// This node's ends are these from now on.
    pub fn set_own(&self, own: Vec<Own>) {
        self.own.send_if_modified(|before| {
            let changed = *before != own;
            *before = own;
            changed
        });
    }

    /// Asks and answers until `stop` is cancelled.
    pub async fn run(
        self,
        mut leases: watch::Receiver<LeaseView>,
        backend: Backend,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        let mut own = self.own.subscribe();
        let mut complaint = String::new();
        loop {
            let ends = own.borrow_and_update().clone();
            let opened = self.open(&ends).await;
            let retry = opened.is_err();
            match opened {
                Ok(mut opened) => {
                    complaint.clear();
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        Ok(()) = own.changed() => {}
                        error = self.serve_ends(&mut opened, &mut leases, &backend) => {
                            debug!(%error, "the sockets of peer probes are opened again");
                            sleep(RETRY).await;
                        }
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if complaint != text {
                        warn!("peers are not probed: {text}");
                        self.set_idle(Some(text.clone()));
                        complaint = text;
                    }
                }
            }
            if retry {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    Ok(()) = own.changed() => {}
                    () = sleep(RETRY) => {}
                }
            }
        }
    }

    async fn open(&self, ends: &[Own]) -> io::Result<Vec<End>> {
        let mut opened = Vec::new();
        for own in ends {
            let address = SocketAddr::new(own.address, self.port);
            let socket = UdpSocket::bind(address).await.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot listen at UDP {address}: {error}"),
                )
            })?;
            checksum::accept_none(&socket)?;
            opened.push(End {
                own: *own,
                socket,
                echo: None,
            });
        }
        let idle = "this backend has no device with an address in the overlay";
        self.set_idle(opened.is_empty().then(|| idle.to_owned()));
        Ok(opened)
    }

    /// Returns when a socket fails.
    async fn serve_ends(
        &self,
        ends: &mut [End],
        leases: &mut watch::Receiver<LeaseView>,
        backend: &Backend,
    ) -> io::Error {
        let mut buffers = [vec![0; LARGEST], vec![0; LARGEST]];
        let mut want_at = Some(Instant::now());
        loop {
            let due = self.next().into_iter().chain(want_at).min();
            let [first, second] = &mut buffers;
            tokio::select! {
                () = until(due) => {
                    let now = Instant::now();
                    if want_at.is_some_and(|at| at <= now) {
                        want_at = None;
                        let targets = targets(&leases.borrow_and_update(), backend, ends);
                        self.book().want(&targets, now, &mut rand::rng());
                    }
                    self.ask(ends).await;
                }
                changed = leases.changed() => match changed {
                    Ok(()) => want_at = want_at.or(Some(Instant::now() + SETTLE)),
                    Err(_) => return std::future::pending().await,
                },
                received = receive(ends.first(), first) => match received {
                    Ok((len, from)) => self.take(ends.first(), first.get(..len), from),
                    Err(error) => return error,
                },
                received = receive(ends.get(1), second) => match received {
                    Ok((len, from)) => self.take(ends.get(1), second.get(..len), from),
                    Err(error) => return error,
                },
                Ok((from, number)) = echoed(ends.first()) => {
                    self.book().receive_echo(from, number, Instant::now());
                }
                Ok((from, number)) = echoed(ends.get(1)) => {
                    self.book().receive_echo(from, number, Instant::now());
                }
            }
        }
    }

    /// When there is something to do again: where there are many peers, when the agent wakes anyway.
    fn next(&self) -> Option<Instant> {
        let book = self.book();
        Some(ticks::not_before(book.due()?, book.gather()))
    }

    /// Sends all that is due.
    async fn ask(&self, ends: &mut [End]) {
        loop {
            let now = Instant::now();
            let asks = self.book().asks(now, &mut rand::rng());
            if asks.is_empty() {
                return;
            }
            for ask in asks {
                self.send(ask, ends, now).await;
            }
        }
    }

    /// A packet that cannot be sent is one without an answer.
    async fn send(&self, ask: Ask, ends: &mut [End], now: Instant) {
        let (Ask::Small { to, .. }
        | Ask::Large { to, .. }
        | Ask::Plain { to, .. }
        | Ask::Inside { to, .. }
        | Ask::Outside { to, .. }) = ask;
        let mut ends = ends.iter_mut();
        let Some(end) = ends.find(|end| end.own.address.is_ipv4() == to.is_ipv4()) else {
            return;
        };
        match ask {
            Ask::Small { packet, .. } => {
                let question = end.own.question(packet);
                end.send(&question, LEN, SocketAddr::new(to, self.port));
            }
            Ask::Large { packet, .. } => {
                let question = end.own.question(packet);
                end.send(&question, end.own.room(), SocketAddr::new(to, self.port));
            }
            Ask::Plain { packet, .. } => {
                let question = Packet {
                    is_plain: true,
                    ..end.own.question(packet)
                };
                end.send(&question, LEN, SocketAddr::new(to, self.port));
            }
            Ask::Inside { number, .. } | Ask::Outside { number, .. } => {
                if end.echo.is_none() {
                    match Echo::open(to.is_ipv4()) {
                        Ok(echo) => end.echo = Some((echo, now)),
                        Err(error) => {
                            info!(%error, "peers without an agent are not told from those out of reach");
                            self.book().can_echo = false;
                        }
                    }
                }
                if let Some((echo, used)) = &mut end.echo {
                    *used = now;
                    let _ = echo.send(to, number).await;
                }
            }
        }
        if end
            .echo
            .as_ref()
            .is_some_and(|(_, used)| now.duration_since(*used) > ECHO_IDLE)
        {
            end.echo = None;
        }
    }

    /// Answers what a peer asks, with no more bytes than it sent, and to it alone.
    fn take(&self, end: Option<&End>, bytes: Option<&[u8]>, from: SocketAddr) {
        let (Some(end), Some(bytes)) = (end, bytes) else {
            return;
        };
        let Some(packet) = Packet::decode(bytes) else {
            return;
        };
        let now = Instant::now();
        if !self.book().receive(from.ip(), &packet, now) {
            return;
        }
        let answer = |kind| Packet {
            kind,
            node: end.own.identity(),
            ..packet
        };
        if packet.kind == Kind::Survey {
            let mut answer = answer(Kind::Report).encode(LEN);
            let report = Report::of_book(&self.book(), from.is_ipv4(), now);
            answer.extend(report.encode(bytes.len().saturating_sub(LEN)));
            let _ = end.socket.try_send_to(&answer, from);
        } else {
            end.send(&answer(Kind::Answer), bytes.len(), from);
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_idle(&self, reason: Option<String>) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

impl End {
    /// A packet that cannot be sent is lost.
    fn send(&self, packet: &Packet, len: usize, to: SocketAddr) {
        let bytes = packet.encode(len);
        if packet.is_plain {
            let _ = checksum::without(&self.socket, |socket| socket.try_send_to(&bytes, to));
        } else {
            let _ = self.socket.try_send_to(&bytes, to);
        }
    }
}

/// The peers' addresses in the overlay.
fn targets(view: &LeaseView, backend: &Backend, ends: &[End]) -> BTreeMap<IpAddr, Target> {
    let mut targets = BTreeMap::new();
    for end in ends {
        if end.own.address.is_ipv4() {
            add::<V4>(&mut targets, view, backend);
        } else {
            add::<V6>(&mut targets, view, backend);
        }
    }
    let mut owners: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for target in targets.values() {
        *owners.entry(target.public_ip).or_default() += 1;
    }
    for target in targets.values_mut() {
        target.shared = owners
            .get(&target.public_ip)
            .is_some_and(|owners| *owners > 1);
    }
    targets
}

fn add<F: Family>(targets: &mut BTreeMap<IpAddr, Target>, view: &LeaseView, backend: &Backend) {
    for peer in view.usable_peers::<F>(backend).into_values() {
        let target = Target {
            subnet: peer.subnet.into(),
            public_ip: peer.public_ip.into(),
            shared: false,
        };
        targets.insert(F::first(peer.subnet).into(), target);
    }
}

async fn receive(end: Option<&End>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match end {
        Some(end) => end.socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

async fn echoed(end: Option<&End>) -> io::Result<(IpAddr, u16)> {
    match end.and_then(|end| end.echo.as_ref()) {
        Some((echo, _)) => echo.receive().await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
