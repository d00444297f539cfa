//! `overlay-agent routes`: which subnet lives behind which VTEP, and how packets get there.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
};

use ipnetwork::IpNetwork;
use overlay_common::node::{MODE_DIRECT, MODE_NONE, MODE_TUNNEL, NODE_DIRECT};
use serde::Serialize;

use super::pinned::Pinned;
use crate::{
    datapath::DatapathError,
    model::Family,
    names::{interface_label, interface_name},
    output::{self, Table},
    view::{EbpfTier, KernelTier, Overlay, PeerRoute, Snapshot, Tier},
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
    /// The kernel's routes to subnets that the maps do not have.
    pub ipv4_routes: Vec<PeerRoute>,
    pub ipv6_routes: Vec<PeerRoute>,
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

pub fn run(args: &Args, snapshot: Snapshot, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let Snapshot { ebpf, kernel } = snapshot;
    let mut report = match ebpf {
        Ok(tier) => Report::new(&tier, interface_name),
        // With the kernel tier alone there are no maps.
        Err(DatapathError::NotPinned { .. } | DatapathError::KernelTier { .. })
            if !kernel.is_empty() =>
        {
            Report::default()
        }
        Err(error) => return Err(error.into()),
    };
    report.add_kernel_routes(kernel);
    output::print(&report, args.pinned.output, out)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(tier: &EbpfTier, interface_name: impl Fn(u32) -> Option<String>) -> Self {
        let ipv4 = tier.ipv4.as_ref();
        let ipv6 = tier.ipv6.as_ref();
        let mut routes = ipv4.map_or_else(Vec::new, |ipv4| rows(ipv4, &interface_name));
        routes.extend(ipv6.map_or_else(Vec::new, |ipv6| rows(ipv6, &interface_name)));
        Self {
            routes,
            ..Self::default()
        }
    }

    /// Adds what the kernel has and the maps do not.
    fn add_kernel_routes(&mut self, kernel: KernelTier) {
        let mapped: BTreeSet<IpNetwork> = self.routes.iter().map(|row| row.subnet).collect();
        let unmapped = |tier: Option<Tier>| {
            let mut routes = tier.map(|tier| tier.routes).unwrap_or_default();
            routes.retain(|route| !mapped.contains(&route.subnet));
            routes
        };
        self.ipv4_routes = unmapped(kernel.ipv4);
        self.ipv6_routes = unmapped(kernel.ipv6);
    }
}

/// The subnets of a family.
fn rows<F: Family>(
    overlay: &Overlay<F>,
    interface_name: impl Fn(u32) -> Option<String>,
) -> Vec<Row> {
    let routes = overlay.routes.iter();
    routes
        .map(|(&subnet, route)| row(overlay, subnet, route.node, &interface_name))
        .collect()
}

fn row<F: Family>(
    overlay: &Overlay<F>,
    subnet: F::Network,
    index: u32,
    interface_name: impl Fn(u32) -> Option<String>,
) -> Row {
    let node = overlay.nodes.get(&index);
    let tunnel_allowed = overlay.takes_tunnel_packets(index);
    let next_hop = overlay.next_hop(index).map(|nexthop| NextHop {
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
        let mut tables = Vec::new();
        if !self.routes.is_empty() {
            tables.push(self.mapped());
        }
        for (header, routes) in [
            ("IPV4 SUBNET", &self.ipv4_routes),
            ("IPV6 SUBNET", &self.ipv6_routes),
        ] {
            if !routes.is_empty() {
                tables.push(in_kernel(header, routes));
            }
        }
        if tables.is_empty() {
            return writeln!(out, "no routes: no other node leases a subnet");
        }
        for (index, table) in tables.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            table.write(out)?;
        }
        Ok(())
    }
}

impl Report {
    fn mapped(&self) -> Table {
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
        table
    }
}

/// The table for what the maps do not have.
fn in_kernel(subnet: &str, routes: &[PeerRoute]) -> Table {
    let mut table = Table::new(&[subnet, "VTEP", "VTEP MAC", "MODE", "INTERFACE", "MTU>"]);
    let dash = || "-".to_owned();
    for route in routes {
        table.row([
            route.subnet.to_string(),
            match route.vtep {
                Some(vtep) => vtep.to_string(),
                None if route.mode == "device" => dash(),
                None => "missing".to_owned(),
            },
            route.vtep_mac.clone().unwrap_or_else(dash),
            route.mode.to_owned(),
            route.ifname.clone().unwrap_or_else(dash),
            route.mtu.map_or_else(dash, |mtu| mtu.to_string()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnetwork::{Ipv4Network, Ipv6Network};
    use overlay_common::{
        addr::{Address as _, MacAddr},
        config::Config,
        node::{NODE_ZERO_CHECKSUM, Nexthop, Node},
        route::RouteEntry,
    };

    use super::*;
    use crate::{
        model::{V4, V6},
        output::Format,
    };

    fn mac(first: u8, last: u8) -> MacAddr {
        MacAddr::new([first, 0, 0, 0, 0, last])
    }

    fn route(node: u32) -> RouteEntry {
        RouteEntry { node, flags: 0 }
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

    fn tunnelling<F: Family>() -> Config<F> {
        Config {
            vtep_ifindex: 5,
            ..Config::default()
        }
    }

    fn ipv4() -> Overlay<V4> {
        let subnet = |third: u8| Ipv4Network::new([10, 1, third, 0].into(), 24).unwrap();
        let node = |last: u8, flags| Node {
            flags,
            vtep: Ipv4Addr::new(192, 168, 0, last).into(),
            vtep_mac: mac(2, last),
            ..Node::default()
        };
        let nexthop = |last, mode| nexthop([192, 168, 0, last], last, 1450, mode);
        Overlay {
            config: tunnelling(),
            routes: (1..=5)
                .map(|third| (subnet(third), route(third.into())))
                .collect(),
            nodes: (1..=4)
                .map(|last| (u32::from(last), node(last, NODE_DIRECT)))
                .collect(),
            peers: 0,
            nexthops: [
                (1, nexthop(1, MODE_TUNNEL)),
                (2, nexthop(2, MODE_DIRECT)),
                (3, nexthop(99, MODE_DIRECT)),
                (4, Nexthop::default()),
            ]
            .into(),
        }
    }

    /// One that takes checksum 0, two that do not, of which one was reached before, and one that is
    /// near enough to be reached directly.
    fn ipv6() -> Overlay<V6> {
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
        Overlay {
            config: tunnelling(),
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
            peers: 0,
            nexthops: [
                (1, nexthop(1, MODE_TUNNEL)),
                (2, nexthop(2, MODE_TUNNEL)),
                (4, nexthop(4, MODE_DIRECT)),
            ]
            .into(),
        }
    }

    fn sample() -> Report {
        let mut routes = rows(&ipv4(), name);
        routes.extend(rows(&ipv6(), name));
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
        let overlay = Overlay {
            config: Config::default(),
            ..ipv4()
        };
        assert!(rows(&overlay, name).iter().all(|row| !row.tunnel_allowed));
    }

    fn in_kernel(subnet: &str, vtep: &str, ifname: &str) -> PeerRoute {
        PeerRoute {
            subnet: subnet.parse().unwrap(),
            vtep: vtep.parse().ok(),
            vtep_mac: Some("02:00:00:00:06:02".into()),
            mode: "tunnel",
            ifindex: Some(7),
            ifname: Some(ifname.into()),
            mtu: Some(1430),
        }
    }

    fn kernel() -> KernelTier {
        let tier = |routes| {
            Some(Tier {
                device: None,
                routes,
            })
        };
        let ipv4 = |subnet| in_kernel(subnet, "192.168.0.2", "flannel.1");
        let ipv6 = |subnet| in_kernel(subnet, "fd00::2", "flannel-v6.1");
        KernelTier {
            ipv4: tier(vec![ipv4("10.1.2.0/24"), ipv4("10.1.9.0/24")]),
            ipv6: tier(vec![ipv6("fd00:10:5:2::/64"), ipv6("fd00:10:5:9::/64")]),
            missing: Vec::new(),
        }
    }

    #[test]
    fn routes_of_the_kernel_are_listed_where_the_maps_have_none() {
        let subnets = |routes: &[PeerRoute]| -> Vec<String> {
            routes
                .iter()
                .map(|route| route.subnet.to_string())
                .collect()
        };
        let mut mapped = sample();
        mapped.add_kernel_routes(kernel());
        assert_eq!(subnets(&mapped.ipv4_routes), ["10.1.9.0/24"]);
        assert_eq!(subnets(&mapped.ipv6_routes), ["fd00:10:5:9::/64"]);
        let mut unmapped = Report::default();
        unmapped.add_kernel_routes(kernel());
        insta::assert_snapshot!(text(&unmapped, Format::Table));
    }
}
