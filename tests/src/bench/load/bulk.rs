//! One TCP stream. On one core nothing reorders it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Outcome, Plan, meter::Meter};

const BLOCK: usize = 128 << 10;

pub fn run(plan: &Plan) -> Result<Outcome> {
    let (mut client, mut server) = plan.connected()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            let block = vec![0x5a; BLOCK];
            loop {
                match client.write(&block) {
                    Ok(_) => {}
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                        ) =>
                    {
                        return Ok(());
                    }
                    Err(error) => return Err(error).context("write"),
                }
            }
        });
        let mut block = vec![0; BLOCK];
        let mut receive = |length: Duration| -> Result<u64> {
            let (start, mut bytes) = (Instant::now(), 0);
            while start.elapsed() < length {
                bytes += u64::try_from(server.read(&mut block)?)?;
            }
            Ok(bytes)
        };
        let measured = (|| {
            receive(plan.warm_up)?;
            let meter = Meter::start(plan.cpu)?;
            let bytes = receive(plan.length)?;
            meter.stop(bytes, bytes)
        })();
        // Unread data makes closing a reset, which ends the sender.
        server.shutdown(Shutdown::Both)?;
        drop(server);
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        measured
    })
}
