//! `overlay-agent status`: is this node's fast path healthy, and if not, why not.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use ipnetwork::Ipv4Network;
use overlay_common::{
    ABI_VERSION,
    addr::Ipv4Be,
    config::Config,
    flow::{Flow, FlowKey4},
    maps::MAX_NODES,
    node::Node,
    outcome::{Counter, Hook, Kind, Outcome},
    route::Route,
};
use serde::Serialize;

use super::{
    flows::{self, State},
    ipv6::Tier,
    pinned::{Pinned, interface_label, interface_name},
    stats::FastPath,
};
use crate::{
    datapath::{self, DatapathError, Fastpath, LinkState},
    output::{self, Table, grouped},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy,
    Degraded,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub health: Health,
    /// Why it is not healthy.
    pub problems: Vec<String>,
    pub pin_dir: PathBuf,
    pub abi_version: u32,
    /// `None` (JSON `null`) if the pinned state cannot be read.
    pub datapath: Option<PinnedState>,
    /// The IPv6 overlay in the kernel tier; `None` without one.
    pub ipv6: Option<Tier>,
}

/// What the pinned state says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PinnedState {
    /// Whether an agent keeps the state up to date.
    pub agent_running: bool,
    /// `strict` or `off`.
    pub fastpath: &'static str,
    pub generation: u32,
    pub lease_seconds: f64,
    pub node: LocalNode,
    /// Remote nodes.
    pub peers: usize,
    pub routes: usize,
    pub flows: Flows,
    pub links: Vec<Link>,
    pub fast_path: FastPath,
    /// Packets the programs dropped, by reason.
    pub drops: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalNode {
    /// The address tunnel packets are sent from.
    pub vtep: Ipv4Addr,
    pub vtep_mac: String,
    /// `None` without a vxlan device.
    pub vtep_ifindex: Option<u32>,
    pub vtep_ifname: Option<String>,
    pub vni: u32,
    pub port: u16,
    pub network: Option<Ipv4Network>,
    pub subnet: Option<Ipv4Network>,
    pub pod_mtu: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flows {
    /// With a lease that counts.
    pub live: usize,
    pub entries: usize,
    pub capacity: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    pub hook: &'static str,
    pub ifindex: u32,
    pub ifname: Option<String>,
    /// False once the interface is gone or someone detached the program.
    pub alive: bool,
}

/// What a report is made of.
pub struct Observed {
    pub agent_running: bool,
    pub config: Config,
    pub nodes: BTreeMap<u32, Node>,
    pub routes: BTreeMap<Ipv4Network, Route>,
    pub flows: Vec<(FlowKey4, Flow)>,
    pub max_flows: u32,
    pub counters: Vec<(Hook, Outcome, Counter)>,
    pub links: Vec<LinkState>,
    pub now: Duration,
}

pub fn run(args: &Args, ipv6: Option<Tier>, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let pin_dir = args.pinned.pin_dir.clone();
    let mut report = match Observed::read(&args.pinned) {
        Ok(observed) => Report::new(pin_dir, &observed, interface_name),
        Err(error) => Report {
            health: Health::Unknown,
            problems: vec![error.to_string()],
            pin_dir,
            abi_version: ABI_VERSION,
            datapath: None,
            ipv6: None,
        },
    };
    report.add_ipv6(ipv6);
    output::print(&report, args.pinned.output, out)?;
    Ok(report.health.exit_code())
}

impl Health {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
        }
    }

    fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Healthy => 0,
            Self::Degraded => 1,
            Self::Unknown => 2,
        })
    }
}

impl Observed {
    fn read(args: &Pinned) -> Result<Self, DatapathError> {
        let pins = args.pins();
        let maps = args.open()?;
        Ok(Self {
            agent_running: pins.is_in_use()?,
            config: maps.ipv4.config()?,
            nodes: maps.ipv4.nodes()?,
            routes: maps.ipv4.routes()?,
            flows: maps.ipv4.flows()?,
            max_flows: maps.ipv4.max_flows(),
            counters: maps.counters()?,
            links: datapath::link_states(&pins)?,
            now: datapath::lease_clock()?,
        })
    }
}

