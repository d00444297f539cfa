//! `overlay-agent routes`: which subnet lives behind which VTEP, and how packets get there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
};

use ipnetwork::IpNetwork;
use overlay_common::{
    addr::Address as _,
    node::{MODE_DIRECT, MODE_NONE, MODE_TUNNEL, NODE_DIRECT, Nexthop, Node},
    route::Route,
};
use serde::Serialize;

use super::pinned::Pinned;
use crate::{
    datapath::{DatapathError, Maps, OverlayMaps},
    model::Family,
    names::{interface_label, interface_name},
    output::{self, Table},
    view::kernel::{self, Tier},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the maps have, IPv4 first.
    pub routes: Vec<Row>,
    /// The kernel's routes to IPv6 subnets that the maps do not have.
    pub ipv6_routes: Vec<kernel::Row>,
}

/// A peer subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub subnet: IpNetwork,
    /// Index of the node in the maps of the family, `OVL_NODES` or `OVL_NODES6`.
    pub node: u32,
    /// `None` (JSON `null`) if the node's entry is missing: the kernel carries its packets.
    pub vtep: Option<IpAddr>,
    pub vtep_mac: Option<String>,
    /// Whether the configuration allows to reach the node without encapsulation.
    pub direct_allowed: bool,
    /// Whether there is a tunnel, and the node takes what the programs send through it.
    pub tunnel_allowed: bool,
    /// As last resolved; `None` until a first packet was confirmed.
    pub next_hop: Option<NextHop>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHop {
    /// `tunnel` or `direct`.
    pub mode: &'static str,
    pub ifindex: u32,
    /// `None` for an interface that is not there.
    pub ifname: Option<String>,
    pub dst_mac: String,
    pub src_mac: String,
    /// Largest pod packet, bytes.
    pub mtu: u16,
}

/// What the maps of a family say about other nodes.
struct Peers<F: Family> {
    routes: BTreeMap<F::Network, Route>,
    nodes: BTreeMap<u32, Node<F>>,
    nexthops: BTreeMap<u32, Nexthop>,
    /// Whether this node has a vxlan device.
    has_tunnel: bool,
}

pub fn run(args: &Args, ipv6: Option<Tier>, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut report = match args.pinned.open() {
        Ok(maps) => Report::read(&maps)?,
        // With the kernel tier alone there are no maps.
        Err(DatapathError::NotPinned { .. } | DatapathError::KernelTier { .. })
            if ipv6.is_some() =>
        {
            Report::default()
        }
        Err(error) => return Err(error.into()),
    };
    report.add_kernel_routes(ipv6.map(|tier| tier.routes).unwrap_or_default());
    output::print(&report, args.pinned.output, out)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn read(maps: &Maps) -> Result<Self, DatapathError> {
        let mut routes = Peers::read(&maps.ipv4)?.rows(interface_name);
        routes.extend(Peers::read(&maps.ipv6)?.rows(interface_name));
        Ok(Self {
            routes,
            ipv6_routes: Vec::new(),
        })
    }

    /// Adds what the kernel has and the maps do not.
    fn add_kernel_routes(&mut self, mut routes: Vec<kernel::Row>) {
        let mapped: BTreeSet<IpNetwork> = self.routes.iter().map(|row| row.subnet).collect();
        routes.retain(|route| !mapped.contains(&route.subnet.into()));
        self.ipv6_routes = routes;
    }
}

impl<F: Family> Peers<F> {
    fn read(maps: &OverlayMaps<F>) -> Result<Self, DatapathError> {
        let nodes = maps.nodes()?;
        let routes = maps.routes()?;
        let mut nexthops = BTreeMap::new();
        for route in routes
            .values()
            .filter(|route| nodes.contains_key(&route.node))
        {
            nexthops.insert(route.node, maps.nexthop(route.node)?);
        }
        Ok(Self {
            routes,
            nodes,
            nexthops,
            has_tunnel: maps.config()?.vtep_ifindex != 0,
        })
    }

    fn rows(&self, interface_name: impl Fn(u32) -> Option<String>) -> Vec<Row> {
        self.routes
            .iter()
            .map(|(&subnet, route)| self.row(subnet, route.node, &interface_name))
            .collect()
    }

