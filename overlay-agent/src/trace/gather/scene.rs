//! The host, as it is before the packet is asked about.

use std::{net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use overlay_common::encap::DATAGRAM_LEN;

use crate::{
    check,
    datapath::PinDir,
    model::{Family as _, V4, V6},
    netlink::{Link, LinkTable, Netlink, NetlinkError},
    trace::{
        facts::{End, Interface, Overlay},
        packet::Packet,
    },
    underlay::{self, HostSnapshot},
    view::Snapshot,
};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    pub pins: PinDir,
    pub subnet_file: PathBuf,
}

/// The host as far as the packet may meet it.
pub struct Scene {
    pub netlink: Netlink,
    pub links: LinkTable,
    addresses: HostSnapshot,
    /// Of the packet's family.
    pub overlay: Option<check::Overlay>,
}

impl Scene {
    pub async fn look(
        packet: &Packet,
        snapshot: &Snapshot,
        places: &Places,
        missing: &mut Vec<String>,
    ) -> Result<Self, NetlinkError> {
        let addresses = match underlay::snapshot(None).await {
            Ok(host) => host,
            Err(error) => {
                missing.push(format!("the node's own addresses are left out: {error}"));
                HostSnapshot::default()
            }
        };
        let file = check::subnet_file(&places.subnet_file);
        let overlays = check::overlays(snapshot, &addresses, file.as_ref());
        let is_ipv4 = packet.source.is_ipv4();
        let mut overlay = { overlays.into_iter() }.find(|o| o.vtep.is_ipv4() == is_ipv4);
        if let (Some(overlay), Some(file)) = (&mut overlay, &file) {
            let said = if is_ipv4 {
                file.said.ipv4_subnet.map(IpNetwork::from)
            } else {
                file.said.ipv6_subnet.map(IpNetwork::from)
            };
            overlay.subnet = overlay.subnet.or(said);
            // Pods of both families use what fits either.
            overlay.pod_mtu = overlay.pod_mtu.into_iter().chain(file.mtu).min();
        }
        let netlink = Netlink::connect()?;
        let mut links = LinkTable::default();
        links.replace(netlink.dump_links().await?);
        Ok(Self {
            netlink,
            links,
            addresses,
            overlay,
        })
    }

    /// What an address is to this node.
    pub fn end(&self, address: IpAddr) -> End {
        let mut own = self.addresses.addresses.iter();
        if own.any(|own| own.ip == address) {
            return End::Host;
        }
        let Some(overlay) = &self.overlay else {
            return End::Outside;
        };
        let is_in = |network: Option<IpNetwork>| network.is_some_and(|n| n.contains(address));
        let has_route = || {
            let mut routes = overlay.tier.routes.iter();
            routes.any(|route| route.subnet.contains(address))
        };
        if is_in(overlay.subnet) {
            End::PodHere
        } else if is_in(overlay.network) || has_route() {
            End::PodElsewhere
        } else {
            End::Outside
        }
    }

    /// The tunnel device.
    pub fn device(&self) -> Option<Link> {
        let device = self.overlay.as_ref()?.tier.device.as_ref()?;
        self.links.link(device.ifindex).cloned()
    }

    pub fn overlay(&self) -> Option<Overlay> {
        let found = self.overlay.as_ref()?;
        let overhead = match (found.vni, found.vtep) {
            // The udp backend's.
            (None, _) if found.port.is_some() => DATAGRAM_LEN,
            (None, _) => 0,
            (Some(_), IpAddr::V4(_)) => V4::OVERHEAD,
            (Some(_), IpAddr::V6(_)) => V6::OVERHEAD,
        };
        Some(Overlay {
            vtep: found.vtep,
            vni: found.vni,
            port: found.port,
            pod_mtu: found.pod_mtu,
            overhead,
            device: self.device().as_ref().map(interface),
        })
    }
}

pub fn interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mtu: link.mtu,
        is_up: link.up,
    }
}
