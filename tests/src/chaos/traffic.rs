//! What goes on between the pods of all nodes, and what each step costs it.

use std::{
    net::Ipv6Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use crate::{
    traffic::{Address, Endpoint, connection::SteadyConnection, flow::SteadyFlow},
    wait::wait_for,
};

/// Between two datagrams of a flow.
const INTERVAL: Duration = Duration::from_millis(5);
/// Between two messages on a connection.
const EXCHANGE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);
/// Datagrams between the beginning of a step and what is done in it: those under way when something
/// breaks are the step's, and not those of the one before.
const LEAD: u32 = 20;

/// Flows and connections in a ring of pods, in each family.
#[derive(Default)]
pub struct Traffic {
    flows: Vec<SteadyFlow>,
    connections: Vec<SteadyConnection>,
    begun: Vec<Mark>,
}

/// How many datagrams each flow had sent, and when.
struct Mark {
    sent: Vec<u32>,
    at: Instant,
}

/// What a step cost.
pub struct Cost {
    /// Datagrams that each flow lost, there or back.
    pub lost: Vec<u32>,
    pub time: Duration,
}

/// So many datagrams a flow sends in that many milliseconds.
pub fn datagrams_in(milliseconds: u32) -> u32 {
    let interval = u32::try_from(INTERVAL.as_millis()).unwrap_or(u32::MAX);
    milliseconds / interval
}

impl Traffic {
    pub fn start(pods: &[Endpoint], pods6: &[Endpoint<Ipv6Addr>]) -> Result<Self> {
        let mut traffic = Self::default();
        traffic.add_ring(pods)?;
        traffic.add_ring(pods6)?;
        Ok(traffic)
    }

    fn add_ring<A: Address>(&mut self, pods: &[Endpoint<A>]) -> Result<()> {
        for (from, to) in pods.iter().zip(pods.iter().cycle().skip(1)) {
            self.flows.push(SteadyFlow::start(from, to, INTERVAL)?);
            self.connections
                .push(SteadyConnection::open(from, to, EXCHANGE)?);
        }
        Ok(())
    }

    /// What is lost from now on is the next step's.
    pub fn begin_step(&mut self) -> Result<()> {
        self.begun.push(Mark {
            sent: self.flows.iter().map(SteadyFlow::sent).collect(),
            at: Instant::now(),
        });
        self.go_on(LEAD)
    }

    /// Waits while each flow sends so many datagrams.
    pub fn go_on(&self, datagrams: u32) -> Result<()> {
        let before: Vec<_> = self.flows.iter().map(SteadyFlow::sent).collect();
        wait_for("the flows to go on", PATIENCE, || {
            let mut flows = self.flows.iter().zip(&before);
            ensure!(flows.all(|(flow, before)| flow.sent() >= before + datagrams));
            Ok(())
        })
    }

    /// Ends it: what each step cost, and what broke.
    pub fn stop(self) -> (Vec<Cost>, Vec<String>) {
        let ended = Instant::now();
        let (flows, connections): (Vec<_>, Vec<_>) = thread::scope(|scope| {
            let flows: Vec<_> = self
                .flows
                .into_iter()
                .map(|flow| scope.spawn(|| flow.stop()))
                .collect();
            let connections: Vec<_> = self
                .connections
                .into_iter()
                .map(|connection| scope.spawn(|| connection.close()))
                .collect();
            (
                flows
                    .into_iter()
                    .map(|flow| flow.join().unwrap_or_else(|_| Err(anyhow!("panicked"))))
                    .collect(),
                connections
                    .into_iter()
                    .map(|connection| {
                        connection
                            .join()
                            .unwrap_or_else(|_| Err(anyhow!("panicked")))
                    })
                    .collect(),
            )
        });
        let mut broken = Vec::new();
        let mut lost = Vec::new();
        for flow in flows {
            match flow {
                Ok(report) => lost.push(report.datagrams.lost),
                Err(error) => {
                    broken.push(format!("{error:#}"));
                    lost.push(Vec::new());
                }
            }
        }
        for connection in connections {
            match connection {
                Ok(report) => println!(
                    "chaos: TCP: {} exchanges, the longest {:?}",
                    report.exchanges, report.longest
                ),
                Err(error) => broken.push(format!("{error:#}")),
            }
        }
        let cost = |(number, begun): (usize, &Mark)| {
            let next = self.begun.get(number + 1);
            let of_step = |at: usize, lost: &Vec<u32>| {
                let until = next.map_or(u32::MAX, |next| next.sent[at]);
                let of_step = begun.sent[at]..until;
                let lost = lost
                    .iter()
                    .filter(|number| of_step.contains(number))
                    .count();
                u32::try_from(lost).unwrap_or(u32::MAX)
            };
            Cost {
                lost: lost
                    .iter()
                    .enumerate()
                    .map(|(at, lost)| of_step(at, lost))
                    .collect(),
                time: next.map_or(ended, |next| next.at) - begun.at,
            }
        };
        (self.begun.iter().enumerate().map(cost).collect(), broken)
    }
}