impl Report {
    pub fn new(
        pin_dir: PathBuf,
        observed: &Observed,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let problems = problems(observed, &interface_name);
        Self {
            health: if problems.is_empty() {
                Health::Healthy
            } else {
                Health::Degraded
            },
            problems,
            pin_dir,
            abi_version: ABI_VERSION,
            datapath: Some(PinnedState::new(observed, interface_name)),
            ipv6: None,
        }
    }

    fn add_ipv6(&mut self, ipv6: Option<Tier>) {
        let problems = ipv6.as_ref().map(Tier::problems).unwrap_or_default();
        if !problems.is_empty() && self.health == Health::Healthy {
            self.health = Health::Degraded;
        }
        self.problems.extend(problems);
        self.ipv6 = ipv6;
    }
}

impl PinnedState {
    fn new(observed: &Observed, interface_name: impl Fn(u32) -> Option<String>) -> Self {
        let config = &observed.config;
        let mut drops = BTreeMap::new();
        for (_, outcome, counter) in &observed.counters {
            if outcome.kind() == Kind::Drop {
                *drops.entry(outcome.name()).or_default() += counter.packets;
            }
        }
        let is_live =
            |flow: &Flow| flows::state(flow, config.generation, observed.now) == State::Live;
        let link = |link: &LinkState| Link {
            hook: link.hook.name(),
            ifindex: link.ifindex,
            ifname: interface_name(link.ifindex),
            alive: link.alive,
        };
        Self {
            agent_running: observed.agent_running,
            fastpath: Fastpath::from_config(config.fastpath).map_or("unknown", Fastpath::name),
            generation: config.generation,
            lease_seconds: Duration::from_nanos(config.lease_ns).as_secs_f64(),
            node: LocalNode::new(config, &interface_name),
            peers: observed.nodes.len(),
            routes: observed.routes.len(),
            flows: Flows {
                live: observed
                    .flows
                    .iter()
                    .filter(|(_, flow)| is_live(flow))
                    .count(),
                entries: observed.flows.len(),
                capacity: observed.max_flows,
            },
            links: observed.links.iter().map(link).collect(),
            fast_path: FastPath::new(&observed.counters),
            drops,
        }
    }
}

impl LocalNode {
    fn new(config: &Config, interface_name: impl Fn(u32) -> Option<String>) -> Self {
        let [a, b, c] = config.vni;
        let network = |address: Ipv4Be, mask: Ipv4Be| {
            (mask != Ipv4Be::UNSPECIFIED)
                .then(|| Ipv4Network::with_netmask(address.into(), mask.into()).ok())
                .flatten()
        };
        let vtep_ifindex = Some(config.vtep_ifindex).filter(|&ifindex| ifindex != 0);
        Self {
            vtep: config.vtep.into(),
            vtep_mac: config.vtep_mac.to_string(),
            vtep_ifindex,
            vtep_ifname: vtep_ifindex.and_then(interface_name),
            vni: u32::from_be_bytes([0, a, b, c]),
            port: u16::from_be_bytes(config.vxlan_port),
            network: network(config.network, config.network_mask),
            subnet: network(config.subnet, config.subnet_mask),
            pod_mtu: config.pod_mtu,
        }
    }
}

