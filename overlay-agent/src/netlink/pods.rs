//! Finds the host side of pod interfaces. Pure.
//!
//! Two arrangements are recognised, both by the local subnet of a served family and not by names:
//! - ports of a bridge that has an address in it (docker0, cni0, a user's own);
//! - point-to-point interfaces with a host route into it (the ptp CNI plugin and its like).
//!
//! Only pairs qualify, veths and netkits: the eBPF tier delivers with `bpf_redirect_peer`, which needs a peer device
//! in the pod's namespace.

mod addressing;

use std::collections::BTreeMap;

use overlay_common::addr::MacAddr;
use serde::Serialize;

use self::addressing::Addressing;
use super::{
    Netlink, NetlinkError,
    object::{Link, LinkKind},
    watch::KernelEvent,
};
use crate::model::{Family, LocalNode, PerFamily, V4, V6, each_family};

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

/// The subnets of a node.
pub type Subnets = PerFamily<Option<<V4 as Family>::Network>, Option<<V6 as Family>::Network>>;

#[derive(Clone, Debug)]
struct Entry {
    link: Link,
    incarnation: u64,
}

/// Links, addresses and host routes of this network namespace, kept current by events.
#[derive(Clone, Debug, Default)]
pub struct LinkTable {
    links: BTreeMap<u32, Entry>,
    addressing: PerFamily<Addressing<V4>, Addressing<V6>>,
    incarnations: u64,
}

/// Links, addresses and host routes as the kernel lists them.
#[derive(Clone, Debug, Default)]
pub struct LinkDump {
    pub links: Vec<Link>,
    addressing: PerFamily<Addressing<V4>, Addressing<V6>>,
}

impl LinkTable {
    /// Takes over an event. Returns whether the table changed.
    pub fn apply(&mut self, event: &KernelEvent) -> bool {
        match event {
            KernelEvent::Link(link) => self.set_link(link),
            KernelEvent::LinkRemoved { ifindex, .. } => self.remove_link(*ifindex),
            KernelEvent::Ipv4(event) => self.addressing.ipv4.apply(event),
            KernelEvent::Ipv6(event) => self.addressing.ipv6.apply(event),
            KernelEvent::Fdb(_)
            | KernelEvent::FdbRemoved(_)
            | KernelEvent::PolicyRule
            | KernelEvent::Ipsec
            | KernelEvent::Resync => false,
        }
    }

    /// Replaces the contents by a fresh look at the kernel. A link that is still the same device
    /// keeps its incarnation.
    pub fn replace(&mut self, dump: LinkDump) {
        let LinkDump { links, addressing } = dump;
        let before = std::mem::take(&mut self.links);
        for link in links {
            let same = before
                .get(&link.ifindex)
                .filter(|entry| same_device(&entry.link, &link));
            let incarnation = same.map_or_else(|| self.next_incarnation(), |e| e.incarnation);
            self.links.insert(link.ifindex, Entry { link, incarnation });
        }
        self.addressing = addressing;
    }

    /// The link with this index.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex).map(|entry| &entry.link)
    }

    /// All links, by index.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values().map(|entry| &entry.link)
    }

    /// The interface through which the host's IP layer receives what comes from `link`, if that is the
    /// host side of a pod's interface: its bridge, or itself.
    pub fn gateway_of_pod<'a>(&'a self, link: &'a Link, subnets: Subnets) -> Option<&'a Link> {
        let served = self.addressing.as_ref().zip(subnets);
        let is_in = |ifindex| {
            let is_in = each_family!(served, (addressing, subnet) => {
                subnet.is_some_and(|subnet| addressing.is_in(ifindex, subnet))
            });
            is_in.any()
        };
        let leads_into = |ifindex| {
            let leads_into = each_family!(served, (addressing, subnet) => {
                subnet.is_some_and(|subnet| addressing.leads_into(ifindex, subnet))
            });
            leads_into.any()
        };
        match link.master {
            Some(master) => self
                .link(master)
                .filter(|bridge| bridge.kind == LinkKind::Bridge && is_in(bridge.ifindex)),
            None => Some(link).filter(|link| leads_into(link.ifindex)),
        }
    }

    fn set_link(&mut self, link: &Link) -> bool {
        let mut changed = !link.up && self.drop_routes(link.ifindex);
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
        each_family!(self.addressing.as_mut(), addressing => addressing.forget(ifindex));
        self.links.remove(&ifindex).is_some()
    }

    /// The kernel drops an interface's routes when it goes down. It says nothing about IPv4's, and
    /// about IPv6's nothing with `net.ipv6.route.skip_notify_on_dev_down`.
    fn drop_routes(&mut self, ifindex: u32) -> bool {
        let addressing = self.addressing.as_mut();
        each_family!(addressing, addressing => addressing.drop_routes(ifindex)).any()
    }

    fn next_incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }
}

