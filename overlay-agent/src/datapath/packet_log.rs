//! What the programs of the logging flavour say about packets: in the daemon's log, or to whoever asked for it.

use std::{
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Mutex,
    task::block_in_place,
};
use tokio_util::sync::CancellationToken;
use tracing::{Level, event, level_filters::LevelFilter};

use super::{error::DatapathError, packet_event::PacketEvent};

/// The target of the lines about packets.
pub const PACKETS: &str = "overlay_packets";

/// Which packets the programs tell of, and whom.
pub struct Logging {
    pub level: LevelFilter,
    pub reader: Reader,
}

/// Who takes what they say.
pub enum Reader {
    /// The process's own log.
    Log,
    Taker(Taker),
}

/// Is called with each message as it is read.
pub type Taker = Box<dyn Fn(Message<'_>) + Send + Sync>;

/// What a program said, not decoded yet.
pub struct Message<'a>(&'a log::Record<'a>);

impl Message<'_> {
    /// `None` if it is about no packet.
    pub fn event(&self) -> Option<PacketEvent> {
        PacketEvent::decode(&self.0.args().to_string())
    }
}

impl Logging {
    /// Lines in the process's own log, of packets down to this level.
    pub const fn lines(level: LevelFilter) -> Self {
        Self {
            level,
            reader: Reader::Log,
        }
    }
}

/// What the programs log, not read yet. Clones share it.
#[derive(Clone)]
pub struct PacketLog {
    ring: Arc<Mutex<EbpfLogger<Reader>>>,
}

impl fmt::Debug for PacketLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketLog")
    }
}

impl PacketLog {
    pub(super) fn of(ebpf: &mut Ebpf, reader: Reader) -> Result<Self, DatapathError> {
        let logger = EbpfLogger::init_with_logger(ebpf, reader)
            .map_err(|source| DatapathError::Log { source })?;
        Ok(Self {
            ring: Arc::new(Mutex::new(logger)),
        })
    }

    /// Hands on what they say as it comes, until `stop` is cancelled.
    pub async fn forward(self, stop: CancellationToken) -> io::Result<()> {
        let mut ring = self.ring.lock().await;
        let fd = register(ring.as_fd().try_clone_to_owned()?)?;
        loop {
            let mut ready = tokio::select! {
                ready = fd.readable() => ready?,
                () = stop.cancelled() => return Ok(()),
            };
            // This does not return while packets come faster than lines are written.
            block_in_place(|| ring.flush());
            ready.clear_ready();
        }
    }
}

#[expect(
    unsafe_code,
    reason = "tokio cannot check that a descriptor lasts as long as its registration"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor and drops it after deregistering it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(registered?)
}

/// The level as the programs know it: 1 to 5, 0 for none.
pub const fn level(filter: LevelFilter) -> u8 {
    let level = match filter.into_level() {
        None => return 0,
        Some(Level::ERROR) => aya_log::Level::Error,
        Some(Level::WARN) => aya_log::Level::Warn,
        Some(Level::INFO) => aya_log::Level::Info,
        Some(Level::DEBUG) => aya_log::Level::Debug,
        Some(Level::TRACE) => aya_log::Level::Trace,
    };
    level as u8
}

impl Log for Reader {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = Message(record);
        match self {
            Self::Taker(take) => take(message),
            Self::Log => {
                if let Some(event) = message.event() {
                    write(&event, record.level());
                }
            }
        }
    }

    fn flush(&self) {}
}

fn write(packet: &PacketEvent, level: log::Level) {
    // The level of an event is part of the program text.
    macro_rules! write {
        ($level:expr) => {
            event!(
                target: PACKETS,
                $level,
                kind = packet.kind,
                hook = packet.hook,
                outcome = packet.outcome,
                interface = packet.interface,
                protocol = packet.protocol,
                source = packet.source(),
                destination = packet.destination(),
                peer = packet.peer.map(tracing::field::display),
                bytes = packet.bytes,
                "packet"
            )
        };
    }
    match level {
        log::Level::Error => write!(Level::ERROR),
        log::Level::Warn => write!(Level::WARN),
        log::Level::Info => write!(Level::INFO),
        log::Level::Debug => write!(Level::DEBUG),
        log::Level::Trace => write!(Level::TRACE),
    }
}