    fn row(
        &self,
        subnet: F::Network,
        index: u32,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Row {
        let node = self.nodes.get(&index);
        let takes_tunnel = |node: &Node<F>| node.flags & F::TUNNEL_FLAGS == F::TUNNEL_FLAGS;
        let tunnel_allowed = self.has_tunnel && node.is_some_and(takes_tunnel);
        // The entry of a node that takes tunnel packets no more stays, and counts for nothing.
        let counts = |node: &Node<F>, nexthop: &Nexthop| {
            nexthop.vtep == node.vtep.tag()
                && nexthop.ifindex != 0
                && (nexthop.mode != MODE_TUNNEL || tunnel_allowed)
        };
        let next_hop = node
            .zip(self.nexthops.get(&index))
            .filter(|(node, nexthop)| counts(node, nexthop))
            .map(|(_, nexthop)| NextHop {
                mode: mode_name(nexthop.mode),
                ifindex: nexthop.ifindex,
                ifname: interface_name(nexthop.ifindex),
                dst_mac: nexthop.dst_mac.to_string(),
                src_mac: nexthop.src_mac.to_string(),
                mtu: nexthop.mtu,
            });
        Row {
            subnet: subnet.into(),
            node: index,
            vtep: node.map(|node| F::Address::from(node.vtep).into()),
            vtep_mac: node.map(|node| node.vtep_mac.to_string()),
            direct_allowed: node.is_some_and(|node| node.flags & NODE_DIRECT != 0),
            tunnel_allowed,
            next_hop,
        }
    }
}

impl Row {
    /// How packets get to the node, for people.
    fn mode(&self) -> &'static str {
        match &self.next_hop {
            Some(hop) => hop.mode,
            None if self.tunnel_allowed || self.direct_allowed => "unresolved",
            None => "kernel",
        }
    }
}

/// The name of a `MODE_*` value.
pub const fn mode_name(mode: u8) -> &'static str {
    match mode {
        MODE_NONE => "none",
        MODE_TUNNEL => "tunnel",
        MODE_DIRECT => "direct",
        _ => "unknown",
    }
}

impl output::Report for Report {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.routes.is_empty() && self.ipv6_routes.is_empty() {
            return writeln!(out, "no routes: no other node leases a subnet");
        }
        if !self.routes.is_empty() {
            self.write_routes(out)?;
        }
        if !self.routes.is_empty() && !self.ipv6_routes.is_empty() {
            writeln!(out)?;
        }
        if !self.ipv6_routes.is_empty() {
            kernel::write_routes(&self.ipv6_routes, out)?;
        }
        Ok(())
    }
}

impl Report {
    fn write_routes(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&[
            "SUBNET",
            "VTEP",
            "VTEP MAC",
            "MODE",
            "INTERFACE",
            "NEXT HOP MAC",
            "MTU>",
        ]);
        for row in &self.routes {
            let dash = || "-".to_owned();
            let hop = row.next_hop.as_ref();
            table.row([
                row.subnet.to_string(),
                row.vtep
                    .map_or_else(|| "missing".into(), |vtep| vtep.to_string()),
                row.vtep_mac.clone().unwrap_or_else(dash),
                row.mode().to_owned(),
                hop.map_or_else(dash, |hop| {
                    interface_label(hop.ifindex, hop.ifname.as_deref())
                }),
                hop.map_or_else(dash, |hop| hop.dst_mac.clone()),
                hop.map_or_else(dash, |hop| hop.mtu.to_string()),
            ]);
        }
        table.write(out)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnetwork::{Ipv4Network, Ipv6Network};
    use overlay_common::{addr::MacAddr, node::NODE_ZERO_CHECKSUM};

    use super::*;
    use crate::{
        model::{V4, V6},
        output::Format,
    };

    fn mac(first: u8, last: u8) -> MacAddr {
        MacAddr::new([first, 0, 0, 0, 0, last])
    }

    fn route(node: u32) -> Route {
        Route { node, flags: 0 }
    }

    fn name(ifindex: u32) -> Option<String> {
        (ifindex == 3).then(|| "eth0".into())
    }

    fn nexthop(vtep: [u8; 4], last: u8, mtu: u16, mode: u8) -> Nexthop {
        Nexthop {
            vtep,
            ifindex: 3,
            dst_mac: mac(6, last),
            src_mac: mac(6, 99),
            mtu,
            mode,
            ..Nexthop::default()
        }
    }

