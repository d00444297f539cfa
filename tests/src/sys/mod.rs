//! The raw system calls of the lab, each behind a safe function.

pub(crate) mod bpf;
pub(crate) mod insn;

use std::{
    fs::File,
    io,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsRawFd, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    sync::Arc,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        signal::Signal,
        socket::{SockaddrStorage, bind},
    },
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

/// What a socket does about packets that are too large for the path, `IP_MTU_DISCOVER` or
/// `IPV6_MTU_DISCOVER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMtuDiscovery {
    /// They are fragmented, here or on the way.
    Dont = libc::IP_PMTUDISC_DONT as isize,
    /// They are never fragmented.
    Do = libc::IP_PMTUDISC_DO as isize,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the size of an int fits socklen_t"
)]
pub fn set_path_mtu_discovery(socket: &UdpSocket, discovery: PathMtuDiscovery) -> io::Result<()> {
    // The values mean the same in both families.
    let (level, option) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    let value = discovery as libc::c_int;
    // SAFETY: the pointer is to one int, the length is its size, and the kernel copies it before
    // the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A socket that sends and receives packets of an IP protocol, whatever it is, with the address; its port is not used.
pub fn ip_socket(address: SocketAddr, protocol: u8) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by the kernel and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
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

/// Has a packet socket put before each frame, and expect there, what is left to the network card:
/// `struct virtio_net_hdr`.
pub fn show_offloads(socket: &impl AsRawFd) -> io::Result<()> {
    const LEN: libc::socklen_t = 4;

    let on: libc::c_int = 1;
    // SAFETY: the pointer is to an int, the length is that, and the kernel copies it before the call
    // returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            LEN,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Datagrams in one call of [`send_burst`] or [`receive_burst`].
pub const BURST: usize = 32;

/// Sends [`BURST`] datagrams of `payload` by one system call on a connected socket, and returns how
/// many the kernel took.
pub fn send_burst(socket: &impl AsRawFd, payload: &[u8]) -> io::Result<usize> {
    let mut payload = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    let mut messages = [message(&mut payload); BURST];
    // SAFETY: every message names the one vector, which names the payload; both live until after
    // the call, and the kernel only reads the payload. Name and control pointers are null.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), COUNT, 0) };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

/// Receives up to [`BURST`] datagrams by one system call and forgets their content; returns how many
/// there were. Waits for the first one, unless the socket is non-blocking.
pub fn receive_burst(socket: &impl AsRawFd) -> io::Result<usize> {
    let mut scratch = [0_u8; 2048];
    let mut buffer = libc::iovec {
        iov_base: scratch.as_mut_ptr().cast(),
        iov_len: scratch.len(),
    };
    let mut messages = [message(&mut buffer); BURST];
    // SAFETY: every message names the one vector, which names the scratch space; both live until
    // after the call. That one datagram overwrites another there is meant to be. Name and control
    // pointers are null.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            COUNT,
            libc::MSG_WAITFORONE,
            std::ptr::null_mut(),
        )
    };
    usize::try_from(received).map_err(|_negative| io::Error::last_os_error())
}

#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const COUNT: libc::c_uint = BURST as libc::c_uint;

/// A message of one vector, with neither address nor control data.
fn message(vector: &mut libc::iovec) -> libc::mmsghdr {
    libc::mmsghdr {
        msg_hdr: libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: vector,
            msg_iovlen: 1,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        },
        msg_len: 0,
    }
}

/// A tun interface of this name in the caller's network namespace: packets are read from and written to
/// the file, bare. The interface goes with it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the flags fit the field the kernel has for them"
)]
pub fn tun(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all zeros is a value of each of the struct's fields.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the pointer is to a whole `ifreq`, which the kernel reads and writes before the call
    // returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Bytes that this process has allocated and not freed.
pub fn heap_in_use() -> usize {
    // SAFETY: it only reads the allocator's own counters, under its locks.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}
