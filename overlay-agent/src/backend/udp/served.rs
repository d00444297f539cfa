//! The forwarder's counters for other processes: `overlay-agent stats` connects to a socket of the network
//! namespace and reads them. There is nothing on disk, and no privilege is needed to bring it about.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::counters::{Counters, Event};

/// Abstract, so that it ends with the agent and belongs to the network namespace.
const NAME: &[u8] = b"overlay-agent/udp";
/// Nobody waits longer for counters.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of packets, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub kind: String,
    pub event: String,
    pub description: String,
    pub packets: u64,
}

/// The socket. Dropping it ends the thread that serves it.
#[derive(Debug)]
pub struct Served {
    /// The thread ends when it is gone.
    alive: Option<Arc<()>>,
}

impl Served {
    pub fn start(counters: Arc<Counters>) -> io::Result<Self> {
        let alive = Arc::new(());
        serve(counters, Arc::downgrade(&alive))?;
        Ok(Self { alive: Some(alive) })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.alive = None;
        // The thread looks up when somebody connects.
        let _ = connect();
    }
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

fn connect() -> io::Result<UnixStream> {
    UnixStream::connect_addr(&address()?)
}

fn serve(counters: Arc<Counters>, alive: Weak<()>) -> io::Result<()> {
    let listener = UnixListener::bind_addr(&address()?)?;
    let thread = thread::Builder::new().name("udp counters".to_owned());
    thread.spawn(move || {
        for stream in listener.incoming() {
            if alive.upgrade().is_none() {
                return;
            }
            if let Ok(mut stream) = stream {
                // Whoever does not read goes without.
                let _ = stream.set_write_timeout(Some(PATIENCE));
                let _ = stream.write_all(&text(&counters));
            }
        }
    })?;
    Ok(())
}

fn text(counters: &Counters) -> Vec<u8> {
    let count = |&event: &Event| Count {
        kind: event.kind().name().to_owned(),
        event: event.name().to_owned(),
        description: event.describe().to_owned(),
        packets: counters.packets(event),
    };
    let counts: Vec<_> = Event::ALL.iter().map(count).collect();
    serde_json::to_vec(&counts).unwrap_or_default()
}

/// What the forwarder of this network namespace has counted since its agent was started; `None` if there
/// is none.
pub fn read() -> io::Result<Option<Vec<Count>>> {
    let mut stream = match connect() {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error),
    };
    // Anybody may take the name of a socket that nobody has.
    let owner = getsockopt(&stream, sockopt::PeerCredentials)?;
    if owner.uid() != nix::unistd::geteuid().as_raw() {
        return Ok(None);
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}
