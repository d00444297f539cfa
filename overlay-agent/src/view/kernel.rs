//! The IPv6 overlay of this node as the kernel has it, for `status` and `routes`: with the kernel tier
//! alone, and for what is not in the pinned maps.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::{IpAddr, Ipv6Addr},
};

use ipnetwork::Ipv6Network;
use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::route::RouteType;
use serde::Serialize;

use crate::{
    model::V6,
    netlink::{
        FdbEntry, Link, LinkKind, Neighbour, Netlink, NetlinkError, ROUTE_PROTOCOL, Route,
        flannel_vni,
    },
    output::Table,
};

/// The vxlan device, and the routes to other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tier {
    /// `None` with host-gw.
    pub device: Option<Device>,
    pub routes: Vec<Row>,
}

/// `flannel-v6.<VNI>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    pub ifindex: u32,
    pub ifname: String,
    pub up: bool,
    /// The address tunnel packets are sent from.
    pub vtep: Option<IpAddr>,
    pub vtep_mac: Option<String>,
    pub vni: u32,
    pub port: u16,
    pub mtu: u32,
    /// Whether tunnel packets to it may have UDP checksum 0.
    pub zero_checksum: bool,
}

/// A peer's IPv6 subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub subnet: Ipv6Network,
    /// `None` if the neighbour or the forwarding entry of a tunnel is missing.
    pub vtep: Option<IpAddr>,
    pub vtep_mac: Option<String>,
    /// `tunnel` or `direct`.
    pub mode: &'static str,
    pub ifindex: Option<u32>,
    pub ifname: Option<String>,
    /// Largest pod packet, bytes.
    pub mtu: Option<u32>,
}

/// What the kernel was seen to have.
#[derive(Default)]
struct Observed {
    links: Vec<Link>,
    routes: Vec<Route<V6>>,
    neighbours: Vec<Neighbour<V6>>,
    fdb: Vec<FdbEntry>,
}

impl Tier {
    /// Looks at the kernel. `None` if there is nothing of an IPv6 overlay.
    pub async fn read() -> Result<Option<Self>, NetlinkError> {
        let netlink = Netlink::connect()?;
        let mut observed = Observed {
            links: netlink.links().await?,
            routes: netlink.routes().await?,
            ..Observed::default()
        };
        for link in &observed.links {
            if flannel_vni::<V6>(link).is_some() {
                let neighbours = netlink.neighbours(link.ifindex).await?;
                observed.neighbours.extend(neighbours);
                let fdb = netlink.forwarding_entries(link.ifindex).await?;
                observed.fdb.extend(fdb);
            }
        }
        Ok(Self::of(&observed))
    }

    fn of(observed: &Observed) -> Option<Self> {
        let links: BTreeMap<u32, &Link> = observed
            .links
            .iter()
            .map(|link| (link.ifindex, link))
            .collect();
        let tier = Self {
            device: observed.links.iter().find_map(Device::of),
            routes: observed
                .routes
                .iter()
                .filter(|r| r.protocol == ROUTE_PROTOCOL && r.kind == RouteType::Unicast)
                .map(|route| Row::of(route, observed, &links))
                .collect(),
        };
        (tier != Self::default()).then_some(tier)
    }

    /// What is not as it should be, in sentences that say what follows from it.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(device) = self.device.as_ref().filter(|device| !device.up) {
            problems.push(format!(
                "{} is down: IPv6 pods reach nobody through the tunnel",
                device.ifname
            ));
        }
        for row in self.routes.iter().filter(|row| row.vtep.is_none()) {
            problems.push(format!(
                "{} has a route and no tunnel end: its packets are dropped",
                row.subnet
            ));
        }
        problems
    }

    /// The lines of `status` where the maps say nothing about IPv6.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        if let Some(device) = &self.device {
            let vtep = device.vtep.map_or("-".to_owned(), |vtep| vtep.to_string());
            let mac = device.vtep_mac.as_deref().unwrap_or("-");
            lines.push(("ipv6 vtep", format!("{vtep} ({mac}) on {}", device.ifname)));
            lines.push(("ipv6 mtu", device.mtu.to_string()));
            let taken = if device.zero_checksum {
                "taken"
            } else {
                "dropped"
            };
            lines.push(("ipv6 csum 0", taken.to_owned()));
        }
        let routes = self.routes.len();
        lines.push(("ipv6 routes", format!("{routes}, in the kernel")));
        lines
    }
}

/// The table of `routes` for what the maps do not have.
pub fn write_routes(routes: &[Row], out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(&[
        "IPV6 SUBNET",
        "VTEP",
        "VTEP MAC",
        "MODE",
        "INTERFACE",
        "MTU>",
    ]);
    let dash = || "-".to_owned();
    for row in routes {
        table.row([
            row.subnet.to_string(),
            row.vtep.map_or("missing".into(), |vtep| vtep.to_string()),
            row.vtep_mac.clone().unwrap_or_else(dash),
            row.mode.to_owned(),
            row.ifname.clone().unwrap_or_else(dash),
            row.mtu.map_or_else(dash, |mtu| mtu.to_string()),
        ]);
    }
    table.write(out)
}

