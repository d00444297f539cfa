//! A cluster on one machine: N nodes on one or more underlay segments, real etcd, pods.
//!
//! ```no_run
//! # use overlay_tests::lab::{Lab, scenario};
//! scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
//!     lab.bring_up(2)?;
//!     lab.ping_matrix()
//! });
//! ```
//!
//! Labs of one machine do not see each other: any number may run at a time, in one process or in
//! many.

pub mod agent;
pub mod counters;
mod evidence;
pub mod family;
pub mod holdings;
pub mod ipv6;
pub mod node;
mod other_build;
pub mod pod;
mod state;
pub mod stock;
pub mod store;
pub mod subnet_env;
pub mod underlay;

use std::{
    path::Path,
    sync::Arc,
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use overlay_common::addr::MacAddr;

pub use self::{
    node::Node,
    pod::{Attachment, Pod},
    underlay::Wire,
};
use self::{state::State, stock::Cluster, store::Store, underlay::Underlay};
use crate::{requirements::require_root, traffic::ping, wait::wait_for};

/// The network config a lab has unless told otherwise.
pub const DEFAULT_CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

const CONVERGE_DEADLINE: Duration = Duration::from_secs(30);

/// What to build.
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: u8,
    routed_nodes: u8,
    config: Option<String>,
    wire: Wire,
    /// 0: one on the router.
    etcd_members: u8,
    etcd_in_memory: bool,
    kept: Option<String>,
}

/// A running lab. Dropping it removes it; when the thread panics, evidence is printed first.
pub struct Lab {
    nodes: Vec<Node>,
    store: Option<Store>,
    config: Option<String>,
    underlay: Underlay,
    /// Last: it deletes the namespaces, and what runs in them must be gone.
    state: Arc<State>,
}

/// One pair of pods, by their indexes in [`Lab::pods`], and the ping from one to the other.
#[derive(Debug)]
pub struct PairPing {
    pub from: usize,
    pub to: usize,
    /// For people: `n1/a → n2/b`.
    pub path: String,
    pub round_trip: Result<Duration>,
}

/// Builds a lab, runs `test` on it, and panics if either fails.
pub fn scenario(builder: Builder, test: impl FnOnce(&mut Lab) -> Result<()>) {
    require_root();
    let mut lab = builder
        .build()
        .unwrap_or_else(|error| panic!("building the lab: {error:#}"));
    if let Err(error) = test(&mut lab) {
        panic!("{error:#}");
    }
}

impl Builder {
    /// Nodes `n1`, `n2`, … on the first segment.
    #[must_use]
    pub fn nodes(mut self, count: u8) -> Self {
        self.nodes = count;
        self
    }

    /// Further nodes on a second segment, behind the router.
    #[must_use]
    pub fn routed_nodes(mut self, count: u8) -> Self {
        self.routed_nodes = count;
        self
    }

    /// The network config JSON.
    #[must_use]
    pub fn config(mut self, json: &str) -> Self {
        self.config = Some(json.to_owned());
        self
    }

    /// An etcd that holds nothing yet.
    #[must_use]
    pub fn without_config(mut self) -> Self {
        self.config = None;
        self
    }

    /// An etcd of so many members, each on a machine of its own.
    #[must_use]
    pub fn etcd_members(mut self, count: u8) -> Self {
        self.etcd_members = count;
        self
    }

    /// Etcd writes to no disk: for those who measure how long it takes.
    #[must_use]
    pub fn etcd_in_memory(mut self) -> Self {
        self.etcd_in_memory = true;
        self
    }

    #[must_use]
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    /// A lab that stays when the process ends, under this name; see [`remove`].
    #[must_use]
    pub fn kept_as(mut self, name: &str) -> Self {
        self.kept = Some(name.to_owned());
        self
    }

