//! The TUN device: a file whose reads and writes are packets.

use std::{
    fs::File,
    io::{self, IoSlice, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::merge::About;

const CLONE: &str = "/dev/net/tun";

/// An attachment to the device. There is room for one; the device stays when it ends.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Attaches to the device of this name in the network namespace of the calling thread, which is made if
    /// there is none. In front of each packet is what is to be known [`About`] it.
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
        // What an earlier process has asked for stays with the device. Packets are read as they are to be sent: whole,
        // each with its checksum.
        let length = ABOUT_LEN;
        // SAFETY: the kernel reads an `int` there, and keeps no pointer to it.
        let set =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the request takes its argument by value.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, 0) };
        if set < 0 {
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

    /// Reads the next packet the host sends by the device behind the first [`About::LEN`] bytes, which stay as they
    /// are. Returns its length.
    pub fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        // A list of two parts costs the kernel more than putting back what it overwrites.
        let before = room.first_chunk::<{ About::LEN }>().copied();
        let before = before.ok_or(io::ErrorKind::InvalidInput)?;
        let read = (&self.0).read(room)?;
        room[..About::LEN].copy_from_slice(&before);
        Ok(read.saturating_sub(About::LEN))
    }

    /// Has the host receive a packet from the device, given in parts of which the first is [`About`] it.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.0).write_vectored(parts).map(drop)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the flags of the kernel's 16-bit field, 0x5001"
)]
const FLAGS: libc::c_short =
    (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "10"
)]
const ABOUT_LEN: libc::c_int = About::LEN as libc::c_int;

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
