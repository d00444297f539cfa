//! SCTP: an association of one stream, over which messages go both ways, each compared with what was
//! sent.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::{Backlog, SockaddrStorage, bind, connect, listen};

use super::{Endpoint, PATIENCE, tcp};
use crate::wait::scaled;

/// Both ends of an association. The standard library's sockets do: what they ask of the kernel is not
/// particular to TCP.
pub struct Association {
    client: TcpStream,
    server: TcpStream,
}

/// Fails where the kernel has no SCTP.
pub fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Association {
    pub fn open(client: &Endpoint, server: &Endpoint, port: u16) -> Result<Self> {
        let address = SockaddrStorage::from(SocketAddrV4::new(server.address, port));
        let listener = server.namespace.enter(|| -> Result<_> {
            let fd = socket().context("socket")?;
            bind(fd.as_raw_fd(), &address).context("bind")?;
            listen(&fd, Backlog::new(1)?).context("listen")?;
            Ok(TcpListener::from(fd))
        })?;
        let accepting = server.namespace.spawn(move || tcp::accept(&listener));
        let client = client.namespace.enter(|| -> Result<_> {
            let fd = socket().context("socket")?;
            connect(fd.as_raw_fd(), &address).context("connect")?;
            Ok(TcpStream::from(fd))
        })?;
        let server = accepting.join().map_err(|_panic| anyhow!("panicked"))??;
        for end in [&client, &server] {
            end.set_read_timeout(Some(scaled(PATIENCE)))?;
        }
        Ok(Self { client, server })
    }

    /// What the server sees of the client.
    pub fn seen(&self) -> io::Result<SocketAddr> {
        self.server.peer_addr()
    }

    /// Sends messages of different lengths to and fro.
    pub fn exchange(&mut self, messages: u8) -> Result<()> {
        for number in 0..messages {
            let message = vec![number; 40 + usize::from(number) * 7];
            pass(&mut self.client, &mut self.server, &message).context("to the server")?;
            pass(&mut self.server, &mut self.client, &message).context("to the client")?;
        }
        Ok(())
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, message: &[u8]) -> Result<()> {
    ensure!(from.write(message)? == message.len(), "sent in part");
    let mut buffer = [0; 4096];
    // One read returns one message, if the buffer has room for it.
    let length = to.read(&mut buffer)?;
    ensure!(&buffer[..length] == message, "{length} other bytes");
    Ok(())
}
