//! What a running agent tells other processes of its network namespace: whoever connects to a socket reads it.
//! There is nothing on disk, and no privilege is needed to bring it about.

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
use serde::{Serialize, de::DeserializeOwned};

/// Nobody waits longer for an answer, or for somebody to read it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A subject that can be asked about: a socket in the abstract namespace, so that it ends with the agent and
/// belongs to the network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Subject(pub &'static str);

/// The socket. Dropping it ends the thread that serves it.
#[derive(Debug)]
pub struct Served {
    subject: Subject,
    /// The thread ends when it is gone.
    alive: Option<Arc<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.alive = None;
        // The thread looks up when somebody connects.
        let _ = self.subject.connect();
    }
}

impl Subject {
    /// Answers everybody who asks with what `tell` returns.
    pub fn serve<T: Serialize>(self, tell: impl Fn() -> T + Send + 'static) -> io::Result<Served> {
        let alive = Arc::new(());
        self.listen(tell, Arc::downgrade(&alive))?;
        Ok(Served {
            subject: self,
            alive: Some(alive),
        })
    }

    /// What the agent of this network namespace says; `None` if there is none that knows the subject.
    pub fn ask<T: DeserializeOwned>(self) -> io::Result<Option<T>> {
        let mut stream = match self.connect() {
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

    fn listen<T: Serialize>(
        self,
        tell: impl Fn() -> T + Send + 'static,
        alive: Weak<()>,
    ) -> io::Result<()> {
        let listener = UnixListener::bind_addr(&self.address()?)?;
        let thread = thread::Builder::new().name("inquiries".to_owned());
        thread.spawn(move || {
            for stream in listener.incoming() {
                if alive.upgrade().is_none() {
                    return;
                }
                if let Ok(mut stream) = stream {
                    // Whoever does not read goes without.
                    let _ = stream.set_write_timeout(Some(PATIENCE));
                    let text = serde_json::to_vec(&tell()).unwrap_or_default();
                    let _ = stream.write_all(&text);
                }
            }
        })?;
        Ok(())
    }

    fn connect(self) -> io::Result<UnixStream> {
        UnixStream::connect_addr(&self.address()?)
    }

    fn address(self) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_told_as_it_is_when_it_is_asked_for_and_not_afterwards() {
        const SUBJECT: Subject = Subject("overlay-agent/test/inquiry");
        assert_eq!(SUBJECT.ask::<u32>().unwrap(), None);
        let asked = std::sync::atomic::AtomicU32::new(0);
        let served = SUBJECT
            .serve(move || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
            .unwrap();
        assert_eq!(SUBJECT.ask().unwrap(), Some(0));
        assert_eq!(SUBJECT.ask().unwrap(), Some(1));
        drop(served);
    }
}
