//! TCP round trips of one byte, between two threads that wait for each other.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Latency, Outcome, Plan, meter::Meter};

/// Round trips there is room for; the memory is touched before the measurement.
const ROOM: usize = 1 << 21;

pub fn run(plan: &Plan) -> Result<Outcome> {
    let (mut client, mut server) = plan.connected()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut times = vec![u32::MAX; ROOM];
    times.clear();
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            let mut byte = [0];
            while server.read(&mut byte)? == 1 {
                server.write_all(&byte)?;
            }
            Ok(())
        });
        let measured = (|| {
            round_trips(&mut client, plan.warm_up, &mut times)?;
            times.clear();
            let meter = Meter::start(plan.cpu)?;
            round_trips(&mut client, plan.length, &mut times)?;
            let count = u64::try_from(times.len())?;
            meter.stop(count, count)
        })();
        client.shutdown(Shutdown::Both)?;
        echo.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let latency = percentiles(&mut times);
        measured.map(|outcome| Outcome { latency, ..outcome })
    })
}

fn round_trips(client: &mut TcpStream, length: Duration, times: &mut Vec<u32>) -> Result<()> {
    let start = Instant::now();
    let mut before = start;
    let mut byte = [1];
    while before - start < length && times.len() < ROOM {
        client.write_all(&byte)?;
        client.read_exact(&mut byte)?;
        let now = Instant::now();
        let nanoseconds = (now - before).as_nanos();
        times.push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
        before = now;
    }
    Ok(())
}

fn percentiles(times: &mut [u32]) -> Option<Latency> {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied();
    Some(Latency {
        p50_ns: at(50)?.into(),
        p99_ns: at(99)?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_count_from_the_shortest() {
        let mut times: Vec<u32> = (0..1_000).rev().collect();
        assert_eq!(
            percentiles(&mut times),
            Some(Latency {
                p50_ns: 500,
                p99_ns: 990
            })
        );
        assert_eq!(percentiles(&mut []), None);
    }
}