/// Pod interfaces of the families that are served, by index. A family whose backend programs
/// nothing counts as not served.
pub fn pod_links(
    table: &LinkTable,
    locals: PerFamily<Option<&LocalNode<V4>>, Option<&LocalNode<V6>>>,
) -> BTreeMap<u32, PodLink> {
    let locals = each_family!(locals, local => local.filter(|local| local.forwarding.is_any()));
    let is_underlay = |ifindex| {
        let is_its = each_family!(locals, local => {
            local.is_some_and(|local| local.underlay.ifindex == ifindex)
        });
        is_its.any()
    };
    let subnets = each_family!(locals, local => local.map(|local| local.subnet));
    let mut pods = BTreeMap::new();
    for Entry { link, incarnation } in table.links.values() {
        let is_pair = matches!(link.kind, LinkKind::Veth | LinkKind::Netkit);
        if !is_pair || is_underlay(link.ifindex) {
            continue;
        }
        let gateway = table.gateway_of_pod(link, subnets);
        let Some(gateway) = gateway else { continue };
        let Some(gateway_mac) = gateway.mac else {
            continue;
        };
        let pod = PodLink {
            ifindex: link.ifindex,
            name: link.name.clone(),
            gateway_ifindex: gateway.ifindex,
            gateway_mac,
            incarnation: *incarnation,
        };
        pods.insert(pod.ifindex, pod);
    }
    pods
}

/// Host side of a pod's interface that the programs do not serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unserved {
    pub ifindex: u32,
    pub ifname: String,
    /// As the kernel calls it: `tun`.
    pub kind: String,
}

/// Pod interfaces that are no such pairs, by index: their packets take the kernel tier.
pub fn unserved(table: &LinkTable, subnets: Subnets) -> Vec<Unserved> {
    let kind = |link: &Link| match &link.kind {
        LinkKind::Virtual(kind) => Some(kind.clone()),
        _ => None,
    };
    table
        .links()
        .filter(|link| table.gateway_of_pod(link, subnets).is_some())
        .filter_map(|link| {
            Some(Unserved {
                ifindex: link.ifindex,
                ifname: link.name.clone(),
                kind: kind(link)?,
            })
        })
        .collect()
}

fn same_device(before: &Link, after: &Link) -> bool {
    before.name == after.name && before.mac == after.mac && before.kind == after.kind
}

impl Netlink {
    /// A fresh look for [`LinkTable::replace`]: at the start and after lost events.
    pub async fn dump_links(&self) -> Result<LinkDump, NetlinkError> {
        Ok(LinkDump {
            links: self.links().await?,
            addressing: PerFamily {
                ipv4: self.addressing().await?,
                ipv6: self.addressing().await?,
            },
        })
    }

    /// Nothing in a family the kernel has no support for: it answers with those it has.
    async fn addressing<F: Family>(&self) -> Result<Addressing<F>, NetlinkError> {
        let addresses = self.addresses().await?;
        let routes = self.routes().await?;
        Ok(Addressing::new(&addresses, &routes))
    }
}

#[cfg(test)]
mod tests;
