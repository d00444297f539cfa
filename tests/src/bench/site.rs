//! Two nodes with a wire between them and a pod on each, behind a bridge unless the variant says otherwise. The
//! devices and their order are the same for all.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;

use super::{
    crowd,
    floor::Floor,
    machine::ProcessTime,
    rules,
    variant::{Overlay, Variant},
    wire,
};
use crate::{
    lab::{
        Lab, Node, Pod,
        subnet_env::SubnetEnv,
        underlay::{NODE_INTERFACE, UNDERLAY_MTU},
    },
    process::Daemon,
    scale::start::Program,
    traffic::{Endpoint, ping},
    wait::wait_for,
};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DIRECT_CONFIG: &str =
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
const UDP_CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
const DUAL_CONFIG: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const NETWORK: &str = "10.5.0.0/16";
/// Subnets of nodes without an agent.
const SUBNETS: [&str; 2] = ["10.5.1.0/24", "10.5.2.0/24"];
const DUAL_SUBNETS: [&str; 2] = [
    "10.5.1.0/24&fd00:10:5:1::/64",
    "10.5.2.0/24&fd00:10:5:2::/64",
];
const RULES_DEADLINE: Duration = Duration::from_secs(30);

/// A variant, ready to carry traffic.
pub struct Site {
    pub variant: &'static Variant,
    /// Stock flanneld on each node, of the variant that has it. It ends before the lab does.
    flanneld: Vec<Daemon>,
    pub lab: Lab,
    /// Of the variant that has one.
    floor: Option<Floor>,
    /// The pods' IPv6 ends, one for each node, if they are what is measured.
    ipv6: Vec<Endpoint<Ipv6Addr>>,
}

impl Site {
    /// Builds the nodes; softirqs of every veth go to `cpu`. `flanneld` is what the variant that is stock flannel's
    /// runs.
    pub fn build(variant: &'static Variant, cpu: usize, flanneld: Option<&Path>) -> Result<Self> {
        let config = match variant.overlay {
            _ if variant.crowded => crowd::CONFIG,
            _ if variant.ipv6 => DUAL_CONFIG,
            Overlay::Agent {
                direct_routing: true,
                ..
            } => DIRECT_CONFIG,
            Overlay::AgentUdp { .. } | Overlay::StockUdp => UDP_CONFIG,
            _ => CONFIG,
        };
        let lab = Lab::builder().nodes(2).config(config).build()?;
        wire::join(&lab, variant.ipv6)?;
        if variant.summed {
            wire::sum(&lab)?;
        }
        let mut site = Self {
            variant,
            lab,
            floor: None,
            flanneld: Vec::new(),
            ipv6: Vec::new(),
        };
        site.start_overlay(flanneld)?;
        for node in site.lab.nodes() {
            let pod = node.add_pod("a", variant.attachment)?;
            ping::once(&pod.endpoint(), node.subnet_env()?.gateway.ip())?;
        }
        if variant.ipv6 {
            for node in site.lab.nodes() {
                let pod = first_pod(node)?;
                site.ipv6.push(node.add_ipv6(&pod)?);
            }
            site.lab.wait_converged6()?;
        }
        if variant.crowded {
            for node in site.lab.nodes() {
                crowd::add_pods(&site.lab, node)?;
            }
        }
        site.lab.wait_converged()?;
        for (index, node) in site.lab.nodes().iter().enumerate() {
            site.finish(node, index)?;
            wire::pin_softirqs(&node.namespace, cpu)?;
        }
        if variant.overlay == Overlay::Floor {
            site.floor = Some(Floor::lay(&site.lab)?);
        }
        for (_, pod) in site.lab.pods() {
            wire::pin_softirqs(&pod.namespace, cpu)?;
        }
        Ok(site)
    }

    fn start_overlay(&mut self, flanneld: Option<&Path>) -> Result<()> {
        match self.variant.overlay {
            Overlay::StockVxlan => {
                let subnets = if self.variant.ipv6 {
                    DUAL_SUBNETS
                } else {
                    SUBNETS
                };
                for (node, subnet) in self.lab.nodes().iter().zip(subnets) {
                    self.lab.start_stock(node, subnet)?;
                }
                Ok(())
            }
            Overlay::StockHostGw | Overlay::Floor => self.route(),
            Overlay::StockUdp => {
                let program = flanneld.context("no flanneld was given")?;
                for node in self.lab.nodes() {
                    let program = Program::Flanneld(program.to_owned());
                    let daemon = program.start(node, self.lab.store(), &[])?;
                    wait_for("flanneld's subnet file", RULES_DEADLINE, || {
                        node.subnet_env()
                    })?;
                    self.flanneld.push(daemon);
                }
                Ok(())
            }
            Overlay::Agent { fastpath, .. } | Overlay::AgentUdp { fastpath } => {
                if self.variant.crowded {
                    crowd::publish(&self.lab)?;
                }
                let fastpath = format!("--fastpath={fastpath}");
                let mut arguments = vec![fastpath.as_str(), "--datapath=ebpf"];
                if self.variant.rules {
                    arguments.push("--ip-masq");
                }
                self.lab.start_agents(&arguments)
            }
        }
    }

