//! The kernel tier as the kernel has it: what carries every packet where there are no programs, and the
//! packets of what is not in the pinned maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::route::RouteType;
use serde::Serialize;

use crate::{
    backend,
    model::{Family, V4, V6},
    netlink::{FdbEntry, Link, LinkKind, Neighbour, Netlink, NetlinkError, Route},
};

/// Both families of the kernel tier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelTier {
    /// `None` if there is nothing of the family's overlay.
    pub ipv4: Option<Tier>,
    pub ipv6: Option<Tier>,
    /// What could not be read, in sentences.
    pub missing: Vec<String>,
}

/// The backend's device of a family, and its routes to other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tier {
    /// `None` with host-gw.
    pub device: Option<Device>,
    pub routes: Vec<PeerRoute>,
}

/// A backend's device: `flannel.<VNI>` or `flannel-v6.<VNI>`, say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    pub ifindex: u32,
    pub ifname: String,
    pub up: bool,
    /// The address tunnel packets are sent from.
    pub vtep: Option<IpAddr>,
    pub vtep_mac: Option<String>,
    /// Of a vxlan device.
    pub vni: Option<u32>,
    pub port: Option<u16>,
    pub mtu: u32,
    /// Whether tunnel packets to it may have UDP checksum 0; over IPv4 they always may.
    pub zero_checksum: bool,
    /// Whether the agent carries its packets, so that nobody does without.
    pub in_agent: bool,
}

/// The route to a peer's subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerRoute {
    pub subnet: IpNetwork,
    /// `None` if the neighbour or the forwarding entry of a tunnel is missing, and in mode `device`.
    pub vtep: Option<IpAddr>,
    pub vtep_mac: Option<String>,
    /// `tunnel`, `direct`, or `device`: it knows the peers by itself.
    pub mode: &'static str,
    pub ifindex: Option<u32>,
    pub ifname: Option<String>,
    /// Largest pod packet, bytes.
    pub mtu: Option<u32>,
}

impl KernelTier {
    /// Asks the kernel.
    pub async fn read() -> Self {
        let mut kernel = Self::default();
        kernel.ipv4 = kernel.family::<V4>().await;
        kernel.ipv6 = kernel.family::<V6>().await;
        kernel
    }

    async fn family<F: Family>(&mut self) -> Option<Tier> {
        match Tier::read::<F>().await {
            Ok(tier) => tier,
            Err(error) => {
                let what = format!("{} is left out: {error}", F::NAME);
                self.missing.push(what);
                None
            }
        }
    }

    pub const fn is_empty(&self) -> bool {
        self.ipv4.is_none() && self.ipv6.is_none()
    }
}

/// What the kernel was seen to have.
struct KernelObjects<F: Family> {
    links: Vec<Link>,
    routes: Vec<Route<F>>,
    neighbours: Vec<Neighbour<F>>,
    fdb: Vec<FdbEntry>,
}

impl Tier {
    async fn read<F: Family>() -> Result<Option<Self>, NetlinkError> {
        let netlink = Netlink::connect()?;
        let mut observed = KernelObjects::<F> {
            links: netlink.links().await?,
            routes: netlink.routes().await?,
            neighbours: Vec::new(),
            fdb: Vec::new(),
        };
        for link in &observed.links {
            if backend::recognise::<F>(link).is_some() {
                let neighbours = netlink.neighbours(link.ifindex).await?;
                observed.neighbours.extend(neighbours);
                let fdb = netlink.forwarding_entries(link.ifindex).await?;
                observed.fdb.extend(fdb);
            }
        }
        let mut tier = Self::of(&observed);
        if tier.routes.iter().any(|route| route.vtep.is_none()) {
            // A peer that went while this was read lost its route first.
            let routes = netlink.routes::<F>().await?;
            let left: BTreeSet<IpNetwork> = routes.iter().map(|r| r.destination.into()).collect();
            tier.routes
                .retain(|route| route.vtep.is_some() || left.contains(&route.subnet));
        }
        Ok((tier != Self::default()).then_some(tier))
    }

