//! How `overlay-agent monitor` lends the running agent the programs that log: one message with their descriptors
//! through a socket, and the agent runs them until the other end is closed, whatever closes it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt,
    },
};
use overlay_common::{ABI_VERSION, outcome::Hook};
use serde::{Deserialize, Serialize};

use crate::datapath::{Lent, Loan};

const NAME: &str = "overlay-agent/monitor";
/// Replacing programs takes milliseconds, and waits for what the agent has under way.
const PATIENCE: Duration = Duration::from_mins(1);
/// A message is a few hundred bytes.
const MESSAGE_BYTES: usize = 4096;

/// What is lent; the descriptors come along in the same order.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    version: String,
    abi: u32,
    /// Names of hooks, and ids of programs.
    programs: Vec<(String, u32)>,
}

/// What the agent makes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Why the programs do not run.
    pub refused: Option<String>,
    /// What is not as it should be, although they run.
    pub problem: Option<String>,
}

impl Answer {
    pub fn refused(reason: impl Into<String>) -> Self {
        Self {
            refused: Some(reason.into()),
            problem: None,
        }
    }
}

/// The agent's end.
pub fn listen() -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?)
}

/// The other end; `None` if no agent of this user runs in this network namespace.
pub fn connect() -> io::Result<Option<UnixStream>> {
    let address = SocketAddr::from_abstract_name(NAME)?;
    let stream = match UnixStream::connect_addr(&address) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error),
    };
    // Anybody may take the name of a socket that nobody has.
    let owner = getsockopt(&stream, sockopt::PeerCredentials)?;
    let is_own = owner.uid() == nix::unistd::geteuid().as_raw();
    Ok(is_own.then_some(stream))
}

/// Lends the programs, and waits until they run.
pub fn lend(stream: &UnixStream, loan: &Loan) -> io::Result<Answer> {
    let offer = Offer {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi: ABI_VERSION,
        programs: loan
            .programs()
            .map(|(hook, id, _)| (hook.name().to_owned(), id))
            .collect(),
    };
    let descriptors: Vec<RawFd> = loan.programs().map(|(.., fd)| raw(fd)).collect();
    let text = serde_json::to_vec(&offer)?;
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&text)],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::empty(),
        None,
    )?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        return Ok(Answer::refused("the agent has ended"));
    }
    Ok(serde_json::from_str(&line)?)
}

fn raw(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}

/// Takes over what is offered, or says why not. The socket does not block.
pub fn accept(socket: BorrowedFd<'_>) -> io::Result<Result<Lent, Answer>> {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut space = cmsg_space!([RawFd; 16]);
    let (length, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                descriptors.extend(received.into_iter().map(own));
            }
        }
        (message.bytes, descriptors)
    };
    let offer = bytes.get(..length).unwrap_or_default();
    let Ok(offer) = serde_json::from_slice::<Offer>(offer) else {
        return Ok(Err(Answer::refused(
            "the agent does not understand what is asked",
        )));
    };
    if offer.abi != ABI_VERSION || offer.version != env!("CARGO_PKG_VERSION") {
        let reason = format!(
            "the agent is version {}, and this command {}",
            env!("CARGO_PKG_VERSION"),
            offer.version
        );
        return Ok(Err(Answer::refused(reason)));
    }
    let hooks: BTreeMap<&str, Hook> = Hook::ALL.iter().map(|hook| (hook.name(), *hook)).collect();
    let programs = offer.programs.iter().zip(descriptors);
    let programs = programs.filter_map(|((hook, id), fd)| Some((*hooks.get(&**hook)?, *id, fd)));
    Ok(Lent::new(programs).ok_or_else(|| Answer::refused("programs are missing")))
}

#[expect(unsafe_code, reason = "nix hands over descriptors as numbers")]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for this process, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
