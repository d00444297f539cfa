//! What the pinned state says, for programs and for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Write},
    net::IpAddr,
    time::Duration,
};

use ipnetwork::IpNetwork;
use overlay_common::{
    config::{Config, FASTPATH_OFF, TUNNEL_UDP},
    node::NODE_ZERO_CHECKSUM,
    outcome::{Counter, Hook, Kind, Outcome},
};
use serde::Serialize;

use super::{super::stats::FastPath, sources::Sources};
use crate::{
    datapath::{Fastpath, LinkState, short_way_closed},
    filter::per_packet::Report,
    model::{Family, V6},
    names::interface_label,
    output::{self, Table, grouped},
    view::{FlowTable, Overlay},
};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PinnedState {
    /// Whether an agent keeps the state up to date.
    agent_running: bool,
    /// Its keys are missing on a node without IPv4.
    #[serde(flatten)]
    ipv4: Option<OverlayState>,
    /// `None` (JSON `null`) on a node without IPv6.
    ipv6: Option<Ipv6State>,
    /// The underlay interface if it has no Ethernet headers, which is why nothing is fast; else `None`
    /// (JSON `null`).
    bare_underlay: Option<String>,
    links: Vec<AttachedProgram>,
    /// Rules that judge packets one by one, and what is left to the kernel because of them.
    per_packet_rules: Report,
    /// Of both families.
    fast_path: FastPath,
    /// Packets the programs dropped, by reason.
    drops: BTreeMap<&'static str, u64>,
}

/// What the maps of one family say.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct OverlayState {
    /// `strict`, `trusted`, `learning` or `off`.
    fastpath: &'static str,
    generation: u32,
    /// Why nothing goes the short way.
    short_way_closed: Vec<&'static str>,
    /// How long permits of flows last.
    permit_seconds: PermitSeconds,
    node: LocalNode,
    /// Remote nodes.
    peers: usize,
    routes: usize,
    flows: Flows,
}

/// 0: no flow of the protocol is fast.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct PermitSeconds {
    tcp: f64,
    udp: f64,
    icmp: f64,
    sctp: f64,
}

impl PermitSeconds {
    fn of<F: Family>(config: &Config<F>) -> Self {
        let seconds = |ns| Duration::from_nanos(ns).as_secs_f64();
        Self {
            tcp: seconds(config.tcp_permit_ns),
            udp: seconds(config.udp_permit_ns),
            icmp: seconds(config.icmp_permit_ns),
            sctp: seconds(config.sctp_permit_ns),
        }
    }
}

