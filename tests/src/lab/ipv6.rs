//! The IPv6 side of a lab whose network has IPv6: what nodes lease of it, and pods with addresses of
//! it.

use std::{net::Ipv6Addr, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use ipnetwork::Ipv6Network;

use super::{Lab, Node, Pod, pod::BRIDGE, random_mac, subnet_env::variable, underlay};
use crate::{
    traffic::{Endpoint, ping6},
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// What a node tells container runtimes about IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv6 {
    pub network: Ipv6Network,
    /// The gateway's address, with the subnet's prefix length.
    pub gateway: Ipv6Network,
    pub mtu: u32,
}

impl SubnetEnv6 {
    /// The leased subnet.
    pub fn subnet(&self) -> Result<Ipv6Network> {
        let (base, len) = (self.gateway.network(), self.gateway.prefix());
        Ok(Ipv6Network::new(base, len)?)
    }

    fn pod_address(&self, index: u8) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.gateway.ip().to_bits() + 1 + u128::from(index))
    }
}

impl Node {
    /// Address on the underlay.
    pub fn address6(&self) -> Ipv6Addr {
        underlay::address6(self.segment, self.address)
    }

    /// The node itself as an end of IPv6 traffic.
    pub fn endpoint6(&self) -> Endpoint<Ipv6Addr> {
        Endpoint {
            namespace: self.namespace.clone(),
            address: self.address6(),
        }
    }

    pub fn subnet_env6(&self) -> Result<SubnetEnv6> {
        let path = &self.subnet_file;
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Ok(SubnetEnv6 {
            network: variable(&text, "FLANNEL_IPV6_NETWORK")?,
            gateway: variable(&text, "FLANNEL_IPV6_SUBNET")?,
            mtu: variable(&text, "FLANNEL_MTU")?,
        })
    }

    /// Waits until the node has an IPv6 subnet.
    pub fn wait_ready6(&self) -> Result<SubnetEnv6> {
        let what = format!("the IPv6 subnet of {}", self.name);
        wait_for(&what, DEADLINE, || {
            self.check_running()?;
            self.subnet_env6()
        })
    }

    /// Adds a pod without IPv4 behind the bridge. Its name, a letter, decides its address.
    pub fn add_pod6(&self, name: char) -> Result<Endpoint<Ipv6Addr>> {
        let env = self.subnet_env6()?;
        let mtu = env.mtu;
        if !self.has_interface(BRIDGE) {
            let mac = random_mac();
            self.namespace.ip_batch(&format!(
                "link add {BRIDGE} address {mac} mtu {mtu} type bridge\nlink set {BRIDGE} up\n"
            ))?;
        }
        let namespace = self
            .state
            .create_namespace(&format!("{}-{name}", self.name))?;
        let (pod, veth) = (namespace.name(), format!("veth{name}"));
        self.namespace.ip_batch(&format!(
            "link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod}\n\
             link set {veth} master {BRIDGE} up\n"
        ))?;
        namespace.ip_batch("link set eth0 up\n")?;
        self.address_pod(&env, name, namespace)
    }

    /// Gives a bridged pod an IPv6 address as well.
    pub fn add_ipv6(&self, pod: &Pod) -> Result<Endpoint<Ipv6Addr>> {
        let name = pod.name.chars().next().context("a pod without a name")?;
        self.address_pod(&self.subnet_env6()?, name, pod.namespace.clone())
    }

    fn address_pod(
        &self,
        env: &SubnetEnv6,
        name: char,
        namespace: crate::netns::Namespace,
    ) -> Result<Endpoint<Ipv6Addr>> {
        let index = u8::try_from(name)?.wrapping_sub(b'a');
        let (gateway, address) = (env.gateway, env.pod_address(index));
        self.namespace
            .ip_batch(&format!("addr replace {gateway} dev {BRIDGE} nodad\n"))?;
        namespace.ip_batch(&format!(
            "addr add {address}/{} dev eth0 nodad\nroute add ::/0 via {}\n",
            gateway.prefix(),
            gateway.ip()
        ))?;
        let pod = Endpoint { namespace, address };
        // A port of a bridge forwards some time after it is there.
        ping6::once(&pod, gateway.ip())?;
        Ok(pod)
    }
}

impl Lab {
    /// Agents on every node that runs nothing yet, all nodes in touch, and a pod `a` on each, with
    /// programs where there are any.
    pub fn bring_up6(&self, extra: &[&str]) -> Result<Vec<Endpoint<Ipv6Addr>>> {
        self.start_agents6(extra)?;
        let mut pods = Vec::new();
        for node in self.nodes() {
            pods.push(node.add_pod6('a')?);
            node.wait_attached("vetha")?;
        }
        Ok(pods)
    }

    /// The router, a host outside the pod network.
    pub fn outside6(&self) -> Endpoint<Ipv6Addr> {
        Endpoint {
            namespace: self.underlay().router().clone(),
            address: underlay::router_address6(0),
        }
    }

    /// Starts the agent on every node that runs nothing, and waits until all nodes are in touch.
    pub fn start_agents6(&self, extra: &[&str]) -> Result<()> {
        let idle = |node: &&Node| node.subnet_env6().is_err();
        for node in self.nodes().iter().filter(idle) {
            node.start_agent(self.store(), extra)?;
        }
        for node in self.nodes() {
            node.wait_ready6()?;
        }
        self.wait_converged6()
    }

    /// Waits until every node with an IPv6 subnet has a kernel route to every other's.
    pub fn wait_converged6(&self) -> Result<()> {
        for node in self.nodes() {
            node.follow_leases(self.store())?;
        }
        wait_for("all nodes to know all IPv6 subnets", DEADLINE, || {
            let take_part = |node: &&Node| node.subnet_env6().is_ok();
            for node in self.nodes().iter().filter(take_part) {
                node.check_running()?;
                let routes = node.cmd("ip", ["-6", "route", "show"])?;
                for peer in self.nodes().iter().filter(|peer| peer.name != node.name) {
                    let Ok(env) = peer.subnet_env6() else {
                        continue;
                    };
                    let subnet = env.subnet()?;
                    if !routes
                        .lines()
                        .any(|line| line.starts_with(&format!("{subnet} ")))
                    {
                        bail!("{} has no route to {subnet}; it has\n{routes}", node.name);
                    }
                }
            }
            Ok(())
        })
    }
}

/// An error unless every pod answers every other.
pub fn ping_matrix(pods: &[Endpoint<Ipv6Addr>]) -> Result<()> {
    let failures = thread::scope(|scope| {
        let mut pings = Vec::new();
        for from in pods {
            for to in pods.iter().filter(|to| to.address != from.address) {
                pings.push(scope.spawn(|| ping6::once(from, to.address)));
            }
        }
        let failure = |ping: thread::ScopedJoinHandle<'_, Result<()>>| match ping.join() {
            Ok(result) => result.err().map(|error| format!("{error:#}")),
            Err(_) => Some("panicked".to_owned()),
        };
        pings.into_iter().filter_map(failure).collect::<Vec<_>>()
    });
    if !failures.is_empty() {
        bail!("pings without answer:\n{}", failures.join("\n"));
    }
    Ok(())
}