    /// Builds the nodes and starts etcd; no node runs anything yet.
    pub fn build(self) -> Result<Lab> {
        let state = Arc::new(State::claim(self.kept.as_deref())?);
        let (hub, router) = (
            state.create_namespace("hub")?,
            state.create_namespace("router")?,
        );
        let segments = if self.routed_nodes > 0 { 2 } else { 1 };
        // Some labs are about a config that nobody can read.
        let cluster = self.config.as_deref().map(Cluster::parse);
        let ipv6 = cluster.is_some_and(|cluster| cluster.is_ok_and(|cluster| cluster.ipv6));
        let underlay = Underlay::create(hub, router, segments, self.wire, ipv6)?;
        let mut lab = Lab {
            nodes: Vec::new(),
            store: None,
            config: self.config,
            underlay,
            state,
        };
        for index in 0..self.nodes + self.routed_nodes {
            let segment = u8::from(index >= self.nodes);
            let address = underlay::node_address(segment, index);
            let name = format!("n{}", index + 1);
            lab.nodes.push(Node::create(
                &lab.state,
                &lab.underlay,
                &name,
                segment,
                address,
            )?);
        }
        if self.etcd_in_memory {
            lab.state.hold_etcd_in_memory()?;
        }
        let store = if self.etcd_members == 0 {
            Store::start(lab.underlay.router(), &lab.state.etcd_dir())?
        } else {
            Store::start_members(&lab.state, &lab.underlay, self.etcd_members)?
        };
        if let Some(config) = &lab.config {
            store.set_config(config)?;
        }
        lab.store = Some(store);
        Ok(lab)
    }
}

impl Lab {
    pub fn builder() -> Builder {
        Builder {
            nodes: 2,
            routed_nodes: 0,
            config: Some(DEFAULT_CONFIG.to_owned()),
            wire: Wire::default(),
            etcd_members: 0,
            etcd_in_memory: false,
            kept: None,
        }
    }

    pub fn id(&self) -> &str {
        self.state.id()
    }

    /// Logs and files of the lab.
    pub fn dir(&self) -> &Path {
        self.state.dir()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// What the network config says.
    pub fn cluster(&self) -> Result<Cluster> {
        let config = self.config.as_deref();
        Cluster::parse(config.context("a lab without a network config")?)
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("a built lab has its store")
    }

    pub fn store_mut(&mut self) -> &mut Store {
        self.store.as_mut().expect("a built lab has its store")
    }

    /// Agents and `pods` pods on every node that runs nothing yet, and all of them in touch.
    pub fn bring_up(&self, pods: u8) -> Result<()> {
        self.start_agents(&[])?;
        self.add_pods(pods)?;
        self.wait_converged()?;
        self.wait_attached()
    }

    /// Starts the agent on every node that runs nothing, and waits until each is ready.
    pub fn start_agents(&self, extra: &[&str]) -> Result<()> {
        let idle: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| node.subnet_env().is_err())
            .collect();
        for node in &idle {
            node.start_agent(self.store(), extra)?;
        }
        for node in &idle {
            node.wait_ready()?;
        }
        Ok(())
    }

    /// Starts the agent on one node, and waits until it is ready.
    pub fn start_agent(&self, node: &Node, extra: &[&str]) -> Result<()> {
        node.start_agent(self.store(), extra)?;
        node.wait_ready().map(drop)
    }

    /// Makes a node a stand-in for one with stock flanneld. `subnet` is written as in a lease's key,
    /// but with slashes: `10.5.34.0/24`, `10.5.34.0/24&fd00:10:5:1::/64`, `fd00:10:5:1::/64`.
    pub fn start_stock(&self, node: &Node, subnet: &str) -> Result<()> {
        let config = self
            .config
            .as_deref()
            .context("a stand-in needs a network config")?;
        node.start_stock(self.store(), config, subnet)
    }

    /// Adds `count` pods behind the bridge of every node, named `a`, `b`, …, and waits until they
    /// reach their gateway: a port of a bridge forwards some time after it is there.
    pub fn add_pods(&self, count: u8) -> Result<()> {
        for node in &self.nodes {
            for letter in (b'a'..).take(count.into()) {
                node.add_pod(&char::from(letter).to_string(), Attachment::Bridge)?;
            }
        }
        for (node, pod) in self.pods() {
            ping::once(&pod.endpoint(), node.subnet_env()?.gateway.ip())?;
        }
        Ok(())
    }

    /// Waits until the programs are attached to every pod: before, its flows earn nothing.
    pub fn wait_attached(&self) -> Result<()> {
        for (node, pod) in self.pods() {
            node.wait_attached(&pod.host_interface)?;
        }
        Ok(())
    }

