//! TCP connections that live for one byte each way and end with a reset: no port stays in
//! TIME_WAIT.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Outcome, Plan, meter::Meter};

/// What a client asks to end the server.
const QUIT: u8 = b'q';
const REQUEST: u8 = b'r';

pub fn run(plan: &Plan) -> Result<Outcome> {
    let listener = plan.listen()?;
    let target = plan.target;
    thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            loop {
                let (mut stream, _) = listener.accept()?;
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                if byte == [QUIT] {
                    return Ok(());
                }
                stream.write_all(&byte)?;
                // Until the client's reset.
                match stream.read(&mut byte) {
                    Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                        return Err(error).context("wait for the reset");
                    }
                    _ => {}
                }
            }
        });
        let connections = |length: Duration| -> Result<u64> {
            let (start, mut count) = (Instant::now(), 0);
            while start.elapsed() < length {
                let mut stream =
                    TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
                reset_on_close(&stream)?;
                let mut byte = [REQUEST];
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                count += 1;
            }
            Ok(count)
        };
        // A new socket belongs to the namespace of the thread that makes it.
        let measured = plan.client.namespace.enter(|| -> Result<Outcome> {
            connections(plan.warm_up)?;
            let meter = Meter::start(plan.cpu)?;
            let count = connections(plan.length)?;
            let outcome = meter.stop(count, count);
            TcpStream::connect(target)?.write_all(&[QUIT])?;
            outcome
        })?;
        server
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(measured)
    })
}

fn reset_on_close(stream: &impl AsFd) -> Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &linger).context("SO_LINGER")
}