    fn of<F: Family>(observed: &KernelObjects<F>) -> Self {
        let ends = Ends::of(observed);
        let routes = observed.routes.iter();
        let routes: Vec<PeerRoute> = routes
            .filter(|r| r.is_ours() && r.kind == RouteType::Unicast)
            .map(|route| ends.route(route))
            .collect();
        // One that may be of either family is of that which has a route there.
        let is_of_family = |device: &Device| {
            let mut routes = routes.iter();
            device.vtep.is_some() || routes.any(|route| route.ifindex == Some(device.ifindex))
        };
        let mut devices = observed.links.iter().filter_map(Device::of::<F>);
        Self {
            device: devices.find(is_of_family),
            routes,
        }
    }
}

impl Device {
    fn of<F: Family>(link: &Link) -> Option<Self> {
        let (id, device) = backend::recognise::<F>(link)?;
        let vxlan = match link.kind {
            LinkKind::Vxlan(vxlan) => Some(vxlan),
            _ => None,
        };
        Some(Self {
            ifindex: link.ifindex,
            ifname: link.name.clone(),
            up: link.up,
            vtep: device.local,
            vtep_mac: link.mac.map(|mac| mac.to_string()),
            vni: vxlan.map(|vxlan| vxlan.vni),
            port: vxlan.map(|vxlan| vxlan.port),
            mtu: link.mtu,
            zero_checksum: vxlan.is_some_and(|vxlan| vxlan.zero_checksum)
                || !F::CHECKSUM_IS_REQUIRED,
            in_agent: backend::is_in_agent(id),
        })
    }
}

/// Where routes lead, by what they name; the interface comes first.
struct Ends<'a, F: Family> {
    links: BTreeMap<u32, &'a Link>,
    neighbours: BTreeMap<(u32, F::Address), MacAddr>,
    remotes: BTreeMap<(u32, MacAddr), IpAddr>,
}

impl<'a, F: Family> Ends<'a, F> {
    fn of(observed: &'a KernelObjects<F>) -> Self {
        let links = observed.links.iter();
        let neighbours = observed.neighbours.iter();
        let fdb = observed.fdb.iter();
        Self {
            links: links.map(|link| (link.ifindex, link)).collect(),
            neighbours: neighbours
                .filter_map(|entry| Some(((entry.ifindex, entry.address), entry.mac?)))
                .collect(),
            remotes: fdb
                .filter_map(|entry| Some(((entry.ifindex, entry.mac), entry.remote?)))
                .collect(),
        }
    }

    fn route(&self, route: &Route<F>) -> PeerRoute {
        let link = route.ifindex.and_then(|ifindex| self.links.get(&ifindex));
        let gateway = route.ifindex.zip(route.gateway);
        let is_device = link.is_some_and(|link| backend::recognise::<F>(link).is_some());
        let (mode, vtep, mac) = if is_device && link.is_some_and(|link| link.mac.is_none()) {
            let gateway = route.gateway.map(Into::into);
            // Without a gateway, the device knows which node has the destination.
            let mode = if gateway.is_some() {
                "tunnel"
            } else {
                "device"
            };
            (mode, gateway, None)
        } else if is_device || route.is_tunnel_shaped() {
            let mac = gateway.and_then(|at| self.neighbours.get(&at).copied());
            let end = route.ifindex.zip(mac);
            let vtep = end.and_then(|at| self.remotes.get(&at).copied());
            ("tunnel", vtep, mac)
        } else {
            ("direct", route.gateway.map(Into::into), None)
        };
        PeerRoute {
            subnet: route.destination.into(),
            vtep,
            vtep_mac: mac.map(|mac| mac.to_string()),
            mode,
            ifindex: route.ifindex,
            ifname: link.map(|link| link.name.clone()),
            mtu: link.map(|link| link.mtu),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::netlink::{VxlanLink, peer_route};

    const DEVICE: u32 = 7;
    const UNDERLAY: u32 = 2;
    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 6, 2]);

    fn link(ifindex: u32, name: String, mtu: u32, kind: LinkKind) -> Link {
        Link {
            ifindex,
            name,
            kind,
            mac: Some(MacAddr::new([2, 0, 0, 0, 6, 1])),
            mtu,
            up: true,
            master: None,
        }
    }