impl Device {
    fn of(link: &Link) -> Option<Self> {
        let vni = flannel_vni::<V6>(link)?;
        let LinkKind::Vxlan(vxlan) = link.kind else {
            return None;
        };
        Some(Self {
            ifindex: link.ifindex,
            ifname: link.name.clone(),
            up: link.up,
            vtep: vxlan.local,
            vtep_mac: link.mac.map(|mac| mac.to_string()),
            vni,
            port: vxlan.port,
            mtu: link.mtu,
            zero_checksum: vxlan.zero_checksum,
        })
    }
}

impl Row {
    fn of(route: &Route<V6>, observed: &Observed, links: &BTreeMap<u32, &Link>) -> Self {
        let link = route.ifindex.and_then(|ifindex| links.get(&ifindex));
        let (mode, vtep, mac) = if route.is_tunnel_shaped() {
            let mac = route
                .gateway
                .and_then(|gateway| neighbour(gateway, route, observed));
            let vtep = mac.and_then(|mac| tunnel_end(mac, route, observed));
            ("tunnel", vtep, mac)
        } else {
            ("direct", route.gateway.map(IpAddr::V6), None)
        };
        Self {
            subnet: route.destination,
            vtep,
            vtep_mac: mac.map(|mac| mac.to_string()),
            mode,
            ifindex: route.ifindex,
            ifname: link.map(|link| link.name.clone()),
            mtu: link.map(|link| link.mtu),
        }
    }
}

fn neighbour(address: Ipv6Addr, route: &Route<V6>, observed: &Observed) -> Option<MacAddr> {
    let mut entries = observed.neighbours.iter();
    entries
        .find(|entry| entry.address == address && Some(entry.ifindex) == route.ifindex)?
        .mac
}

fn tunnel_end(mac: MacAddr, route: &Route<V6>, observed: &Observed) -> Option<IpAddr> {
    let mut entries = observed.fdb.iter();
    entries
        .find(|entry| entry.mac == mac && Some(entry.ifindex) == route.ifindex)?
        .remote
}

/// The IPv6 side of a report; what the kernel does not tell is left out, with the reason on standard
/// error.
pub async fn read_or_warn() -> Option<Tier> {
    match Tier::read().await {
        Ok(tier) => tier,
        Err(error) => {
            let _ = writeln!(io::stderr(), "IPv6 is left out: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteScope;

    use super::*;
    use crate::{netlink::VxlanLink, output};

    const DEVICE: u32 = 7;
    const UNDERLAY: u32 = 2;
    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 6, 2]);

    fn link(ifindex: u32, name: &str, mtu: u32, kind: LinkKind) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            kind,
            mac: Some(MacAddr::new([2, 0, 0, 0, 6, 1])),
            mtu,
            up: true,
            master: None,
        }
    }

    fn route(subnet: &str, gateway: &str, ifindex: u32, onlink: bool) -> Route<V6> {
        Route {
            destination: subnet.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
            ifindex: Some(ifindex),
            onlink,
            kind: RouteType::Unicast,
            protocol: ROUTE_PROTOCOL,
            scope: RouteScope::Universe,
            metric: 1024,
            tos: 0,
            table: 254,
        }
    }

    fn observed() -> Observed {
        let vxlan = VxlanLink {
            vni: 1,
            underlay: Some(UNDERLAY),
            local: "fd00::1".parse().ok(),
            port: 8472,
            zero_checksum: true,
            ..VxlanLink::default()
        };
        Observed {
            links: vec![
                link(UNDERLAY, "eth0", 1500, LinkKind::Other),
                link(DEVICE, "flannel-v6.1", 1430, LinkKind::Vxlan(vxlan)),
            ],
            routes: vec![
                route("fd00:10:5:2::/64", "fd00:10:5:2::", DEVICE, true),
                route("fd00:10:5:3::/64", "fd00::3", UNDERLAY, false),
            ],
            neighbours: vec![Neighbour {
                ifindex: DEVICE,
                address: "fd00:10:5:2::".parse().unwrap(),
                mac: Some(MAC),
                permanent: true,
            }],
            fdb: vec![FdbEntry {
                ifindex: DEVICE,
                mac: MAC,
                remote: "fd00::2".parse().ok(),
                permanent: true,
                overridden: false,
            }],
        }
    }

    fn table(tier: &Tier) -> String {
        let mut text = Vec::new();
        write_routes(&tier.routes, &mut text).unwrap();
        output::write_pairs(&mut text, &tier.describe()).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn tunnelled_and_direct_ipv6_peers_are_told_apart() {
        let tier = Tier::of(&observed()).unwrap();
        assert_eq!(tier.problems(), Vec::<String>::new());
        insta::assert_snapshot!(table(&tier));
    }

    #[test]
    fn the_json_of_ipv6_is_as_documented() {
        let tier = Tier::of(&observed()).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&tier).unwrap());
    }

    #[test]
    fn a_device_that_is_down_and_a_lost_tunnel_end_are_problems() {
        let mut broken = observed();
        broken.links[1].up = false;
        broken.fdb.clear();
        let problems = Tier::of(&broken).unwrap().problems();
        assert!(
            matches!(&problems[..], [down, lost]
                if down.contains("flannel-v6.1 is down") && lost.contains("fd00:10:5:2::/64")),
            "{problems:#?}"
        );
    }

    #[test]
    fn a_node_without_ipv6_has_nothing_to_show() {
        let mut ipv4 = observed();
        ipv4.links.pop();
        ipv4.routes.clear();
        assert_eq!(Tier::of(&ipv4), None);
    }
}