/// What is not as it should be, in sentences that say what follows from it.
fn problems(observed: &Observed, interface_name: impl Fn(u32) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    if !observed.agent_running {
        problems.push(
            "no agent is running: packets are forwarded as before, but nobody follows changes"
                .into(),
        );
    }
    let config = &observed.config;
    if config.vtep == Ipv4Be::UNSPECIFIED {
        problems.push("the node is not configured yet: no lease was acquired".into());
        return problems;
    }
    let label = |ifindex| interface_label(ifindex, interface_name(ifindex).as_deref());
    for link in observed.links.iter().filter(|link| !link.alive) {
        problems.push(format!(
            "{} on {} is detached: its packets take the kernel path",
            link.hook.name(),
            label(link.ifindex),
        ));
    }
    let at = |hook| -> BTreeSet<u32> {
        let links = observed.links.iter().filter(|link| link.hook == hook);
        links.map(|link| link.ifindex).collect()
    };
    if observed.nodes.len() + 1 >= MAX_NODES {
        problems.push(format!(
            "the node map is full: peers beyond these {} have the kernel tier only",
            observed.nodes.len()
        ));
    }
    if at(Hook::Ingress).is_empty() {
        problems.push("no program on the underlay interface: nothing arrives fast".into());
    }
    for hook in [Hook::Confirm, Hook::Arrive] {
        if config.vtep_ifindex != 0 && !at(hook).contains(&config.vtep_ifindex) {
            problems.push(format!(
                "no {} program on {}: no leases are granted",
                hook.name(),
                label(config.vtep_ifindex)
            ));
        }
    }
    for ifindex in at(Hook::Egress).symmetric_difference(&at(Hook::Deliver)) {
        problems.push(format!(
            "{} has only one of the two pod programs: one direction stays on the kernel path",
            label(*ifindex)
        ));
    }
    for (subnet, _) in observed
        .routes
        .iter()
        .filter(|(_, route)| !observed.nodes.contains_key(&route.node))
    {
        problems.push(format!(
            "{subnet} has no node entry: the kernel carries its packets"
        ));
    }
    problems
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.health.name())?;
        for problem in &self.problems {
            writeln!(out, "  {problem}")?;
        }
        if let Some(datapath) = &self.datapath {
            writeln!(out)?;
            datapath.write(out)?;
        }
        if let Some(ipv6) = &self.ipv6 {
            writeln!(out)?;
            output::write_pairs(out, &ipv6.describe())?;
        }
        Ok(())
    }
}

impl PinnedState {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let dash = || "-".to_owned();
        let node = &self.node;
        let device = node.vtep_ifindex.map_or_else(dash, |ifindex| {
            interface_label(ifindex, node.vtep_ifname.as_deref())
        });
        let drops: Vec<_> = self
            .drops
            .iter()
            .filter(|(_, packets)| **packets > 0)
            .map(|(reason, packets)| format!("{reason} {}", grouped(*packets)))
            .collect();
        output::write_pairs(
            out,
            &[
                (
                    "agent",
                    if self.agent_running {
                        "running"
                    } else {
                        "not running"
                    }
                    .into(),
                ),
                ("fast path", self.fastpath.into()),
                (
                    "lease",
                    format!("{} s, generation {}", self.lease_seconds, self.generation),
                ),
                (
                    "vtep",
                    format!("{} ({}) on {device}", node.vtep, node.vtep_mac),
                ),
                ("vni, port", format!("{}, {}", node.vni, node.port)),
                (
                    "network",
                    node.network
                        .map_or_else(dash, |network| network.to_string()),
                ),
                (
                    "subnet",
                    node.subnet.map_or_else(dash, |subnet| subnet.to_string()),
                ),
                ("pod mtu", node.pod_mtu.to_string()),
                ("peers, routes", format!("{}, {}", self.peers, self.routes)),
                (
                    "flows",
                    format!(
                        "{} live, {} entries of {}",
                        grouped(self.flows.live as u64),
                        grouped(self.flows.entries as u64),
                        grouped(self.flows.capacity.into()),
                    ),
                ),
                ("from pods", self.fast_path.egress.describe()),
                ("to pods", self.fast_path.ingress.describe()),
                (
                    "dropped",
                    if drops.is_empty() {
                        "0".into()
                    } else {
                        drops.join(", ")
                    },
                ),
            ],
        )?;
        if self.links.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        let mut table = Table::new(&["INTERFACE", "PROGRAMS", "DETACHED"]);
        let interfaces: BTreeSet<u32> = self.links.iter().map(|link| link.ifindex).collect();
        for ifindex in interfaces {
            let links: Vec<_> = self
                .links
                .iter()
                .filter(|link| link.ifindex == ifindex)
                .collect();
            let hooks = |alive: bool| {
                let names = links
                    .iter()
                    .filter(|link| link.alive == alive)
                    .map(|link| link.hook);
                names.collect::<Vec<_>>().join(" ")
            };
            let name = links.iter().find_map(|link| link.ifname.as_deref());
            table.row([interface_label(ifindex, name), hooks(true), hooks(false)]);
        }
        table.write(out)
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::{addr::MacAddr, config::FASTPATH_STRICT, node::NODE_VALID};

    use super::*;
    use crate::output::Format;