    /// A device that does not say it takes UDP checksum 0, a peer behind the tunnel, and one that is
    /// reached directly.
    fn observed<F: Family>(subnets: [F::Network; 2], vteps: [F::Address; 3]) -> KernelObjects<F> {
        let [tunnelled, direct] = subnets;
        let [own, peer, near] = vteps;
        let vxlan = VxlanLink {
            vni: 1,
            underlay: Some(UNDERLAY),
            local: Some(own.into()),
            port: 8472,
            ..VxlanLink::default()
        };
        KernelObjects {
            links: vec![
                link(UNDERLAY, "eth0".to_owned(), 1500, LinkKind::Other),
                link(DEVICE, F::device_name(1), 1430, LinkKind::Vxlan(vxlan)),
            ],
            routes: vec![
                peer_route::<F>(tunnelled, F::first(tunnelled), DEVICE, true),
                peer_route::<F>(direct, near, UNDERLAY, false),
            ],
            neighbours: vec![Neighbour {
                ifindex: DEVICE,
                address: F::first(tunnelled),
                mac: Some(MAC),
                permanent: true,
            }],
            fdb: vec![FdbEntry {
                ifindex: DEVICE,
                mac: MAC,
                remote: Some(peer.into()),
                permanent: true,
                overridden: false,
            }],
        }
    }

    fn ipv4() -> KernelObjects<V4> {
        let vtep = |last| Ipv4Addr::new(192, 168, 0, last);
        let subnets = ["10.1.2.0/24", "10.1.3.0/24"].map(|text| text.parse().unwrap());
        observed(subnets, [vtep(1), vtep(2), vtep(3)])
    }

    fn ipv6() -> KernelObjects<V6> {
        let vtep = |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
        let subnets = ["fd00:10:5:2::/64", "fd00:10:5:3::/64"].map(|text| text.parse().unwrap());
        let mut observed = observed(subnets, [vtep(1), vtep(2), vtep(3)]);
        if let LinkKind::Vxlan(vxlan) = &mut observed.links[1].kind {
            vxlan.zero_checksum = true;
        }
        observed
    }

    #[test]
    fn the_json_of_ipv6_is_as_documented() {
        let tier = Tier::of(&ipv6());
        insta::assert_snapshot!(serde_json::to_string_pretty(&tier).unwrap());
    }

    #[test]
    fn tunnelled_and_direct_peers_are_told_apart() {
        let tier = Tier::of(&ipv4());
        let device = tier.device.unwrap();
        assert!(device.ifname == "flannel.1" && device.zero_checksum);
        let routes: Vec<_> = tier
            .routes
            .iter()
            .map(|route| (route.mode, route.vtep.unwrap().to_string()))
            .collect();
        assert_eq!(
            routes,
            [
                ("tunnel", "192.168.0.2".to_owned()),
                ("direct", "192.168.0.3".to_owned())
            ]
        );
    }

    #[test]
    fn a_device_for_either_family_is_of_the_one_with_a_route_and_knows_peers_by_itself() {
        fn seen<F: Family>(device: &Link, routes: Vec<Route<F>>) -> Tier {
            Tier::of(&KernelObjects {
                links: vec![device.clone()],
                routes,
                neighbours: Vec::new(),
                fdb: Vec::new(),
            })
        }
        let kind = LinkKind::Virtual("wireguard".to_owned());
        let device = Link {
            mac: None,
            ..link(DEVICE, "flannel-wg".to_owned(), 1420, kind)
        };
        let network = "10.1.0.0/16".parse().unwrap();
        let ipv4 = seen::<V4>(
            &device,
            vec![peer_route(network, None::<Ipv4Addr>, DEVICE, false)],
        );
        assert!(ipv4.device.is_some());
        assert_eq!((ipv4.routes[0].mode, ipv4.routes[0].vtep), ("device", None));
        assert_eq!(seen::<V6>(&device, Vec::new()), Tier::default());
    }

    #[test]
    fn a_tunnel_without_an_end_is_seen() {
        let mut broken = ipv4();
        broken.fdb.clear();
        let [tunnelled, direct] = &Tier::of(&broken).routes[..] else {
            panic!("two routes")
        };
        assert!(tunnelled.vtep.is_none() && tunnelled.vtep_mac.is_some());
        assert!(direct.vtep.is_some());
    }

    #[test]
    fn a_node_without_the_family_has_nothing_to_show() {
        let mut ipv4_alone = ipv6();
        ipv4_alone.links.pop();
        ipv4_alone.routes.clear();
        assert_eq!(Tier::of(&ipv4_alone), Tier::default());
    }
}
