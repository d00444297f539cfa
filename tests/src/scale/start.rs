//! From the start of a program to the last route, and to readiness.

use std::{
    fmt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    cluster::{self, Ghost, Writer},
    cost::Cost,
    mirror::Mirror,
    routes::RouteLog,
};
use crate::{
    lab::{
        Lab, Node,
        agent::Launch,
        store::{PREFIX, Store},
        underlay::NODE_INTERFACE,
    },
    process::{Daemon, Lifetime},
};

const DEADLINE: Duration = Duration::from_mins(1);
/// After this long nothing of the start is still under way.
const CALM: Duration = Duration::from_secs(4);

/// What runs the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    Agent,
    /// Stock flanneld, at this path.
    Flanneld(PathBuf),
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "overlay-agent",
            Self::Flanneld(_) => "flanneld",
        })
    }
}

impl Program {
    /// Runs it on a node.
    pub fn start(&self, node: &Node, store: &Store, flags: &[&str]) -> Result<Daemon> {
        let log = node.log_file();
        match self {
            Self::Agent => Launch::new(store, flags).start(node, &log, Lifetime::Bound),
            Self::Flanneld(path) => {
                let mut command = node.namespace.command(&path.to_string_lossy());
                command
                    .arg(format!("--etcd-endpoints={}", store.endpoints()))
                    .arg(format!("--etcd-prefix={PREFIX}"))
                    .arg(format!("--iface={NODE_INTERFACE}"))
                    .arg(node.subnet_file_flag());
                Daemon::start("flanneld", command, &log, Lifetime::Bound)
            }
        }
    }
}

/// A node among so many others, on which the program runs. It is gone before the lab is.
pub struct Site {
    pub daemon: Daemon,
    mirror: Option<Mirror>,
    pub routes: RouteLog,
    pub writer: Writer,
    pub size: u32,
    pub program: Program,
    pub lab: Lab,
}

/// What a start took.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// To the last route.
    pub routed: Duration,
    /// To the subnet file.
    pub ready: Duration,
    pub at_last_route: Cost,
    /// When all was quiet again.
    pub in_all: Cost,
}

impl Start {
    pub fn to_json(self) -> Value {
        json!({
            "routed_ms": self.routed.as_secs_f64() * 1e3,
            "ready_ms": self.ready.as_secs_f64() * 1e3,
            "at_last_route": self.at_last_route.to_json(),
            "in_all": self.in_all.to_json(),
        })
    }
}

impl Site {
    /// Builds a cluster and starts the program in it.
    pub fn start(program: &Program, size: u32) -> Result<(Self, Start)> {
        Self::start_with(program, size, &[])
    }

    /// With flags for the agent.
    pub fn start_with(program: &Program, size: u32, flags: &[&str]) -> Result<(Self, Start)> {
        Self::start_in(cluster::lab(1)?, program, size, flags)
    }

    /// The agent, among nodes that answer its probes.
    pub fn start_answered(size: u32, flags: &[&str]) -> Result<(Self, Start)> {
        let lab = cluster::lab(1)?;
        let mirror = Mirror::start(&lab)?;
        let (mut running, start) = Self::start_in(lab, &Program::Agent, size, flags)?;
        running.mirror = Some(mirror);
        Ok((running, start))
    }

    fn start_in(lab: Lab, program: &Program, size: u32, flags: &[&str]) -> Result<(Self, Start)> {
        let writer = Writer::connect(&lab)?;
        writer.put_all((0..size).map(Ghost::new))?;
        let node = lab.node(0);
        let routes = RouteLog::start(&node.namespace)?;
        let began = Instant::now();
        let daemon = program.start(node, lab.store(), flags)?;
        let last = routes.wait_count(usize::try_from(size)?, DEADLINE)?;
        let at_last_route = Cost::of(daemon.pid())?;
        while node.subnet_env().is_err() {
            ensure!(began.elapsed() < DEADLINE, "no subnet file");
            daemon.check_running()?;
            thread::sleep(Duration::from_millis(1));
        }
        let ready = began.elapsed();
        thread::sleep(CALM);
        let start = Start {
            routed: last.saturating_duration_since(began),
            ready,
            at_last_route,
            in_all: Cost::of(daemon.pid())?,
        };
        let running = Self {
            daemon,
            mirror: None,
            routes,
            writer,
            size,
            program: program.clone(),
            lab,
        };
        Ok((running, start))
    }

    pub fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Probes that invented nodes have answered.
    pub fn answered(&self) -> u64 {
        self.mirror.as_ref().map_or(0, Mirror::answered)
    }

    pub fn cost(&self) -> Result<Cost> {
        Cost::of(self.daemon.pid())
    }
}
