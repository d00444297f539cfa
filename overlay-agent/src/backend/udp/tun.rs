//! The TUN device: a file whose reads and writes are packets.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const CLONE: &str = "/dev/net/tun";

/// An attachment to the device. There is room for one; the device stays when it ends.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Attaches to the device of this name in the network namespace of the calling thread, which is made if
    /// there is none. Its packets have no header of their own in front.
    pub fn attach(name: &str) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE)?;
        // SAFETY: all zeros is a value of each of the struct's fields.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags = FLAGS;
        // SAFETY: the kernel reads and writes a whole `ifreq` there, and keeps no pointer to it.
        let attached = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if attached < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the request takes its argument by value.
        let kept = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1) };
        if kept < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(file))
    }

    /// Whether the device was deleted.
    pub fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let polled = poll(&mut fds, PollTimeout::ZERO);
        let [fd] = fds;
        polled.is_ok()
            && fd
                .revents()
                .is_some_and(|seen| seen.contains(PollFlags::POLLERR))
    }

    /// The next packet the host sends by the device.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(packet)
    }

    /// Has the host receive a packet from the device.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write(packet).map(drop)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the flags of the kernel's 16-bit field, 0x1001"
)]
const FLAGS: libc::c_short = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
