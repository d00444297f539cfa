//! Backends one after the other on the same nodes: what each has there, and nobody else left behind.

use std::fmt;

use anyhow::{Result, ensure};

use crate::{
    lab::Node,
    traffic::{Address, Endpoint, tcp, udp},
};

/// Protocol of the routes that this file's commands for the extension backend set.
const COMMANDS_PROTO: &str = "200";

/// A backend with the options it has when nobody gives any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Vxlan,
    HostGw,
    Udp,
    /// With commands that do what host-gw does.
    Extension,
    WireGuard,
    IpIp,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Udp => "udp",
            Self::Extension => "extension",
            Self::WireGuard => "wireguard",
            Self::IpIp => "ipip",
        })
    }
}

impl Backend {
    /// The network config.
    pub fn config(self) -> String {
        let commands = if self == Self::Extension {
            format!(
                concat!(
                    r#","SubnetAddCommand":"ip route replace $SUBNET via $PUBLIC_IP proto {proto}""#,
                    r#","SubnetRemoveCommand":"ip route del $SUBNET""#,
                    r#","ShutdownCommand":"ip route flush proto {proto}""#,
                ),
                proto = COMMANDS_PROTO
            )
        } else {
            String::new()
        };
        format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{self}"{commands}}}}}"#)
    }

    /// Whether the programs carry what they have seen, over a wire that leaves no checksum open.
    pub fn is_fast(self) -> bool {
        matches!(self, Self::Vxlan | Self::HostGw | Self::Udp)
    }

    fn device(self) -> Option<&'static str> {
        match self {
            Self::Vxlan => Some("flannel.1"),
            Self::Udp => Some("flannel0"),
            Self::WireGuard => Some("flannel-wg"),
            Self::IpIp => Some("flannel.ipip"),
            Self::HostGw | Self::Extension => None,
        }
    }

    /// The route to the pods of another node, as `ip route` shows it.
    fn route(self, peer: &Node) -> Result<String> {
        let subnet = peer.subnet_env()?.subnet()?;
        let (base, address) = (subnet.network(), peer.address);
        Ok(match self {
            Self::Vxlan => format!("{subnet} via {base} dev flannel.1 proto 241 onlink"),
            Self::HostGw => format!("{subnet} via {address} dev eth0 proto 241"),
            Self::Udp => "10.5.0.0/16 dev flannel0 proto 241 metric 241".to_owned(),
            Self::Extension => {
                format!("{subnet} via {address} dev eth0 proto {COMMANDS_PROTO}")
            }
            Self::WireGuard => "10.5.0.0/16 dev flannel-wg proto 241".to_owned(),
            Self::IpIp => format!("{subnet} via {address} dev flannel.ipip proto 241 onlink"),
        })
    }

    /// Everything of this backend on the node, and nothing of another.
    pub fn check(self, node: &Node, peer: &Node) -> Result<()> {
        let devices = devices(node)?;
        ensure!(devices.iter().eq(self.device()), "{self} with {devices:?}");
        let routes = pod_routes(node)?;
        let wanted = self.route(peer)?;
        ensure!(routes == [wanted.as_str()], "not `{wanted}` but {routes:?}");

        let sockets = node.cmd("ss", ["-Huan"])?;
        ensure!(
            sockets.contains(":8285") == (self == Self::Udp),
            "{sockets}"
        );
        Ok(())
    }
}

/// The devices of backends that a node has.
pub fn devices(node: &Node) -> Result<Vec<String>> {
    let links = node.cmd("ip", ["-brief", "link"])?;
    let names = links
        .lines()
        .filter_map(|line| line.split([' ', '@']).next());
    let names = names.filter(|name| name.starts_with("flannel"));
    Ok(names.map(str::to_owned).collect())
}

/// The routes to pods of other nodes.
pub fn pod_routes(node: &Node) -> Result<Vec<String>> {
    let own = node.subnet_env()?.subnet()?.to_string();
    let routes = node.cmd("ip", ["route"])?;
    let routes = routes.lines().map(str::trim);
    let routes = routes.filter(|line| line.starts_with("10.5.") && !line.starts_with(&own));
    Ok(routes.map(str::to_owned).collect())
}

/// Datagrams that are small, that just fit and that have to be fragmented, and TCP both ways.
pub fn check_traffic<A: Address>(from: &Endpoint<A>, to: &Endpoint<A>, mtu: u32) -> Result<()> {
    let headers = if size_of::<A>() == 4 { 28 } else { 48 };
    let full = usize::try_from(mtu)? - headers;
    let sizes = [20, 100, full - 1, full, full + 1, 3 * full];
    udp::echo_each(from, to, &sizes, 2)?.ensure_lossless()?;
    for spec in [
        tcp::Spec::bulk(1 << 20),
        tcp::Spec::small_writes(10_000, 100),
    ] {
        tcp::transfer(from, to, spec)?;
    }
    Ok(())
}

/// A way by which each backend gives way to each other at least once.
pub fn every_switch(backends: &[Backend]) -> Vec<Backend> {
    let mut way = Vec::new();
    for (index, one) in backends.iter().enumerate() {
        way.push(*one);
        for other in &backends[index + 1..] {
            way.extend([*other, *one]);
        }
    }
    way
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_gives_way_to_each_other() {
        let all = [Backend::Vxlan, Backend::HostGw, Backend::Udp, Backend::IpIp];
        let way = every_switch(&all);
        for from in all {
            for to in all {
                let met = way.windows(2).any(|pair| pair == [from, to]);
                assert_eq!(met, from != to, "{from} to {to}");
            }
        }
    }
}
