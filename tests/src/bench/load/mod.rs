//! The load generator: one client and one server in two network namespaces, driven by one process
//! whose CPU time is the cost of the whole way between them.
//!
//! Every load but [`Kind::Flood`] runs on one core: client, server, and, as receive packet steering
//! is pinned to that core as well, every softirq between them. The kernel charges a softirq to the
//! task it interrupts (unless built with IRQ_TIME_ACCOUNTING), so the CPU time of the process and of
//! the core's `ksoftirqd` is what the packets cost, whatever else the machine does.

mod bulk;
mod connect;
mod meter;
mod ping;
mod question;
mod udp;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::traffic::Endpoint;

/// The same congestion control everywhere: one that paces would hide what the CPU could do.
const CONGESTION_CONTROL: &str = "cubic";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// 64-byte datagrams, sent and received by one thread in turns
    Udp,
    /// 64-byte datagrams, sent from another core, with at most 256 under way
    Flood,
    /// TCP: one byte there and one back, over and over
    Ping,
    /// TCP: connect, one byte each way, close
    Connect,
    /// UDP: a new socket, 64 bytes each way
    Question,
    /// TCP: as many bytes as go
    Bulk,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub client: Endpoint<IpAddr>,
    pub server: Endpoint<IpAddr>,
    /// Port the server listens on.
    pub port: u16,
    /// What the client addresses.
    pub target: SocketAddr,
    /// The core that is measured.
    pub cpu: usize,
    /// Where [`Kind::Flood`] sends from.
    pub sender_cpu: usize,
    /// Time before the measurement begins.
    pub warm_up: Duration,
    pub length: Duration,
}

/// What one run did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Datagrams received, round trips, connections, questions, or bytes.
    pub operations: u64,
    /// Datagrams sent.
    pub sent: u64,
    pub wall_ns: u64,
    /// CPU time of the process.
    pub process_ns: u64,
    /// CPU time of the core's `ksoftirqd`.
    pub softirqd_ns: u64,
    /// CPU time in user mode of the process, as ticks count it.
    pub process_user_ns: u64,
    /// The same of everything on the machine.
    pub machine_user_ns: u64,
    /// CPU time of everything on the machine.
    pub machine_busy_ns: u64,
    pub machine_idle_ns: u64,
    /// Time the hypervisor gave to others.
    pub steal_ns: u64,
    pub latency: Option<Latency>,
}

/// Percentiles of round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    pub p50_ns: u64,
    pub p99_ns: u64,
}

impl Outcome {
    pub fn cpu_ns(&self) -> u64 {
        self.process_ns + self.softirqd_ns
    }

    pub fn to_json(&self) -> Value {
        json!({
            "operations": self.operations,
            "sent": self.sent,
            "wall_ns": self.wall_ns,
            "process_ns": self.process_ns,
            "softirqd_ns": self.softirqd_ns,
            "process_user_ns": self.process_user_ns,
            "machine_user_ns": self.machine_user_ns,
            "machine_busy_ns": self.machine_busy_ns,
            "machine_idle_ns": self.machine_idle_ns,
            "steal_ns": self.steal_ns,
            "p50_ns": self.latency.map(|latency| latency.p50_ns),
            "p99_ns": self.latency.map(|latency| latency.p99_ns),
        })
    }

    pub fn from_json(value: &Value) -> Result<Self> {
        let number = |name: &str| {
            value[name]
                .as_u64()
                .with_context(|| format!("no number `{name}` in {value}"))
        };
        let latency = match (value["p50_ns"].as_u64(), value["p99_ns"].as_u64()) {
            (Some(p50_ns), Some(p99_ns)) => Some(Latency { p50_ns, p99_ns }),
            _ => None,
        };
        Ok(Self {
            operations: number("operations")?,
            sent: number("sent")?,
            wall_ns: number("wall_ns")?,
            process_ns: number("process_ns")?,
            softirqd_ns: number("softirqd_ns")?,
            process_user_ns: number("process_user_ns")?,
            machine_user_ns: number("machine_user_ns")?,
            machine_busy_ns: number("machine_busy_ns")?,
            machine_idle_ns: number("machine_idle_ns")?,
            steal_ns: number("steal_ns")?,
            latency,
        })
    }
}

/// Runs one load to its end.
pub fn run(kind: Kind, plan: &Plan) -> Result<Outcome> {
    // Threads inherit it.
    pin_to(plan.cpu)?;
    match kind {
        Kind::Udp => udp::alternate(plan),
        Kind::Flood => udp::flood(plan),
        Kind::Ping => ping::run(plan),
        Kind::Connect => connect::run(plan),
        Kind::Question => question::run(plan),
        Kind::Bulk => bulk::run(plan),
    }
}

/// Binds the calling thread to one core.
pub fn pin_to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pin to CPU {cpu}"))
}

impl Plan {
    fn listen(&self) -> Result<TcpListener> {
        let address = SocketAddr::new(self.server.address, self.port);
        let listener = self
            .server
            .namespace
            .enter(|| TcpListener::bind(address))
            .with_context(|| format!("listen on {address}"))?;
        use_cubic(&listener)?;
        Ok(listener)
    }

    /// The two ends of one connection, the client's first.
    fn connected(&self) -> Result<(TcpStream, TcpStream)> {
        let listener = self.listen()?;
        let target = self.target;
        let client = self
            .client
            .namespace
            .enter(|| TcpStream::connect(target))
            .with_context(|| format!("connect to {target}"))?;
        use_cubic(&client)?;
        let (server, _) = listener.accept()?;
        Ok((client, server))
    }
}

fn use_cubic(socket: &impl AsFd) -> Result<()> {
    setsockopt(socket, sockopt::TcpCongestion, &CONGESTION_CONTROL.into())
        .with_context(|| format!("congestion control {CONGESTION_CONTROL}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_survives_its_json() {
        let outcome = Outcome {
            operations: 5,
            sent: 6,
            wall_ns: 7,
            process_ns: 8,
            softirqd_ns: 9,
            process_user_ns: 10,
            machine_user_ns: 11,
            machine_busy_ns: 12,
            machine_idle_ns: 13,
            steal_ns: 16,
            latency: Some(Latency {
                p50_ns: 14,
                p99_ns: 15,
            }),
        };
        let read = Outcome::from_json(&outcome.to_json()).expect("its own JSON");
        assert_eq!(read, outcome);
        assert_eq!(read.cpu_ns(), 17);
    }

    #[test]
    fn json_of_something_else_is_an_error() {
        let error = Outcome::from_json(&json!({"operations": 1})).expect_err("fields are missing");
        assert!(format!("{error:#}").contains("`sent`"), "{error:#}");
    }
}
