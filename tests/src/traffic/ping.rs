//! ICMP echo.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Ipv4Header};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recv,
            sendto, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use super::{Endpoint, pattern};
use crate::wait::scaled;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub count: u16,
    /// Bytes after the ICMP header.
    pub payload: usize,
    /// Pause between two requests.
    pub interval: Duration,
    /// How long one reply may take.
    pub patience: Duration,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub sent: u16,
    /// Round-trip time of every reply.
    pub round_trips: Vec<Duration>,
    /// TTL of the last reply as it arrived.
    pub ttl: u8,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            count: 1,
            payload: 56,
            interval: Duration::from_millis(10),
            patience: Duration::from_secs(1),
        }
    }
}

/// Sends requests one after the other; each must be answered before the next goes out, or counts
/// as lost. An error is something else than loss.
pub fn run(from: &Endpoint, to: Ipv4Addr, spec: Spec) -> Result<Report> {
    from.namespace
        .enter(|| exchange(from.address, to, spec))
        .with_context(|| format!("ping from {} to {to}", from.address))
}

/// One answered ping, with two retries: the first packet to a peer may be lost to ARP.
pub fn once(from: &Endpoint, to: Ipv4Addr) -> Result<Duration> {
    for _attempt in 0..3 {
        if let [round_trip, ..] = run(from, to, Spec::default())?.round_trips[..] {
            return Ok(round_trip);
        }
    }
    bail!("no answer from {to} to {}", from.address)
}

/// An error unless every one of `count` requests is answered.
pub fn all(from: &Endpoint, to: Ipv4Addr, count: u16) -> Result<Report> {
    let report = run(
        from,
        to,
        Spec {
            count,
            ..Spec::default()
        },
    )?;
    let answered = report.round_trips.len();
    ensure!(
        answered == usize::from(report.sent),
        "{answered} of {} pings from {} to {to} were answered",
        report.sent,
        from.address
    );
    Ok(report)
}

fn exchange(from: Ipv4Addr, to: Ipv4Addr, spec: Spec) -> Result<Report> {
    ensure!(
        spec.payload <= pattern::MAX_PIECE,
        "payload of {} bytes",
        spec.payload
    );
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )?;
    bind(
        socket.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(from, 0)),
    )?;
    // Concurrent pings of one pod must not take each other's replies.
    let id: u16 = rand::random();
    let mut report = Report::default();
    for seq in 0..spec.count {
        if seq > 0 {
            thread::sleep(spec.interval);
        }
        let echo = IcmpEchoHeader { id, seq };
        let start = Instant::now();
        send(&socket, to, echo, spec.payload)?;
        report.sent += 1;
        if let Some(ttl) = wait_reply(&socket, to, echo, spec)? {
            report.ttl = ttl;
            report.round_trips.push(start.elapsed());
        }
    }
    Ok(report)
}

fn send(socket: &OwnedFd, to: Ipv4Addr, echo: IcmpEchoHeader, len: usize) -> Result<()> {
    let payload = pattern::piece(u64::from(echo.seq), len);
    let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload);
    let message = [&header.to_bytes()[..], payload].concat();
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    match sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty()) {
        // An unreachable network is loss like any other.
        Ok(_) | Err(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => Ok(()),
        Err(errno) => Err(errno).context("send"),
    }
}

/// The reply's TTL, or `None` if it does not come in time.
fn wait_reply(
    socket: &OwnedFd,
    from: Ipv4Addr,
    echo: IcmpEchoHeader,
    spec: Spec,
) -> Result<Option<u8>> {
    let deadline = Instant::now() + scaled(spec.patience);
    let mut buffer = vec![0; 65_536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        setsockopt(socket, sockopt::ReceiveTimeout, &time_val(left))?;
        let len = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(errno) => return Err(errno).context("receive"),
        };
        // Every ICMP packet for this host arrives here: others are skipped.
        let Ok((ip, message)) = Ipv4Header::from_slice(&buffer[..len]) else {
            continue;
        };
        let Ok((icmp, payload)) = Icmpv4Header::from_slice(message) else {
            continue;
        };
        if ip.source != from.octets() || icmp.icmp_type != Icmpv4Type::EchoReply(echo) {
            continue;
        }
        ensure!(
            payload.len() == spec.payload,
            "reply of {} bytes",
            payload.len()
        );
        pattern::verify(u64::from(echo.seq), payload)?;
        return Ok(Some(ip.time_to_live));
    }
}

fn time_val(duration: Duration) -> TimeVal {
    // Zero would mean "no timeout".
    let micros = i64::try_from(duration.as_micros())
        .unwrap_or(i64::MAX)
        .max(1);
    TimeVal::new(micros / 1_000_000, micros % 1_000_000)
}
