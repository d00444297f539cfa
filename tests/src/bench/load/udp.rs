//! 64-byte datagrams.

use std::{
    io::ErrorKind,
    net::{SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Outcome, Plan, meter::Meter, pin_to};

const PAYLOAD: [u8; 64] = [0x5a; 64];
/// Datagrams sent before any is received: few enough for every queue on the way.
const BURST: u64 = 32;
/// How often a receiver that hears nothing looks whether it is over.
const POLL: Duration = Duration::from_millis(50);

fn sockets(plan: &Plan) -> Result<(UdpSocket, UdpSocket)> {
    let at = |endpoint: &crate::traffic::Endpoint, port| {
        let address = SocketAddrV4::new(endpoint.address, port);
        endpoint
            .namespace
            .enter(|| UdpSocket::bind(address))
            .with_context(|| format!("bind {address}"))
    };
    let sender = at(&plan.client, 0)?;
    sender.connect(plan.target())?;
    Ok((sender, at(&plan.server, plan.port)?))
}

/// Sends a burst, receives it, and so on: no context switch blurs what a packet costs.
pub fn alternate(plan: &Plan) -> Result<Outcome> {
    let (client, server) = sockets(plan)?;
    server.set_nonblocking(true)?;
    let exchange = |length: Duration| -> Result<(u64, u64)> {
        let (start, mut sent, mut received) = (Instant::now(), 0, 0);
        while start.elapsed() < length {
            for _ in 0..BURST {
                sent += u64::from(send(&client)?);
            }
            while receive(&server)? {
                received += 1;
            }
        }
        Ok((received, sent))
    };
    exchange(plan.warm_up)?;
    let meter = Meter::start(plan.cpu)?;
    let (received, sent) = exchange(plan.length)?;
    meter.stop(received, sent)
}

/// Sends from one core, receives on the other.
pub fn flood(plan: &Plan) -> Result<Outcome> {
    let (client, server) = sockets(plan)?;
    server.set_read_timeout(Some(POLL))?;
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            pin_to(plan.sender_cpu)?;
            while !over.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    sent.fetch_add(u64::from(send(&client)?), Ordering::Relaxed);
                }
            }
            Ok(())
        });
        let count = |length: Duration| -> Result<u64> {
            let (start, mut received) = (Instant::now(), 0);
            while start.elapsed() < length {
                received += u64::from(receive(&server)?);
            }
            Ok(received)
        };
        let measured = (|| {
            count(plan.warm_up)?;
            let meter = Meter::start(plan.cpu)?;
            let before = sent.load(Ordering::Relaxed);
            let received = count(plan.length)?;
            meter.stop(received, sent.load(Ordering::Relaxed) - before)
        })();
        over.store(true, Ordering::Relaxed);
        let sending = sending
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sending.and(measured)
    })
}

/// Whether the kernel took it.
fn send(socket: &UdpSocket) -> Result<bool> {
    match socket.send(&PAYLOAD) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(false),
        Err(error) => Err(error).context("send"),
    }
}

/// Whether there was one.
fn receive(socket: &UdpSocket) -> Result<bool> {
    let mut buffer = [0; 2 * PAYLOAD.len()];
    match socket.recv(&mut buffer) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error).context("receive"),
    }
}
