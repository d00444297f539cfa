//! An agent that is killed and started again among many peers, under traffic.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::cluster::{self, Ghost, Writer};
use crate::{traffic::flow::SteadyFlow, wait::wait_for};

const INTERVAL: Duration = Duration::from_millis(1);
const DEADLINE: Duration = Duration::from_mins(1);
/// Traffic before and after.
const AROUND: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
pub struct Restart {
    /// From the start of the agent until it is ready.
    pub ready: Duration,
    pub sent: u32,
    pub lost: usize,
}

impl Restart {
    pub fn to_json(self) -> Value {
        json!({
            "ready_ms": self.ready.as_secs_f64() * 1e3,
            "sent": self.sent,
            "lost": self.lost,
        })
    }
}

/// Two nodes among `size` others, and a flow between their pods. The agent of one is killed; the next
/// one finds everything in place.
pub fn run(size: u32) -> Result<Restart> {
    let lab = cluster::lab(2)?;
    Writer::connect(&lab)?.put_all((0..size).map(Ghost::new))?;
    lab.start_agents(&[])?;
    lab.add_pods(1)?;
    lab.wait_attached()?;
    wait_for("the pods to reach each other", DEADLINE, || {
        lab.ping_matrix()
    })?;
    let node = lab.node(0);
    let [from, to] = [node, lab.node(1)].map(|node| node.pods()[0].endpoint());
    let flow = SteadyFlow::start(&from, &to, INTERVAL)?;
    node.wait_fast()?;
    thread::sleep(AROUND);
    node.kill_agent()?;
    std::fs::remove_file(&node.subnet_file)?;
    let began = Instant::now();
    node.start_agent(lab.store(), &[])?;
    while node.subnet_env().is_err() {
        ensure!(began.elapsed() < DEADLINE, "no subnet file");
        node.check_running()?;
        thread::sleep(INTERVAL);
    }
    let ready = began.elapsed();
    thread::sleep(AROUND);
    let datagrams = flow.stop()?.datagrams;
    Ok(Restart {
        ready,
        sent: datagrams.sent,
        lost: datagrams.lost.len(),
    })
}