impl fmt::Display for PermitSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tcp,
            udp,
            icmp,
            sctp,
        } = *self;
        let time = |seconds: f64| {
            if seconds > 0.0 {
                format!("{seconds} s")
            } else {
                "never".to_owned()
            }
        };
        let same = |other: f64| (tcp - other).abs() < f64::EPSILON;
        if [udp, icmp, sctp].into_iter().all(same) {
            f.write_str(&time(tcp))
        } else {
            let [tcp, udp, icmp, sctp] = [tcp, udp, icmp, sctp].map(time);
            write!(f, "tcp {tcp}, udp {udp}, icmp {icmp}, sctp {sctp}")
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Ipv6State {
    #[serde(flatten)]
    overlay: OverlayState,
    /// Remote nodes that take tunnel packets with UDP checksum 0.
    zero_checksum_peers: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct LocalNode {
    /// The address tunnel packets are sent from.
    vtep: IpAddr,
    /// `None` (JSON `null`) with the udp backend, as `vni` is.
    vtep_mac: Option<String>,
    /// `None` without a device of the tunnel's.
    vtep_ifindex: Option<u32>,
    vtep_ifname: Option<String>,
    vni: Option<u32>,
    port: u16,
    network: Option<IpNetwork>,
    subnet: Option<IpNetwork>,
    pod_mtu: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Flows {
    /// With a permit that counts.
    live: usize,
    entries: usize,
    capacity: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct AttachedProgram {
    hook: &'static str,
    ifindex: u32,
    ifname: Option<String>,
    /// False once the interface is gone or someone detached the program.
    alive: bool,
}

/// Names and values of the lines for people.
type Lines = Vec<(String, String)>;

pub const fn agent(running: bool) -> &'static str {
    if running { "running" } else { "not running" }
}

impl PinnedState {
    pub fn new(sources: &Sources, interface_name: impl Fn(u32) -> Option<String>) -> Self {
        let link = |link: &LinkState| AttachedProgram {
            hook: link.hook.name(),
            ifindex: link.ifindex,
            ifname: interface_name(link.ifindex),
            alive: link.alive,
        };
        let Sources {
            tier,
            flows,
            bare_underlay,
        } = sources;
        let (now, rules) = (flows.now, tier.outer_rules);
        let ipv4 = tier.ipv4.as_ref().zip(flows.ipv4.as_ref());
        let ipv6 = tier.ipv6.as_ref().zip(flows.ipv6.as_ref());
        Self {
            agent_running: tier.agent_running,
            ipv4: ipv4
                .map(|(ipv4, flows)| OverlayState::new(ipv4, flows, rules, now, &interface_name)),
            ipv6: ipv6
                .map(|(ipv6, flows)| Ipv6State::new(ipv6, flows, rules, now, &interface_name)),
            bare_underlay: bare_underlay.clone(),
            links: tier.links.iter().map(link).collect(),
            per_packet_rules: tier.per_packet_rules.clone(),
            fast_path: FastPath::new(&tier.counters),
            drops: drops(&tier.counters),
        }
    }

    pub const fn has_ipv4(&self) -> bool {
        self.ipv4.is_some()
    }

    pub const fn has_ipv6(&self) -> bool {
        self.ipv6.is_some()
    }

    /// `zero_checksum`: whether the IPv6 vxlan device, if there is one, takes UDP checksum 0.
    pub fn write(&self, zero_checksum: Option<bool>, out: &mut dyn Write) -> io::Result<()> {
        let mut lines = vec![("agent".into(), agent(self.agent_running).into())];
        if let Some(interface) = &self.bare_underlay {
            let what = format!("{interface} has no Ethernet headers: nothing is fast");
            lines.push(("underlay".into(), what));
        }
        if let Some(ipv4) = &self.ipv4 {
            lines.extend(ipv4.lines("", None));
        }
        if let Some(ipv6) = &self.ipv6 {
            lines.extend(ipv6.overlay.lines("ipv6 ", self.ipv4.as_ref()));
            if ipv6.overlay.node.vtep_ifindex.is_some() {
                lines.push(("ipv6 csum 0".into(), ipv6.checksums(zero_checksum)));
            }
        }
        lines.extend([
            ("from pods".into(), self.fast_path.egress.describe()),
            ("to pods".into(), self.fast_path.ingress.describe()),
            ("dropped".into(), self.dropped()),
        ]);
        let rules = &self.per_packet_rules;
        lines.extend(
            rules
                .rules
                .iter()
                .map(|rule| ("kernel only".into(), rule.to_string())),
        );
        if rules.more > 0 {
            lines.push(("kernel only".into(), format!("{} more rules", rules.more)));
        }
        output::write_pairs(out, &lines)?;
        if self.links.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        self.write_links(out)
    }

    fn dropped(&self) -> String {
        let drops: Vec<_> = self
            .drops
            .iter()
            .filter(|(_, packets)| **packets > 0)
            .map(|(reason, packets)| format!("{reason} {}", grouped(*packets)))
            .collect();
        if drops.is_empty() {
            "0".into()
        } else {
            drops.join(", ")
        }
    }

    fn write_links(&self, out: &mut dyn Write) -> io::Result<()> {
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

impl OverlayState {
    fn new<F: Family>(
        overlay: &Overlay<F>,
        flows: &FlowTable<F>,
        outer_rules: u32,
        now: Duration,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let config = &overlay.config;
        let has_short_way = config.fastpath != FASTPATH_OFF
            && config.vtep_ifindex != 0
            && config.tunnel != TUNNEL_UDP;
        let short_way_closed = if has_short_way {
            short_way_closed(config.closed, outer_rules)
        } else {
            Vec::new()
        };
        Self {
            fastpath: Fastpath::name_of_config(config.fastpath),
            generation: config.generation,
            short_way_closed,
            permit_seconds: PermitSeconds::of(config),
            node: LocalNode::new(config, interface_name),
            peers: overlay.nodes.len(),
            routes: overlay.routes.len(),
            flows: Flows {
                live: flows.live(now),
                entries: flows.flows.len(),
                capacity: flows.capacity,
            },
        }
    }

    /// What is a setting of the whole node and the lines of the `other` family tell already is left
    /// out.
    fn lines(&self, prefix: &str, other: Option<&Self>) -> Lines {
        let dash = || "-".to_owned();
        let node = &self.node;
        let device = node.vtep_ifindex.map_or_else(dash, |ifindex| {
            interface_label(ifindex, node.vtep_ifname.as_deref())
        });
        let network = |network: Option<IpNetwork>| network.map_or_else(dash, |net| net.to_string());
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String| lines.push((format!("{prefix}{name}"), value));
        if other.is_none_or(|other| other.fastpath != self.fastpath) {
            line("fast path", self.fastpath.into());
        }
        if other.is_none_or(|other| other.short_way_closed != self.short_way_closed) {
            for reason in &self.short_way_closed {
                line("no short way", (*reason).to_owned());
            }
        }
        line(
            "permit",
            format!("{}, generation {}", self.permit_seconds, self.generation),
        );
        if let (Some(mac), Some(vni)) = (&node.vtep_mac, node.vni) {
            line("vtep", format!("{} ({mac}) on {device}", node.vtep));
            let is_same = |other: &Self| (other.node.vni, other.node.port) == (node.vni, node.port);
            if !other.is_some_and(is_same) {
                line("vni, port", format!("{vni}, {}", node.port));
            }
        } else {
            line("tunnel", format!("{} by {device}", node.vtep));
            line("udp port", node.port.to_string());
        }
        line("network", network(node.network));
        line("subnet", network(node.subnet));
        line("pod mtu", node.pod_mtu.to_string());
        line("peers, routes", format!("{}, {}", self.peers, self.routes));
        line("flows", self.flows.describe());
        lines
    }
}

impl Ipv6State {
    fn new(
        overlay: &Overlay<V6>,
        flows: &FlowTable<V6>,
        outer_rules: u32,
        now: Duration,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let zero_checksum_peers = overlay
            .nodes
            .values()
            .filter(|node| node.flags & NODE_ZERO_CHECKSUM != 0)
            .count();
        Self {
            overlay: OverlayState::new(overlay, flows, outer_rules, now, interface_name),
            zero_checksum_peers,
        }
    }

    fn checksums(&self, zero_checksum: Option<bool>) -> String {
        let here = match zero_checksum {
            Some(true) => "taken here and ",
            Some(false) => "dropped here, taken ",
            None => "taken ",
        };
        let (taking, peers) = (self.zero_checksum_peers, self.overlay.peers);
        format!("{here}by {taking} of {peers} peers")
    }
}

impl LocalNode {
    fn new<F: Family>(config: &Config<F>, interface_name: impl Fn(u32) -> Option<String>) -> Self {
        let [a, b, c] = config.vni;
        let address = |address: F::Be| -> IpAddr { F::Address::from(address).into() };
        let network = |first: F::Be, mask: F::Be| {
            (mask != F::Be::default())
                .then(|| IpNetwork::with_netmask(address(first), address(mask)).ok())
                .flatten()
        };
        let has_frames = config.tunnel != TUNNEL_UDP;
        let vtep_ifindex = Some(config.vtep_ifindex).filter(|&ifindex| ifindex != 0);
        Self {
            vtep: address(config.vtep),
            vtep_mac: has_frames.then(|| config.vtep_mac.to_string()),
            vtep_ifindex,
            vtep_ifname: vtep_ifindex.and_then(interface_name),
            vni: has_frames.then(|| u32::from_be_bytes([0, a, b, c])),
            port: u16::from_be_bytes(config.vxlan_port),
            network: network(config.network, config.network_mask),
            subnet: network(config.subnet, config.subnet_mask),
            pod_mtu: config.pod_mtu,
        }
    }
}

impl Flows {
    fn describe(self) -> String {
        format!(
            "{} live, {} entries of {}",
            grouped(self.live as u64),
            grouped(self.entries as u64),
            grouped(self.capacity.into()),
        )
    }
}

fn drops(counters: &[(Hook, Outcome, Counter)]) -> BTreeMap<&'static str, u64> {
    let mut drops = BTreeMap::new();
    for (_, outcome, counter) in counters {
        if outcome.kind() == Kind::Drop {
            *drops.entry(outcome.name()).or_default() += counter.packets;
        }
    }
    drops
}
