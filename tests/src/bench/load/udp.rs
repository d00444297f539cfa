//! 64-byte datagrams.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Outcome, Plan, meter::Meter, pin_to};
use crate::sys;

const PAYLOAD: [u8; 64] = [0x5a; 64];
/// Datagrams under way, of those sent from another core.
const WINDOW: u64 = 256;
/// Nothing comes for so long: what is under way is lost.
const GIVEN_UP: Duration = Duration::from_millis(5);
/// How often a receiver that hears nothing looks whether it is over.
const POLL: Duration = Duration::from_millis(50);

fn sockets(plan: &Plan) -> Result<(UdpSocket, UdpSocket)> {
    let at = |endpoint: &crate::traffic::Endpoint<IpAddr>, port| {
        let address = SocketAddr::new(endpoint.address, port);
        endpoint
            .namespace
            .enter(|| UdpSocket::bind(address))
            .with_context(|| format!("bind {address}"))
    };
    let sender = at(&plan.client, 0)?;
    sender.connect(plan.target)?;
    Ok((sender, at(&plan.server, plan.port)?))
}

/// Sends a burst, receives it, and so on: no context switch blurs what a packet costs, and the system
/// calls, which are the same for all, are shared by 32.
pub fn alternate(plan: &Plan) -> Result<Outcome> {
    let (client, server) = sockets(plan)?;
    server.set_nonblocking(true)?;
    let exchange = |length: Duration| -> Result<(u64, u64)> {
        let (start, mut sent, mut received) = (Instant::now(), 0, 0);
        while start.elapsed() < length {
            sent += send(&client)?;
            loop {
                let got = receive(&server)?;
                if got == 0 {
                    break;
                }
                received += got;
            }
        }
        Ok((received, sent))
    };
    exchange(plan.warm_up)?;
    let meter = Meter::start(plan.cpu)?;
    let (received, sent) = exchange(plan.length)?;
    meter.stop(received, sent)
}

/// Sends from one core, receives on the other. Never more than [`WINDOW`] datagrams are under way:
/// they pass the one queue of the receiving core several times, and a sender that fills it measures
/// how often a packet finds room there.
pub fn flood(plan: &Plan) -> Result<Outcome> {
    let (client, server) = sockets(plan)?;
    server.set_read_timeout(Some(POLL))?;
    let over = AtomicBool::new(false);
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            pin_to(plan.sender_cpu)?;
            let mut lost = 0;
            let mut progress = (0, Instant::now());
            while !over.load(Ordering::Relaxed) {
                let (out, back) = (
                    sent.load(Ordering::Relaxed),
                    received.load(Ordering::Relaxed),
                );
                if back > progress.0 {
                    progress = (back, Instant::now());
                }
                if out.saturating_sub(back + lost) < WINDOW {
                    sent.fetch_add(send(&client)?, Ordering::Relaxed);
                } else if progress.1.elapsed() > GIVEN_UP {
                    lost = out - back;
                    progress.1 = Instant::now();
                } else {
                    std::hint::spin_loop();
                }
            }
            Ok(())
        });
        let count = |length: Duration| -> Result<u64> {
            let (start, mut count) = (Instant::now(), 0);
            while start.elapsed() < length {
                let got = receive(&server)?;
                received.fetch_add(got, Ordering::Relaxed);
                count += got;
            }
            Ok(count)
        };
        let measured = (|| {
            count(plan.warm_up)?;
            let meter = Meter::start(plan.cpu)?;
            let before = sent.load(Ordering::Relaxed);
            let count = count(plan.length)?;
            meter.stop(count, sent.load(Ordering::Relaxed) - before)
        })();
        over.store(true, Ordering::Relaxed);
        let sending = sending
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sending.and(measured)
    })
}

/// How many the kernel took.
fn send(socket: &UdpSocket) -> Result<u64> {
    match sys::send_burst(socket, &PAYLOAD) {
        Ok(count) => Ok(u64::try_from(count)?),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
        Err(error) => Err(error).context("send"),
    }
}

/// How many there were.
fn receive(socket: &UdpSocket) -> Result<u64> {
    match sys::receive_burst(socket) {
        Ok(count) => Ok(u64::try_from(count)?),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error).context("receive"),
    }
}
