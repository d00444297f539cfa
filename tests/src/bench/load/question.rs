//! Questions as resolvers ask them: a new UDP socket for each, so every one is a flow of its own.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Outcome, Plan, meter::Meter};

const QUESTION: [u8; 64] = [0x5a; 64];
/// What ends the server.
const QUIT: [u8; 1] = [b'q'];
/// An answer that has not come by then is lost.
const LOST: Duration = Duration::from_secs(1);

pub fn run(plan: &Plan) -> Result<Outcome> {
    let address = SocketAddr::new(plan.server.address, plan.port);
    let server = plan
        .server
        .namespace
        .enter(|| UdpSocket::bind(address))
        .with_context(|| format!("bind {address}"))?;
    let target = plan.target;
    let ask = || -> Result<UdpSocket> {
        let socket = UdpSocket::bind(SocketAddr::new(plan.client.address, 0))?;
        socket.set_read_timeout(Some(LOST))?;
        socket.connect(target)?;
        Ok(socket)
    };
    let questions = |length: Duration| -> Result<u64> {
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < length {
            let socket = ask()?;
            socket.send(&QUESTION)?;
            let mut answer = QUESTION;
            socket.recv(&mut answer).context("wait for the answer")?;
            count += 1;
        }
        Ok(count)
    };
    thread::scope(|scope| {
        let answering = scope.spawn(|| -> Result<()> {
            let mut question = QUESTION;
            loop {
                let (len, from) = server.recv_from(&mut question)?;
                if question[..len] == QUIT {
                    return Ok(());
                }
                server.send_to(&question[..len], from)?;
            }
        });
        // A new socket belongs to the namespace of the thread that makes it.
        let measured = plan.client.namespace.enter(|| -> Result<Outcome> {
            let measured = questions(plan.warm_up).and_then(|_| {
                let meter = Meter::start(plan.cpu)?;
                let count = questions(plan.length)?;
                meter.stop(count, count)
            });
            ask()?.send(&QUIT)?;
            measured
        })?;
        answering
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(measured)
    })
}
