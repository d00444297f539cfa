//! ICMPv6 echo.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use etherparse::{IcmpEchoHeader, Icmpv6Header, Icmpv6Type};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, recv,
            sendto, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use super::{Endpoint, pattern};
use crate::wait::scaled;

/// Bytes after the ICMPv6 header.
const PAYLOAD: usize = 56;
/// How long one reply may take.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: TimeVal = TimeVal::new(0, 20_000);

/// One answered ping, with two retries: the first packet to a neighbour may be lost.
pub fn once(from: &Endpoint<Ipv6Addr>, to: Ipv6Addr) -> Result<()> {
    for _attempt in 0..3 {
        if answered(from, to, 1)? == 1 {
            return Ok(());
        }
    }
    bail!("no answer from {to} to {}", from.address)
}

/// An error unless every one of `count` requests is answered.
pub fn all(from: &Endpoint<Ipv6Addr>, to: Ipv6Addr, count: u16) -> Result<()> {
    let answered = answered(from, to, count)?;
    if answered != count {
        bail!(
            "{answered} of {count} pings from {} to {to} were answered",
            from.address
        );
    }
    Ok(())
}

/// How many of `count` requests are answered; each is awaited before the next goes out.
pub fn answered(from: &Endpoint<Ipv6Addr>, to: Ipv6Addr, count: u16) -> Result<u16> {
    from.namespace
        .enter(|| exchange(from.address, to, count))
        .with_context(|| format!("ping from {} to {to}", from.address))
}

fn exchange(from: Ipv6Addr, to: Ipv6Addr, count: u16) -> Result<u16> {
    let socket = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::IcmpV6,
    )?;
    let local = SockaddrIn6::from(SocketAddrV6::new(from, 0, 0, 0));
    bind(socket.as_raw_fd(), &local)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TICK)?;
    let id: u16 = rand::random();
    let mut answered = 0;
    for seq in 0..count {
        let echo = IcmpEchoHeader { id, seq };
        let payload = pattern::piece(u64::from(seq), PAYLOAD);
        // The kernel computes the checksum of ICMPv6 messages.
        let header = Icmpv6Header::new(Icmpv6Type::EchoRequest(echo));
        let message = [&header.to_bytes()[..], payload].concat();
        let target = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
        match sendto(socket.as_raw_fd(), &message, &target, MsgFlags::empty()) {
            // An unreachable network is loss like any other.
            Ok(_) | Err(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {}
            Err(errno) => return Err(errno).context("send"),
        }
        answered += u16::from(is_answered(&socket, echo)?);
    }
    Ok(answered)
}

fn is_answered(socket: &OwnedFd, echo: IcmpEchoHeader) -> Result<bool> {
    let deadline = Instant::now() + scaled(PATIENCE);
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        let len = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(errno) => return Err(errno).context("receive"),
        };
        // Every ICMPv6 message for this host arrives here: others are skipped.
        let Ok((icmp, payload)) = Icmpv6Header::from_slice(&buffer[..len]) else {
            continue;
        };
        if icmp.icmp_type == Icmpv6Type::EchoReply(echo) {
            pattern::verify(u64::from(echo.seq), payload)?;
            return Ok(true);
        }
    }
    Ok(false)
}
