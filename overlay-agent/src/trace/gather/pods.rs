//! Where a pod of this node is.

use std::net::IpAddr;

use overlay_common::addr::MacAddr;

use super::scene::{Scene, interface};
use crate::{
    model::{Family, V4, V6},
    netlink::{Link, LinkKind, NetlinkError, RouteQuestion},
    trace::facts::Pod,
};

pub struct FoundPod {
    /// Its bridge, or its own interface.
    pub gateway: Link,
    /// The host's side of its interface; `None` where the bridge does not know it.
    pub port: Option<Link>,
    mac: Option<MacAddr>,
}

impl FoundPod {
    /// What its interface is, if the programs do not serve such.
    pub fn unserved(&self) -> Option<&str> {
        match &self.port.as_ref()?.kind {
            LinkKind::Virtual(kind) => Some(kind),
            _ => None,
        }
    }

    pub fn told(self) -> Pod {
        Pod {
            unserved: self.unserved().map(str::to_owned),
            interface: self.port.as_ref().map(interface),
            gateway: interface(&self.gateway),
            mac: self.mac.map(|mac| mac.to_string()),
        }
    }
}

impl Scene {
    /// The pod at `address`; `None` if no interface leads to it.
    pub async fn pod(&self, address: IpAddr) -> Result<Option<FoundPod>, NetlinkError> {
        let answer = self.netlink.route_for(&RouteQuestion::to(address)).await?;
        let Ok(answer) = answer else {
            return Ok(None);
        };
        let ifindex = answer.ifindex.filter(|_| answer.gateway.is_none());
        let Some(gateway) = ifindex.and_then(|ifindex| self.links.link(ifindex)) else {
            return Ok(None);
        };
        let mac = self.neighbour(gateway.ifindex, address).await?;
        let port = match (&gateway.kind, mac) {
            (LinkKind::Bridge, None) => None,
            (LinkKind::Bridge, Some(mac)) => self.port(gateway, mac).await?,
            _ => Some(gateway.clone()),
        };
        Ok(Some(FoundPod {
            gateway: gateway.clone(),
            port,
            mac,
        }))
    }

    /// MAC address of a neighbour.
    pub async fn neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<Option<MacAddr>, NetlinkError> {
        match address {
            IpAddr::V4(address) => self.neighbour_of::<V4>(ifindex, address).await,
            IpAddr::V6(address) => self.neighbour_of::<V6>(ifindex, address).await,
        }
    }

    async fn neighbour_of<F: Family>(
        &self,
        ifindex: u32,
        address: F::Address,
    ) -> Result<Option<MacAddr>, NetlinkError> {
        let neighbours = self.netlink.neighbours::<F>(ifindex).await?;
        let mut neighbours = neighbours.into_iter();
        Ok(neighbours
            .find(|neighbour| neighbour.address == address)
            .and_then(|neighbour| neighbour.mac))
    }

    /// The port of a bridge behind which this MAC address is.
    async fn port(&self, bridge: &Link, mac: MacAddr) -> Result<Option<Link>, NetlinkError> {
        let ports = { self.links.links() }.filter(|link| link.master == Some(bridge.ifindex));
        for port in ports {
            let entries = self.netlink.forwarding_entries(port.ifindex).await?;
            if entries.iter().any(|entry| entry.mac == mac) {
                return Ok(Some(port.clone()));
            }
        }
        Ok(None)
    }
}
