//! Notices when something leaves a directory, or the directory itself goes (`inotify(7)`).

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A watched directory.
pub struct DirWatch(AsyncFd<Handle>);

/// What is left to watch after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    Directory,
    /// The directory itself is gone from its place.
    Nothing,
}

const SELF_GONE: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_IGNORED)
    .union(AddWatchFlags::IN_UNMOUNT);

struct Handle(Inotify);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[expect(
    unsafe_code,
    reason = "tokio cannot check that a descriptor lasts as long as its registration"
)]
fn register(handle: Handle) -> io::Result<AsyncFd<Handle>> {
    // SAFETY: the handle owns the inotify descriptor, keeps it open until it is dropped, which the
    // `AsyncFd` does after deregistering it, and names the same one in every call.
    let registered = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) };
    Ok(registered?)
}

impl DirWatch {
    /// Watches the directory that `path` is in.
    pub fn on_parent_of(path: &Path) -> io::Result<Self> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let leaving = AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(dir, leaving)?;
        Ok(Self(register(Handle(inotify))?))
    }

    /// Waits until something has left the directory. Cancel-safe.
    pub async fn changed(&self) -> io::Result<Watched> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().0.read_events() {
                Ok(events) if events.iter().any(|event| event.mask.intersects(SELF_GONE)) => {
                    return Ok(Watched::Nothing);
                }
                Ok(_) => return Ok(Watched::Directory),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
