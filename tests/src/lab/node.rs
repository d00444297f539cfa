//! A node of the lab: its namespace, its pods, and what runs the overlay on it.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    maps::{Array, LpmTrie, Map, MapData},
    programs::links::{FdLink, PinnedLink},
};
use ipnetwork::Ipv4Network;
use nix::sys::signal::Signal;
use overlay_common::{
    ABI_VERSION,
    addr::{Ipv4Be, MacAddr},
    config::{Config, FASTPATH_OFF},
    family::{V4, V6, WireFamily},
    maps,
    outcome::Hook,
    route::RouteEntry,
};

use super::{
    agent::{self, Launch},
    counters::Counters,
    pod::{self, Attachment, Pod},
    state::State,
    stock::{Cluster, Stock, Subnets},
    store::Store,
    subnet_env::SubnetEnv,
    underlay,
};
use crate::{
    capture::Capture,
    netns::Namespace,
    process::{Daemon, Lifetime},
    traffic::{Endpoint, udp},
    wait::wait_for,
};

/// A slow machine that builds something beside the test still meets this.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// What a running flow may take to become fast.
const FAST_DEADLINE: Duration = Duration::from_secs(10);

/// Pods a node can number.
const POD_LIMIT: u32 = 250;

#[derive(Debug)]
pub struct Node {
    pub name: String,
    /// Address on the underlay.
    pub address: Ipv4Addr,
    /// Index of the underlay segment.
    pub segment: u8,
    pub namespace: Namespace,
    pub subnet_file: PathBuf,
    pub pin_dir: PathBuf,
    pub(super) state: Arc<State>,
    hub: Namespace,
    running: Mutex<Running>,
    pods: Mutex<Vec<Pod>>,
}

/// What runs the overlay on a node.
#[derive(Debug)]
enum Running {
    Nothing,
    Agent(Daemon),
    Stock(Stock),
}

impl Node {
    pub(super) fn create(
        state: &Arc<State>,
        underlay: &underlay::Underlay,
        name: &str,
        segment: u8,
        address: Ipv4Addr,
    ) -> Result<Self> {
        let namespace = state.create_namespace(name)?;
        namespace.set_sysctl("net/ipv4/ip_forward", "1")?;
        underlay.connect(&namespace, name, segment, address)?;
        let dir = state.dir().join(name);
        fs::create_dir_all(&dir)?;
        Ok(Self {
            name: name.to_owned(),
            address,
            segment,
            namespace,
            subnet_file: dir.join("subnet.env"),
            pin_dir: state.pin_dir(name),
            state: Arc::clone(state),
            hub: underlay.hub().clone(),
            running: Mutex::new(Running::Nothing),
            pods: Mutex::new(Vec::new()),
        })
    }

