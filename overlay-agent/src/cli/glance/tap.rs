//! Frames at interfaces, watched for a moment: a packet socket sees fast packets as well, for the programs send
//! and receive where every packet passes it.
#![expect(
    unsafe_code,
    reason = "packet sockets are bound, and say what they lost, in structs of the C library"
)]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, setsockopt, socket, sockopt},
};

/// As many frames are read at a time; of more it is known how many there were.
const MOST: u32 = 8_192;
/// The kernel keeps so many bytes of frames that are not read yet.
const BUFFER: usize = 4 << 20;
/// Enough for the headers of a tunnel packet and of the packet in it.
const HEAD: usize = 192;

/// How much of what passed was read, and within what time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub passed: u32,
    pub read: u32,
    /// Longer than was asked for where the machine is busy.
    pub time: Duration,
}

struct Tap(OwnedFd);

/// Hands frames at these interfaces to `take` for some time: the beginning of each, and its length.
pub fn watch(
    ifindexes: &[u32],
    time: Duration,
    mut take: impl FnMut(&[u8], usize),
) -> io::Result<Share> {
    let taps = { ifindexes.iter() }.map(|&ifindex| Tap::open(ifindex));
    let taps: Vec<Tap> = taps.collect::<io::Result<_>>()?;
    let since = Instant::now();
    let until = since + time;
    let mut read = 0;
    let mut buffer = [0; HEAD];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if read >= MOST {
            thread::sleep(left);
            break;
        }
        let mut ready: Vec<PollFd<'_>> = { taps.iter() }
            .map(|tap| PollFd::new(tap.0.as_fd(), PollFlags::POLLIN))
            .collect();
        let patience = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        match poll(&mut ready, PollTimeout::from(patience.max(1))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for tap in &taps {
            while read < MOST
                && let Some(len) = tap.next(&mut buffer)?
            {
                read += 1;
                take(buffer.get(..len).unwrap_or(&buffer), len);
            }
        }
    }
    let mut passed: u32 = 0;
    for tap in &taps {
        passed = passed.saturating_add(tap.passed()?);
    }
    Ok(Share {
        passed,
        read,
        time: since.elapsed(),
    })
}

impl Tap {
    /// Takes `CAP_NET_RAW`.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the constants and the size fit the fields the kernel has for them"
    )]
    fn open(ifindex: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // For no protocol: it receives nothing before it is bound to the one interface.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        // Without the capability for that the default will do.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: ifindex.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the pointer is to a whole `sockaddr_ll`, the length is its size, and the kernel copies it
        // before the call returns.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        Errno::result(bound)?;
        Ok(Self(socket))
    }

    /// The length of the next frame, of which the buffer gets the beginning; `None` if there is none now.
    fn next(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
            Ok(len) => Ok(Some(len)),
            // The interface went down; another look will say what there is instead.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// How many frames came, those among them that found no room.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the size of a struct of two numbers"
    )]
    fn passed(&self) -> io::Result<u32> {
        let mut stats = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut len = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: both pointers are to variables of this function, and `len` is the size of the first, which
        // the kernel does not write beyond.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        Errno::result(result)?;
        Ok(stats.tp_packets)
    }
}