    fn healthy() -> Observed {
        let link = |hook, ifindex| LinkState {
            hook,
            ifindex,
            alive: true,
        };
        let counter = |packets| Counter {
            packets,
            bytes: packets * 100,
        };
        Observed {
            agent_running: true,
            config: Config {
                lease_ns: 15_000_000_000,
                generation: 4,
                fastpath: FASTPATH_STRICT,
                vtep: Ipv4Addr::new(192, 168, 0, 1).into(),
                network: Ipv4Addr::new(10, 1, 0, 0).into(),
                network_mask: Ipv4Addr::new(255, 255, 0, 0).into(),
                subnet: Ipv4Addr::new(10, 1, 1, 0).into(),
                subnet_mask: Ipv4Addr::new(255, 255, 255, 0).into(),
                vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
                vxlan_port: 8472u16.to_be_bytes(),
                vni: [0, 0, 1],
                vtep_ifindex: 5,
                pod_mtu: 1450,
                ..Config::default()
            },
            nodes: [(
                1,
                Node {
                    flags: NODE_VALID,
                    ..Node::default()
                },
            )]
            .into(),
            routes: [("10.1.2.0/24".parse().unwrap(), Route { node: 1, flags: 0 })].into(),
            flows: vec![(
                FlowKey4::default(),
                Flow {
                    generation: 4,
                    egress_until: 2_000_000_000,
                    ..Flow::default()
                },
            )],
            max_flows: 262_144,
            counters: vec![
                (Hook::Egress, Outcome::FastTunnel, counter(999)),
                (Hook::Egress, Outcome::NoLease, counter(1)),
                (Hook::Egress, Outcome::PodTunnel, counter(0)),
            ],
            links: vec![
                link(Hook::Ingress, 2),
                link(Hook::Confirm, 5),
                link(Hook::Arrive, 5),
                link(Hook::Egress, 7),
                link(Hook::Deliver, 7),
            ],
            now: Duration::from_secs(1),
        }
    }

    fn report(observed: &Observed) -> Report {
        let name = |ifindex| match ifindex {
            2 => Some("eth0".into()),
            5 => Some("flannel.1".into()),
            7 => Some("vetha".into()),
            _ => None,
        };
        Report::new("/sys/fs/bpf/overlay".into(), observed, name)
    }

    fn text(report: &Report, format: Format) -> String {
        let mut out = Vec::new();
        output::print(report, format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_healthy_node_is_summed_up_on_one_screen() {
        insta::assert_snapshot!(text(&report(&healthy()), Format::Table));
    }

    #[test]
    fn the_json_is_as_documented() {
        insta::assert_snapshot!(text(&report(&healthy()), Format::Json));
    }

    #[test]
    fn every_defect_is_named_with_what_follows_from_it() {
        let mut observed = healthy();
        observed.agent_running = false;
        observed
            .links
            .retain(|link| !matches!(link.hook, Hook::Ingress | Hook::Arrive));
        for link in observed
            .links
            .iter_mut()
            .filter(|link| link.hook == Hook::Deliver)
        {
            link.ifindex = 9;
            link.alive = false;
        }
        observed.nodes.clear();
        let report = report(&observed);
        assert_eq!(report.health, Health::Degraded);
        insta::assert_snapshot!(text(&report, Format::Table));
    }

    #[test]
    fn a_full_node_map_is_a_problem() {
        let mut observed = healthy();
        let node = observed.nodes[&1];
        let full = u32::try_from(MAX_NODES).unwrap();
        observed.nodes = (1..full - 1).map(|index| (index, node)).collect();
        assert!(report(&observed).problems.is_empty());
        observed.nodes.insert(full - 1, node);
        let problems = report(&observed).problems;
        assert!(
            problems.concat().contains("the node map is full"),
            "{problems:?}"
        );
    }

    #[test]
    fn before_the_first_lease_the_node_is_not_configured() {
        let observed = Observed {
            config: Config::default(),
            ..healthy()
        };
        assert_eq!(
            report(&observed).problems,
            ["the node is not configured yet: no lease was acquired"]
        );
    }

    #[test]
    fn without_pins_it_cannot_tell_and_says_where_it_looked() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args {
            pinned: Pinned {
                pin_dir: dir.path().join("none"),
                output: Format::Table,
            },
        };
        let mut out = Vec::new();
        let code = run(&args, None, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(2)));
        assert!(text.starts_with("unknown\n"), "{text}");
        assert!(text.contains(&*dir.path().to_string_lossy()), "{text}");
        assert!(text.contains("--pin-dir"), "{text}");
    }
}