    /// Runs a command on the node.
    pub fn cmd<'a>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Result<String> {
        self.namespace.run(program, args)
    }

    /// Runs code on the node, on a thread of its own.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.namespace.enter(body)
    }

    /// The node itself as an end of traffic.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            namespace: self.namespace.clone(),
            address: self.address,
        }
    }

    /// Captures what passes between this node and its segment.
    pub fn capture_wire(&self) -> Result<Capture> {
        Capture::start(&self.hub, &self.name)
    }

    pub fn log_file(&self) -> PathBuf {
        self.state.log_file(&self.name)
    }

    // The overlay on this node.

    /// Starts the agent with the lab's arguments and `extra` ones.
    pub fn start_agent(&self, store: &Store, extra: &[&str]) -> Result<()> {
        self.launch(&Launch::new(store, extra))
    }

    /// Starts the agent the way `launch` says.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        let lifetime = if self.state.is_kept() {
            Lifetime::Detached
        } else {
            Lifetime::Bound
        };
        *self.running() = Running::Agent(launch.start(self, &self.log_file(), lifetime)?);
        Ok(())
    }

    /// Runs another agent on the node until it ends by itself: its status and what it wrote.
    pub fn run_to_end(&self, launch: &Launch, within: Duration) -> Result<(ExitStatus, String)> {
        let log = self.state.log_file(&format!("{}-second", self.name));
        let agent = launch.start(self, &log, Lifetime::Bound)?;
        Ok((agent.wait_exit(within)?, agent.log()))
    }

    /// Waits until the agent has a lease and has written `subnet.env`.
    pub fn wait_ready(&self) -> Result<SubnetEnv> {
        wait_for(
            &format!("subnet.env of {}", self.name),
            READY_DEADLINE,
            || {
                self.check_running()?;
                self.subnet_env()
            },
        )
    }

    /// An error if the agent was started and has ended.
    pub fn check_running(&self) -> Result<()> {
        match &*self.running() {
            Running::Agent(daemon) => daemon.check_running(),
            Running::Nothing | Running::Stock(_) => Ok(()),
        }
    }

    /// Calls `body` with the running agent.
    pub fn with_agent<T>(&self, body: impl FnOnce(&Daemon) -> Result<T>) -> Result<T> {
        match &*self.running() {
            Running::Agent(daemon) => body(daemon),
            Running::Nothing | Running::Stock(_) => bail!("no agent runs on {}", self.name),
        }
    }

    pub fn kill_agent(&self) -> Result<()> {
        self.with_agent(Daemon::kill)
    }

    /// SIGTERM, and an error unless the agent ends with status 0.
    pub fn stop_agent(&self) -> Result<()> {
        let status = self.with_agent(Daemon::stop)?;
        if !status.success() {
            bail!("the agent of {} ended with {status}", self.name);
        }
        Ok(())
    }

    pub fn signal_agent(&self, signal: Signal) -> Result<()> {
        self.with_agent(|agent| agent.signal(signal))
    }

    /// Whether this node runs the agent (and not a stand-in).
    pub fn runs_agent(&self) -> bool {
        matches!(&*self.running(), Running::Agent(_))
    }

    /// Makes this node a stand-in for one with stock flanneld, with the subnet it leases.
    pub fn start_stock(&self, store: &Store, config: &str, subnet: &str) -> Result<()> {
        let stock = Stock::start(
            self,
            store,
            &Cluster::parse(config)?,
            Subnets::parse(subnet)?,
        )?;
        *self.running() = Running::Stock(stock);
        Ok(())
    }

    /// Makes a stand-in follow the leases; other nodes do so by themselves.
    pub fn follow_leases(&self, store: &Store) -> Result<()> {
        match &mut *self.running() {
            Running::Stock(stock) => stock.follow(self, store),
            Running::Nothing | Running::Agent(_) => Ok(()),
        }
    }

    /// Runs an operator command of the agent against this node's pins.
    pub fn operator(&self, words: &[&str]) -> Result<String> {
        agent::operator(self, words)
    }

    pub fn operator_json(&self, words: &[&str]) -> Result<serde_json::Value> {
        agent::operator_json(self, words)
    }

    /// What `status` says, whatever it finds, and the code it exits with.
    pub fn status(&self) -> Result<(Option<i32>, String)> {
        agent::status(self)
    }

    /// Names the node's subnet file to an agent, or to a command.
    pub fn subnet_file_flag(&self) -> String {
        format!("--subnet-file={}", self.subnet_file.display())
    }

    /// The first pod, which has to be there.
    pub fn first_pod(&self) -> Endpoint {
        self.pods()[0].endpoint()
    }

    pub fn subnet_env(&self) -> Result<SubnetEnv> {
        SubnetEnv::read(&self.subnet_file)
    }

    /// Where the agent's pin of a map is.
    pub fn map_pin(&self, map: &str) -> PathBuf {
        self.pin_dir.join(format!("v{ABI_VERSION}")).join(map)
    }

    /// What the pinned configuration of a family says of the fast path.
    fn fastpath<F>(&self, map: &str) -> Result<u32>
    where
        F: WireFamily,
        Config<F>: aya::Pod,
    {
        let data = MapData::from_pin(self.map_pin(map))?;
        let config = Array::<_, Config<F>>::try_from(Map::Array(data))?;
        Ok(config.get(&0, 0)?.fastpath)
    }

    /// The subnets in the pinned route map, read without the agent's help.
    pub fn mapped_subnets(&self) -> Result<Vec<Ipv4Network>> {
        let pin = self.map_pin(maps::ROUTES4);
        let data = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let map = LpmTrie::<_, Ipv4Be, RouteEntry>::try_from(Map::LpmTrie(data))?;
        map.keys()
            .map(|key| {
                let key = key?;
                Ok(Ipv4Network::new(
                    key.data().into(),
                    u8::try_from(key.prefix_len())?,
                )?)
            })
            .collect()
    }

    /// The packet counters, read from the pinned map.
    pub fn counters(&self) -> Result<Counters> {
        Counters::read(&self.map_pin(maps::STATS))
    }

    /// Waits until packets of flows that run are fast in both directions.
    pub fn wait_fast(&self) -> Result<()> {
        let before = self.counters()?;
        wait_for("fast packets both ways", FAST_DEADLINE, || {
            let counted = self.counters()?.since(&before);
            for hook in [Hook::Egress, Hook::Ingress] {
                ensure!(counted.fast(hook) >= 100, "counted\n{counted}");
            }
            Ok(())
        })
    }

    /// Waits until most of what a pod of this node asks one of another is fast, out of this node and into
    /// the other, with nothing lost meanwhile.
    pub fn wait_fast_echoes(&self, from: &Endpoint, node: &Self, to: &Endpoint) -> Result<()> {
        wait_for("fast packets between pods", READY_DEADLINE, || {
            let before = (self.counters()?, node.counters()?);
            udp::echo_each(from, to, &[100], 50)?.ensure_lossless()?;
            let out = self.counters()?.since(&before.0);
            let into = node.counters()?.since(&before.1);
            ensure!(out.fast(Hook::Egress) >= 25, "out of the node:\n{out}");
            ensure!(into.fast(Hook::Ingress) >= 25, "into the node:\n{into}");
            Ok(())
        })
    }

    /// The route map as `bpftool` shows it.
    pub fn dump_routes(&self) -> Result<String> {
        let pin = self.map_pin(maps::ROUTES4);
        let pin = pin
            .to_str()
            .with_context(|| format!("{} is not UTF-8", pin.display()))?;
        self.cmd("bpftool", ["map", "dump", "pinned", pin])
    }

    // Pods.

    /// Adds a pod with the next free address. The first one brings the bridge.
    pub fn add_pod(&self, name: &str, attachment: Attachment) -> Result<Pod> {
        let env = self.subnet_env()?;
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if attachment == Attachment::Bridge && !self.has_interface(pod::BRIDGE) {
            pod::create_bridge(&self.namespace, &env)?;
        }
        let taken = |address| pods.iter().any(|pod| pod.address == address);
        let address = (0..POD_LIMIT)
            .map(|index| env.pod_address(index))
            .find(|&address| !taken(address));
        let address = address.context("no free pod address")?;
        let pod = Pod::create(self, &self.state, name, address, attachment, &env)?;
        pods.push(pod.clone());
        Ok(pod)
    }

    /// The namespace of a process that the node's container runtime started. It goes with the lab.
    pub fn attach_namespace(&self, name: &str, pid: u32) -> Result<Namespace> {
        self.state
            .attach_namespace(&format!("{}-{name}", self.name), pid)
    }

    pub fn remove_pod(&self, name: &str) -> Result<()> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let index = pods.iter().position(|pod| pod.name == name);
        let pod = pods.remove(index.with_context(|| format!("no pod {name} on {}", self.name))?);
        pod.remove(&self.namespace)
    }

    pub fn pods(&self) -> Vec<Pod> {
        self.pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// MAC address of an interface.
    pub fn mac(&self, interface: &str) -> Result<MacAddr> {
        self.namespace.mac(interface)
    }

    /// The programs attached to an interface, by hook, as the kernel knows them: the ids of the
    /// links. Read from the pins.
    pub fn attached(&self, interface: &str) -> Result<BTreeMap<String, u32>> {
        let prefix = format!("{}-", self.namespace.ifindex(interface)?);
        let mut hooks = BTreeMap::new();
        for entry in fs::read_dir(self.pin_dir.join("links"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(hook) = name.strip_prefix(&prefix) {
                let link = PinnedLink::from_pin(&path)?;
                hooks.insert(hook.to_owned(), FdLink::from(link).info()?.id());
            }
        }
        Ok(hooks)
    }

    /// Waits until the programs are attached to a pod's interface, if this node's agent attaches any.
    pub fn wait_attached(&self, interface: &str) -> Result<()> {
        if !self.runs_agent() || !self.pin_dir.join("links").exists() {
            return Ok(());
        }
        let what = format!("programs on {interface} of {}", self.name);
        wait_for(&what, READY_DEADLINE, || {
            let links = self.pinned_links()?;
            let names = links.get(interface).into_iter().flatten();
            // Without tcx, programs that filters run; the qdisc's mark is none.
            let mut hooks: Vec<_> = names
                .map(|name| name.strip_suffix("-filter").unwrap_or(name))
                .filter(|&name| name != "clsact")
                .collect();
            hooks.sort_unstable();
            // Without a fast path nobody has to learn what is delivered.
            let modes = [
                self.fastpath::<V4>(maps::CONFIG),
                self.fastpath::<V6>(maps::CONFIG6),
            ];
            let is_off = modes.iter().all(|mode| matches!(mode, Ok(FASTPATH_OFF)));
            let are_there = hooks == ["deliver", "egress"] || is_off && hooks == ["egress"];
            ensure!(are_there, "{hooks:?}");
            Ok(())
        })
    }

    /// The pinned links by the interface they are pinned for; `if7` for one that is gone.
    pub fn pinned_links(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut links: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for entry in fs::read_dir(self.pin_dir.join("links"))? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            let (ifindex, hook) = file.split_once('-').context("a link's file name")?;
            let ifindex: u32 = ifindex.parse()?;
            let name = self.enter(|| nix::net::if_::if_indextoname(ifindex));
            let name = name.map_or_else(
                |_| format!("if{ifindex}"),
                |name| name.to_string_lossy().into_owned(),
            );
            links.entry(name).or_default().push(hook.to_owned());
        }
        Ok(links)
    }

    /// Where the links of a pod's veth are pinned.
    pub fn pod_link_pins(&self, pod: &Pod) -> Result<[PathBuf; 2]> {
        let ifindex = self.namespace.ifindex(&pod.host_interface)?;
        let pin = |hook: Hook| {
            self.pin_dir
                .join(format!("links/{ifindex}-{}", hook.name()))
        };
        Ok([pin(Hook::Egress), pin(Hook::Deliver)])
    }

    pub fn has_interface(&self, name: &str) -> bool {
        self.cmd("ip", ["link", "show", name]).is_ok()
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