    fn ipv4() -> Peers<V4> {
        let subnet = |third: u8| Ipv4Network::new([10, 1, third, 0].into(), 24).unwrap();
        let node = |last: u8, flags| Node {
            flags,
            vtep: Ipv4Addr::new(192, 168, 0, last).into(),
            vtep_mac: mac(2, last),
            ..Node::default()
        };
        let nexthop = |last, mode| nexthop([192, 168, 0, last], last, 1450, mode);
        Peers {
            routes: (1..=5)
                .map(|third| (subnet(third), route(third.into())))
                .collect(),
            nodes: (1..=4)
                .map(|last| (u32::from(last), node(last, NODE_DIRECT)))
                .collect(),
            nexthops: [
                (1, nexthop(1, MODE_TUNNEL)),
                (2, nexthop(2, MODE_DIRECT)),
                (3, nexthop(99, MODE_DIRECT)),
                (4, Nexthop::default()),
            ]
            .into(),
            has_tunnel: true,
        }
    }

    /// One that takes checksum 0, two that do not, of which one was reached before, and one that is
    /// near enough to be reached directly.
    fn ipv6() -> Peers<V6> {
        let address = |base: &str, last: u16| -> Ipv6Addr {
            let base: Ipv6Addr = base.parse().unwrap();
            (base.to_bits() | u128::from(last)).into()
        };
        let subnet = |index: u16| {
            let base = address("fd00:10:5::", 0).to_bits() | u128::from(index) << 64;
            Ipv6Network::new(base.into(), 64).unwrap()
        };
        let vtep = |index| address("fd00::", index);
        let node = |index: u16, flags| Node::<V6> {
            flags,
            vtep: vtep(index).into(),
            vtep_mac: mac(2, 60 + index.to_be_bytes()[1]),
            ..Node::default()
        };
        let nexthop = |index: u16, mode| {
            let tag = node(index, 0).vtep.tag();
            nexthop(tag, index.to_be_bytes()[1], 1430, mode)
        };
        Peers {
            routes: (1..=4)
                .map(|index| (subnet(index), route(index.into())))
                .collect(),
            nodes: [
                (1, node(1, NODE_ZERO_CHECKSUM)),
                (2, node(2, 0)),
                (3, node(3, 0)),
                (4, node(4, NODE_DIRECT)),
            ]
            .into(),
            nexthops: [
                (1, nexthop(1, MODE_TUNNEL)),
                (2, nexthop(2, MODE_TUNNEL)),
                (4, nexthop(4, MODE_DIRECT)),
            ]
            .into(),
            has_tunnel: true,
        }
    }

    fn sample() -> Report {
        let mut routes = ipv4().rows(name);
        routes.extend(ipv6().rows(name));
        Report {
            routes,
            ..Report::default()
        }
    }

    fn text(report: &Report, format: Format) -> String {
        let mut out = Vec::new();
        output::print(report, format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_tells_resolved_from_unresolved_missing_and_unsuitable_nodes() {
        insta::assert_snapshot!(text(&sample(), Format::Table));
    }

    #[test]
    fn the_json_is_as_documented() {
        insta::assert_snapshot!(text(&sample(), Format::Json));
    }

    #[test]
    fn host_gw_allows_no_tunnel() {
        let peers = Peers {
            has_tunnel: false,
            ..ipv4()
        };
        assert!(peers.rows(name).iter().all(|row| !row.tunnel_allowed));
    }

    #[test]
    fn routes_of_the_kernel_are_listed_where_the_maps_have_none() {
        let kernel = |subnet: &str| kernel::Row {
            subnet: subnet.parse().unwrap(),
            vtep: "fd00::2".parse().ok(),
            vtep_mac: Some("02:00:00:00:06:02".into()),
            mode: "tunnel",
            ifindex: Some(7),
            ifname: Some("flannel-v6.1".into()),
            mtu: Some(1430),
        };
        let routes = vec![kernel("fd00:10:5:2::/64"), kernel("fd00:10:5:9::/64")];
        let mut mapped = sample();
        mapped.add_kernel_routes(routes.clone());
        assert_eq!(mapped.ipv6_routes, routes[1..]);
        let mut unmapped = Report::default();
        unmapped.add_kernel_routes(routes);
        insta::assert_snapshot!(text(&unmapped, Format::Table));
    }
}
