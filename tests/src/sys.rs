//! The raw system calls of the lab, each behind a safe function.

use std::{
    fs::File,
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    sync::Arc,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl, signal::Signal},
};

/// Makes `command` run in network namespace `netns`. Unlike `ip netns exec` this leaves the mounts
/// alone, so that the command sees the bpffs.
pub fn enter_on_exec(command: &mut Command, netns: Arc<File>) {
    // SAFETY: the closure runs between fork and exec and makes a single system call; it neither
    // allocates nor locks. Its file is open because the closure owns it.
    unsafe {
        command.pre_exec(move || setns(&*netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from))
    };
}

/// Makes the kernel kill `command` when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: as above: one system call, no memory is touched.
    unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
}

/// A packet socket that receives every frame of interface `ifindex`, and no frame of any other:
/// it is created for no protocol and receives nothing before it is bound.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the constants and sizes fit the fields the kernel has for them"
)]
pub fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by the kernel and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a whole `sockaddr_ll`, the length is its size, and the kernel
    // copies it before the call returns.
    let bound = unsafe {
        libc::bind(
            fd,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(socket)
    }
}
