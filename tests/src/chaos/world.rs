//! The cluster that things happen to: three nodes, a pod on each, all talking.

use std::{collections::BTreeSet, fs, mem, thread, time::Duration};

use anyhow::Result;
use nix::sys::signal::Signal;

use super::{
    plan::{Flavour, Remedy, Step},
    traffic::{Cost, Traffic},
};
use crate::{
    lab::{Attachment, Lab, Node, agent::Launch},
    traffic::ping,
};

/// Where agents say whether they are ready.
pub const HEALTH_PORT: u16 = 2401;
const HEALTH: &str = "--healthz-port=2401";

pub struct World {
    pub lab: Lab,
    pub flavour: Flavour,
    traffic: Traffic,
    /// Maps that nothing may hold in the end.
    pub retired: BTreeSet<u32>,
}

impl World {
    /// Has the cluster run and its pods talk, fast.
    pub fn start(lab: Lab, flavour: Flavour) -> Result<Self> {
        for node in lab.nodes() {
            if flavour.has_ipv6() {
                // Else an interface that goes down for a moment loses its addresses, which is another test.
                node.namespace
                    .set_sysctl("net/ipv6/conf/all/keep_addr_on_down", "1")?;
            }
        }
        lab.start_agents(&[HEALTH])?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        let mut pods6 = Vec::new();
        if flavour.has_ipv6() {
            for (node, pod) in lab.pods() {
                pods6.push(node.add_ipv6(&pod)?);
            }
            lab.wait_converged6()?;
        }
        lab.wait_attached()?;
        lab.ping_matrix()?;
        let pods: Vec<_> = lab.pods().iter().map(|(_, pod)| pod.endpoint()).collect();
        let traffic = Traffic::start(&pods, &pods6)?;
        for node in lab.nodes() {
            node.wait_fast()?;
        }
        Ok(Self {
            lab,
            flavour,
            traffic,
            retired: BTreeSet::new(),
        })
    }

    pub fn begin_step(&mut self) -> Result<()> {
        self.traffic.begin_step()
    }

    /// Lets the pods talk for a while.
    pub fn go_on(&self, datagrams: u32) -> Result<()> {
        self.traffic.go_on(datagrams)
    }

    /// All that agents said, and the state of the lab.
    pub fn evidence(&self) -> String {
        let mut text = String::new();
        for node in self.lab.nodes() {
            let log = fs::read_to_string(node.log_file()).unwrap_or_else(|error| error.to_string());
            text += &[&node.name, " said\n", &log].concat();
        }
        text + &self.lab.evidence()
    }

    /// Ends the traffic: what each step cost, and what broke.
    pub fn stop_traffic(&mut self) -> (Vec<Cost>, Vec<String>) {
        mem::take(&mut self.traffic).stop()
    }

    /// Does what the step says.
    pub fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Etcd { trouble, meanwhile } => {
                self.begin_trouble(*trouble)?;
                let taken = self.take(meanwhile).and_then(|()| self.go_on(100));
                self.end_trouble(*trouble)?;
                taken
            }
            Step::Dead { node, meanwhile } => {
                self.lab.node(*node).kill_agent()?;
                self.take(meanwhile)?;
                let node = self.lab.node(*node);
                match node.check_running() {
                    // What was done included a start.
                    Ok(()) => Ok(()),
                    Err(_) => self.start_agent(node),
                }
            }
            Step::Compact => self.compact(),
            Step::LoseLease { node } => self.lose_lease(*node),
            Step::Junk(junk) => self.put_junk(*junk),
            Step::Peers { count } => self.peers_come_and_go(*count),
            Step::Kill { node, starts } => {
                let node = self.lab.node(*node);
                node.kill_agent()?;
                for &time in starts {
                    self.start_agent(node)?;
                    thread::sleep(Duration::from_millis(time.into()));
                    node.kill_agent()?;
                }
                self.start_agent(node)
            }
            Step::Restart { node } => {
                let node = self.lab.node(*node);
                node.stop_agent()?;
                self.start_agent(node)
            }
            Step::Upgrade { node, from } => {
                let ids = self.lab.node(*node).pinned_map_ids()?;
                self.retired.extend(ids.into_iter().map(|(_, id)| id));
                let node = self.lab.node(*node);
                node.kill_agent()?;
                node.leave_pins_of_version(*from)?;
                self.start_agent(node)
            }
            Step::OtherTime {
                node,
                monotonic,
                boottime,
            } => {
                let node = self.lab.node(*node);
                node.kill_agent()?;
                let mut launch = self.launch();
                launch.wrapper = vec![
                    "unshare".to_owned(),
                    "--time".to_owned(),
                    format!("--monotonic={monotonic}"),
                    format!("--boottime={boottime}"),
                ];
                node.launch(&launch)
            }
            Step::Freeze { node, time } => {
                let node = self.lab.node(*node);
                node.signal_agent(Signal::SIGSTOP)?;
                thread::sleep(Duration::from_millis((*time).into()));
                node.signal_agent(Signal::SIGCONT)
            }
            Step::Pod { node } => {
                let node = self.lab.node(*node);
                let pod = node.add_pod("passing", Attachment::Bridge)?;
                for (_, other) in self.lab.pods() {
                    if other.address != pod.address {
                        ping::once(&pod.endpoint(), other.address)?;
                    }
                }
                node.remove_pod("passing")
            }
            Step::Flap { .. }
            | Step::Device { .. }
            | Step::Routes { .. }
            | Step::Neighbours { .. }
            | Step::Forwarding { .. }
            | Step::Rules { .. }
            | Step::Links { .. }
            | Step::Map { .. }
            | Step::Entries { .. } => self.damage(step),
        }
    }

    /// Has an agent look at everything; one that is dead is started.
    pub fn apply(&self, remedy: Remedy, node: &Node) -> Result<()> {
        match remedy {
            Remedy::Reload if node.check_running().is_ok() => node.signal_agent(Signal::SIGHUP),
            Remedy::Reload | Remedy::Restart => self.restart_killed(node),
        }
    }

    pub fn restart_killed(&self, node: &Node) -> Result<()> {
        node.kill_agent()?;
        self.start_agent(node)
    }

    fn start_agent(&self, node: &Node) -> Result<()> {
        node.launch(&self.launch())
    }

    fn launch(&self) -> Launch {
        Launch::new(self.lab.store(), &[HEALTH])
    }
}