    /// What flannel's host-gw backend does: a route to the peer's subnet by the peer's address. Pods
    /// keep the MTU of the underlay.
    fn route(&self) -> Result<()> {
        let nodes = self.lab.nodes();
        for (index, node) in nodes.iter().enumerate() {
            let own: Ipv4Network = SUBNETS[index].parse()?;
            let gateway = (own.network().to_bits() + 1).into();
            let env = SubnetEnv {
                network: NETWORK.parse()?,
                gateway: Ipv4Network::new(gateway, own.prefix())?,
                mtu: UNDERLAY_MTU,
                ip_masq: self.variant.rules,
            };
            fs::write(&node.subnet_file, env.to_text())?;
            let (peer, subnet) = (nodes[1 - index].address, SUBNETS[1 - index]);
            node.namespace.ip_batch(&format!(
                "route add {subnet} via {peer} dev {NODE_INTERFACE}\n"
            ))?;
        }
        Ok(())
    }

    /// Rules, service, alteration and crowd; and the check that the rules are what they should be.
    fn finish(&self, node: &Node, index: usize) -> Result<()> {
        if self.variant.is_agent() {
            wait_for("flannel's rules", RULES_DEADLINE, || {
                rules::check(node, self.variant)
            })?;
        } else if self.variant.rules {
            let env = node.subnet_env()?;
            rules::install(node, env.network.into(), env.subnet()?.into())?;
            if self.variant.ipv6 {
                let env = node.subnet_env6()?;
                rules::install(node, env.network.into(), env.subnet()?.into())?;
            }
        }
        rules::check(node, self.variant)?;
        if self.variant.altered {
            rules::alter(node, rules::ALTERED_PORT + u16::try_from(index)?)?;
        }
        if self.variant.service && index == 0 {
            let (_, server) = self.ends()?;
            let network = if self.variant.ipv6 {
                node.subnet_env6()?.network.into()
            } else {
                node.subnet_env()?.network.into()
            };
            rules::serve(node, network, server.address)?;
        }
        if self.variant.crowded {
            crowd::fill_flows(node).context("prefill flows")?;
        }
        Ok(())
    }

    /// What carrying packets has taken of processes so far; `None` where the kernel carries them.
    pub fn forwarders(&self) -> Result<Option<ProcessTime>> {
        if !self.variant.is_in_user_space() {
            return Ok(None);
        }
        let mut sum = ProcessTime::default();
        for (index, node) in self.lab.nodes().iter().enumerate() {
            let pid = match self.flanneld.get(index) {
                Some(daemon) => daemon.pid(),
                None => node.with_agent(|agent| Ok(agent.pid()))?,
            };
            sum = sum.plus(ProcessTime::of(pid)?);
        }
        Ok(Some(sum))
    }

    /// Client and server of the measured traffic.
    pub fn ends(&self) -> Result<(Endpoint<IpAddr>, Endpoint<IpAddr>)> {
        if let [client, server] = &self.ipv6[..] {
            return Ok((
                client.clone().of_any_family(),
                server.clone().of_any_family(),
            ));
        }
        let (client, server) = self.ipv4_ends()?;
        Ok((client.of_any_family(), server.of_any_family()))
    }

    fn ipv4_ends(&self) -> Result<(Endpoint, Endpoint)> {
        if self.variant.between_nodes {
            return Ok((self.lab.node(0).endpoint(), self.lab.node(1).endpoint()));
        }
        let pod = |node| Ok::<_, anyhow::Error>(first_pod(node)?.endpoint());
        let client = self.lab.node(0);
        let client = if self.variant.from_host {
            // Of the tunnel device, which is the kernel's choice, too.
            let address = client.subnet_env()?.subnet()?.network();
            Endpoint {
                address,
                ..client.endpoint()
            }
        } else {
            pod(client)?
        };
        Ok((client, pod(self.lab.node(1))?))
    }
}

/// The measured pod of a node.
pub fn first_pod(node: &Node) -> Result<Pod> {
    let mut pods = node.pods();
    pods.drain(..)
        .next()
        .with_context(|| format!("no pod on {}", node.name))
}