    /// Waits until every node reaches every other's subnet: a kernel route on each, and on those
    /// that run the agent an entry in the route map.
    pub fn wait_converged(&self) -> Result<()> {
        for node in &self.nodes {
            node.follow_leases(self.store())?;
        }
        wait_for("all nodes to know all subnets", CONVERGE_DEADLINE, || {
            for node in &self.nodes {
                self.check_converged(node)?;
            }
            Ok(())
        })
    }

    /// An error that says what `node` lacks of the other nodes' subnets.
    pub fn check_converged(&self, node: &Node) -> Result<()> {
        node.check_running()?;
        let routes = node.cmd("ip", ["route", "show"])?;
        let mapped = if node.runs_agent() {
            Some(node.mapped_subnets()?)
        } else {
            None
        };
        for peer in self.nodes.iter().filter(|peer| peer.name != node.name) {
            let Ok(env) = peer.subnet_env() else { continue };
            let subnet = env.subnet()?;
            // With the udp backend one route leads to the forwarder, which knows the subnets.
            if !routes.lines().any(|line| {
                line.starts_with(&format!("{subnet} ")) || line.contains(" dev flannel0 ")
            }) {
                bail!("{} has no route to {subnet}; it has\n{routes}", node.name);
            }
            if let Some(mapped) = &mapped
                && !mapped.contains(&subnet)
            {
                bail!(
                    "{} has no map entry for {subnet}; it has {mapped:?}",
                    node.name
                );
            }
        }
        Ok(())
    }

    /// All pods of all nodes, with their node.
    pub fn pods(&self) -> Vec<(&Node, Pod)> {
        let of = |node| Node::pods(node).into_iter().map(move |pod| (node, pod));
        self.nodes.iter().flat_map(of).collect()
    }

    /// Pings from every pod to every other, all at once.
    pub fn ping_pairs(&self) -> Vec<PairPing> {
        let pods = self.pods();
        thread::scope(|scope| {
            let mut pings = Vec::new();
            for (from, (node, pod)) in pods.iter().enumerate() {
                for (to, (peer_node, peer)) in pods.iter().enumerate().filter(|(to, _)| *to != from)
                {
                    let path = format!(
                        "{}/{} → {}/{}",
                        node.name, pod.name, peer_node.name, peer.name
                    );
                    let ping = scope.spawn(|| ping::once(&pod.endpoint(), peer.address));
                    pings.push((from, to, path, ping));
                }
            }
            let finish = |(from, to, path, ping): (_, _, _, ScopedJoinHandle<'_, _>)| {
                let round_trip = ping
                    .join()
                    .unwrap_or_else(|_panic| Err(anyhow!("panicked")));
                PairPing {
                    from,
                    to,
                    path,
                    round_trip,
                }
            };
            pings.into_iter().map(finish).collect()
        })
    }

    /// An error that names every pair of pods without an answer to a ping, if there is one.
    pub fn ping_matrix(&self) -> Result<()> {
        let failure = |pair: PairPing| Some(format!("{}: {:#}", pair.path, pair.round_trip.err()?));
        let failures: Vec<_> = self.ping_pairs().into_iter().filter_map(failure).collect();
        ensure!(
            failures.is_empty(),
            "pings without answer:\n{}",
            failures.join("\n")
        );
        Ok(())
    }

    /// The router, a host outside the pod network.
    pub fn outside(&self) -> crate::traffic::Endpoint {
        crate::traffic::Endpoint {
            namespace: self.underlay.router().clone(),
            address: underlay::router_address(0),
        }
    }

    /// Everything there is to know about the state of the lab, for people.
    pub fn evidence(&self) -> String {
        evidence::collect(self)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.evidence());
        }
        if self.state.is_kept()
            && let Some(store) = self.store.take()
        {
            store.leave_running();
        }
    }
}

/// Removes the lab `id`, whoever built it; what runs in its namespaces is killed. Says whether
/// there was one.
pub fn remove(id: &str) -> Result<bool> {
    state::remove_by_id(id)
}

fn random_mac() -> MacAddr {
    MacAddr::new(rand::random()).to_local_unicast()
}
