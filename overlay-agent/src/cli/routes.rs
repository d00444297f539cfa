//! `overlay-agent routes`: which subnet lives behind which VTEP, and how packets get there.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::Ipv4Addr,
    process::ExitCode,
};

use ipnetwork::Ipv4Network;
use overlay_common::{
    node::{MODE_DIRECT, MODE_NONE, MODE_TUNNEL, NODE_DIRECT, Nexthop, Node},
    route::Route,
};
use serde::Serialize;

use super::{
    ipv6::{self, Tier},
    pinned::{Pinned, interface_label, interface_name},
};
use crate::{
    datapath::{DatapathError, Maps},
    output::{self, Table},
};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub routes: Vec<Row>,
    /// Routes to the IPv6 subnets of peers; empty without IPv6.
    pub ipv6_routes: Vec<ipv6::Row>,
}

/// A peer subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub subnet: Ipv4Network,
    /// Index of the node in `OVL_NODES` and `OVL_NEXTHOPS`.
    pub node: u32,
    /// `None` (JSON `null`) if the node's entry is missing: the kernel carries its packets.
    pub vtep: Option<Ipv4Addr>,
    pub vtep_mac: Option<String>,
    /// Whether the configuration allows to reach the node without encapsulation.
    pub direct_allowed: bool,
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

pub fn run(args: &Args, ipv6: Option<Tier>, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut report = match args.pinned.open() {
        Ok(maps) => Report::read(&maps)?,
        // A node without IPv4 has no maps.
        Err(_) if ipv6.is_some() => Report::default(),
        Err(error) => return Err(error.into()),
    };
    report.ipv6_routes = ipv6.map(|tier| tier.routes).unwrap_or_default();
    output::print(&report, args.pinned.output, out)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    pub fn read(maps: &Maps) -> Result<Self, DatapathError> {
        let nodes = maps.ipv4.nodes()?;
        let routes = maps.ipv4.routes()?;
        let mut nexthops = BTreeMap::new();
        for route in routes
            .values()
            .filter(|route| nodes.contains_key(&route.node))
        {
            nexthops.insert(route.node, maps.ipv4.nexthop(route.node)?);
        }
        Ok(Self::new(&routes, &nodes, &nexthops, interface_name))
    }

    fn new(
        routes: &BTreeMap<Ipv4Network, Route>,
        nodes: &BTreeMap<u32, Node>,
        nexthops: &BTreeMap<u32, Nexthop>,
        interface_name: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let row = |(&subnet, route): (&Ipv4Network, &Route)| {
            let node = nodes.get(&route.node);
            let next_hop = node
                .zip(nexthops.get(&route.node))
                .filter(|(node, nexthop)| node.vtep.octets == nexthop.vtep && nexthop.ifindex != 0)
                .map(|(_, nexthop)| NextHop {
                    mode: mode_name(nexthop.mode),
                    ifindex: nexthop.ifindex,
                    ifname: interface_name(nexthop.ifindex),
                    dst_mac: nexthop.dst_mac.to_string(),
                    src_mac: nexthop.src_mac.to_string(),
                    mtu: nexthop.mtu,
                });
            Row {
                subnet,
                node: route.node,
                vtep: node.map(|node| node.vtep.into()),
                vtep_mac: node.map(|node| node.vtep_mac.to_string()),
                direct_allowed: node.is_some_and(|node| node.flags & NODE_DIRECT != 0),
                next_hop,
            }
        };
        Self {
            routes: routes.iter().map(row).collect(),
            ipv6_routes: Vec::new(),
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
            self.write_ipv4(out)?;
        }
        if !self.routes.is_empty() && !self.ipv6_routes.is_empty() {
            writeln!(out)?;
        }
        if !self.ipv6_routes.is_empty() {
            ipv6::write_routes(&self.ipv6_routes, out)?;
        }
        Ok(())
    }
}

impl Report {
    fn write_ipv4(&self, out: &mut dyn Write) -> io::Result<()> {
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
                hop.map_or_else(|| "unresolved".into(), |hop| hop.mode.to_owned()),
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
    use overlay_common::addr::MacAddr;

    use super::*;
    use crate::output::Format;

    fn sample() -> Report {
        let subnet = |third: u8| Ipv4Network::new([10, 1, third, 0].into(), 24).unwrap();
        let node = |last: u8, flags| Node {
            flags,
            vtep: Ipv4Addr::new(192, 168, 0, last).into(),
            vtep_mac: MacAddr::new([2, 0, 0, 0, 0, last]),
            ..Node::default()
        };
        let nexthop = |last: u8, mode| Nexthop {
            vtep: [192, 168, 0, last],
            ifindex: 3,
            dst_mac: MacAddr::new([6, 0, 0, 0, 0, last]),
            src_mac: MacAddr::new([6, 0, 0, 0, 0, 99]),
            mtu: 1450,
            mode,
            ..Nexthop::default()
        };
        let route = |node| Route { node, flags: 0 };
        Report::new(
            &(1..=5)
                .map(|third| (subnet(third), route(u32::from(third))))
                .collect(),
            &(1..=4)
                .map(|last| (u32::from(last), node(last, NODE_DIRECT)))
                .collect(),
            &[
                (1, nexthop(1, MODE_TUNNEL)),
                (2, nexthop(2, MODE_DIRECT)),
                (3, nexthop(99, MODE_DIRECT)),
                (4, Nexthop::default()),
            ]
            .into(),
            |ifindex| (ifindex == 3).then(|| "eth0".into()),
        )
    }

    fn text(format: Format) -> String {
        let mut out = Vec::new();
        output::print(&sample(), format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_tells_resolved_from_unresolved_and_missing_nodes() {
        insta::assert_snapshot!(text(Format::Table));
    }

    #[test]
    fn the_json_is_as_documented() {
        insta::assert_snapshot!(text(Format::Json));
    }
}
