//! Finds the host side of pod interfaces. Pure.
//!
//! Two arrangements are recognised, both by the local subnet and not by names:
//! - ports of a bridge that has an address in it (docker0, cni0, a user's own);
//! - point-to-point veths with a host route into it (the ptp CNI plugin and its like).
//!
//! Only veths qualify: the eBPF tier delivers with `bpf_redirect_peer`, which needs a peer device
//! in the pod's namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::route::RouteType;

use super::{
    Netlink, NetlinkError,
    object::{Address, Link, LinkKind, Route},
    watch::{IpEvent, KernelEvent},
};
use crate::model::{LocalNode, V4};

/// Host side of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    pub ifindex: u32,
    pub name: String,
    /// The interface through which the host's IP layer receives the pod's packets: the bridge, or
    /// the veth itself.
    pub gateway_ifindex: u32,
    /// What pods address frames to that they want routed.
    pub gateway_mac: MacAddr,
    /// Differs between two devices that had the same index one after the other.
    pub incarnation: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    link: Link,
    incarnation: u64,
}

/// Links, addresses and host routes of this network namespace, kept current by events.
#[derive(Clone, Debug, Default)]
pub struct LinkTable {
    links: BTreeMap<u32, Entry>,
    addresses: BTreeMap<u32, BTreeSet<Ipv4Network>>,
    /// `/32` routes without a gateway.
    host_routes: BTreeMap<u32, BTreeSet<Ipv4Addr>>,
    incarnations: u64,
}

impl LinkTable {
    /// Takes over an event. Returns whether the table changed.
    pub fn apply(&mut self, event: &KernelEvent) -> bool {
        match event {
            KernelEvent::Link(link) => self.set_link(link),
            KernelEvent::LinkRemoved { ifindex, .. } => self.remove_link(*ifindex),
            KernelEvent::Ipv4(event) => self.apply_ipv4(event),
            KernelEvent::Ipv6(_)
            | KernelEvent::Fdb(_)
            | KernelEvent::FdbRemoved(_)
            | KernelEvent::PolicyRule
            | KernelEvent::Resync => false,
        }
    }

    fn apply_ipv4(&mut self, event: &IpEvent<V4>) -> bool {
        match event {
            IpEvent::Address(address) => self
                .addresses
                .entry(address.ifindex)
                .or_default()
                .insert(address.local),
            IpEvent::AddressRemoved(address) => {
                remove_from(&mut self.addresses, address.ifindex, &address.local)
            }
            IpEvent::Route(route) => host_route(route).is_some_and(|(ifindex, address)| {
                self.host_routes.entry(ifindex).or_default().insert(address)
            }),
            IpEvent::RouteRemoved(route) => host_route(route).is_some_and(|(ifindex, address)| {
                remove_from(&mut self.host_routes, ifindex, &address)
            }),
            IpEvent::Neighbour(_) | IpEvent::NeighbourRemoved(_) => false,
        }
    }

    /// Replaces the contents by a fresh look at the kernel. A link that is still the same device
    /// keeps its incarnation.
    pub fn replace(&mut self, links: &[Link], addresses: &[Address], routes: &[Route]) {
        let before = std::mem::take(&mut self.links);
        self.addresses.clear();
        self.host_routes.clear();
        for link in links {
            let same = before
                .get(&link.ifindex)
                .filter(|entry| same_device(&entry.link, link));
            let incarnation = same.map_or_else(|| self.next_incarnation(), |e| e.incarnation);
            self.links.insert(
                link.ifindex,
                Entry {
                    link: link.clone(),
                    incarnation,
                },
            );
        }
        for address in addresses {
            self.addresses
                .entry(address.ifindex)
                .or_default()
                .insert(address.local);
        }
        for (ifindex, address) in routes.iter().filter_map(host_route) {
            self.host_routes.entry(ifindex).or_default().insert(address);
        }
    }

    /// The link with this index.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex).map(|entry| &entry.link)
    }

    /// All links, by index.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values().map(|entry| &entry.link)
    }

    /// Addresses of an interface.
    pub fn addresses(&self, ifindex: u32) -> impl Iterator<Item = &Ipv4Network> {
        self.addresses.get(&ifindex).into_iter().flatten()
    }

    fn set_link(&mut self, link: &Link) -> bool {
        // The kernel drops an interface's routes when it goes down, and says nothing.
        let mut changed = !link.up && self.host_routes.remove(&link.ifindex).is_some();
        if let Some(entry) = self.links.get_mut(&link.ifindex) {
            changed |= entry.link != *link;
            entry.link.clone_from(link);
            return changed;
        }
        let incarnation = self.next_incarnation();
        self.links.insert(
            link.ifindex,
            Entry {
                link: link.clone(),
                incarnation,
            },
        );
        true
    }

    fn remove_link(&mut self, ifindex: u32) -> bool {
        self.addresses.remove(&ifindex);
        self.host_routes.remove(&ifindex);
        self.links.remove(&ifindex).is_some()
    }

    fn next_incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }
}

/// Pod interfaces, by index.
pub fn pod_links(table: &LinkTable, local: &LocalNode) -> BTreeMap<u32, PodLink> {
    table
        .links
        .values()
        .filter(|entry| entry.link.kind == LinkKind::Veth)
        .filter(|entry| entry.link.ifindex != local.underlay.ifindex)
        .filter_map(|entry| {
            let gateway = gateway_of(table, &entry.link, local)?;
            let pod = PodLink {
                ifindex: entry.link.ifindex,
                name: entry.link.name.clone(),
                gateway_ifindex: gateway.ifindex,
                gateway_mac: gateway.mac?,
                incarnation: entry.incarnation,
            };
            Some((pod.ifindex, pod))
        })
        .collect()
}

fn gateway_of<'a>(table: &'a LinkTable, veth: &'a Link, local: &LocalNode) -> Option<&'a Link> {
    let in_subnet = |address: Ipv4Addr| local.subnet.contains(address);
    if let Some(master) = veth.master {
        let bridge = table.link(master)?;
        let pods_bridge = bridge.kind == LinkKind::Bridge
            && table
                .addresses(master)
                .any(|address| in_subnet(address.ip()));
        return pods_bridge.then_some(bridge);
    }
    let routes = table.host_routes.get(&veth.ifindex)?;
    routes
        .iter()
        .any(|address| in_subnet(*address))
        .then_some(veth)
}

fn host_route(route: &Route) -> Option<(u32, Ipv4Addr)> {
    let to_one_host = route.destination.prefix() == 32
        && route.gateway.is_none()
        && route.kind == RouteType::Unicast
        && route.in_main_table();
    to_one_host.then_some((route.ifindex?, route.destination.ip()))
}

fn same_device(before: &Link, after: &Link) -> bool {
    before.name == after.name && before.mac == after.mac && before.kind == after.kind
}

fn remove_from<T: Ord>(map: &mut BTreeMap<u32, BTreeSet<T>>, ifindex: u32, value: &T) -> bool {
    let Some(values) = map.get_mut(&ifindex) else {
        return false;
    };
    let removed = values.remove(value);
    if values.is_empty() {
        map.remove(&ifindex);
    }
    removed
}

impl Netlink {
    /// Brings a table up to date with the kernel: at the start and after lost events.
    pub async fn refresh(&self, table: &mut LinkTable) -> Result<(), NetlinkError> {
        let links = self.links().await?;
        let addresses = self.addresses().await?;
        let routes = self.routes().await?;
        table.replace(&links, &addresses, &routes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
