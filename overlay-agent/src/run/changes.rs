//! From kernel events to what has to be looked at again. Pure.
//!
//! The two questions per event: which part of the desired state may be violated, and could a flow
//! that the fast path carries be affected. The second is answered generously: a flush costs every
//! flow one packet on the kernel path, a missed one sends packets where they no longer belong.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::BitOrAssign};

use overlay_common::addr::MacAddr;

use crate::netlink::{KernelEvent, LinkTable, ROUTE_PROTOCOL};

/// What has to be looked at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set of independent marks")]
pub struct Dirty {
    /// Pod interfaces and gateways.
    pub pods: bool,
    /// Addresses, neighbours, forwarding entries and routes of the kernel tier.
    pub tiers: bool,
    /// The device `flannel.<VNI>`.
    pub vtep: bool,
    /// The underlay interface or its address.
    pub underlay: bool,
    /// Flows have to earn their leases again.
    pub flush: bool,
    /// The link table is no longer to be trusted.
    pub resync: bool,
}

impl Dirty {
    /// Everything, as at the start and after lost events.
    pub const ALL: Self = Self {
        pods: true,
        tiers: true,
        vtep: true,
        underlay: true,
        flush: true,
        resync: true,
    };

    pub fn any(self) -> bool {
        self != Self::default()
    }
}

impl BitOrAssign for Dirty {
    fn bitor_assign(&mut self, other: Self) {
        self.pods |= other.pods;
        self.tiers |= other.tiers;
        self.vtep |= other.vtep;
        self.underlay |= other.underlay;
        self.flush |= other.flush;
        self.resync |= other.resync;
    }
}

/// The interfaces that mean something to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene {
    pub underlay: u32,
    pub vtep: Option<u32>,
}

/// What was seen so far of the host's links and neighbours.
#[derive(Debug, Default)]
pub struct Tracker {
    links: LinkTable,
    neighbours: BTreeMap<(u32, Ipv4Addr), MacAddr>,
}

impl Tracker {
    pub fn links(&self) -> &LinkTable {
        &self.links
    }

    pub fn links_mut(&mut self) -> &mut LinkTable {
        &mut self.links
    }

    /// Takes over an event and says what it puts in question.
    pub fn note(&mut self, event: &KernelEvent, scene: Scene) -> Dirty {
        let changed = self.links.apply(event);
        let mut dirty = Dirty {
            pods: changed,
            flush: changed,
            ..Dirty::default()
        };
        match event {
            KernelEvent::Resync => return Dirty::ALL,
            KernelEvent::Link(link) => {
                if scene.vtep == Some(link.ifindex) {
                    dirty.vtep = changed;
                    dirty.tiers = changed;
                }
                if scene.underlay == link.ifindex {
                    dirty.underlay = changed;
                    dirty.tiers = changed;
                }
            }
            KernelEvent::LinkRemoved { ifindex, .. } => {
                self.neighbours.retain(|(at, _), _| at != ifindex);
                dirty.vtep = scene.vtep == Some(*ifindex);
                dirty.underlay = scene.underlay == *ifindex;
                dirty.tiers = dirty.vtep || dirty.underlay;
            }
            KernelEvent::Address(address) | KernelEvent::AddressRemoved(address) => {
                dirty.underlay = scene.underlay == address.ifindex;
                dirty.tiers = dirty.underlay || scene.vtep == Some(address.ifindex);
            }
            KernelEvent::Route(route) | KernelEvent::RouteRemoved(route) => {
                // A route of another owner may decide how peers are reached, so it puts the
                // kernel tier in question; one of ours does only when it goes.
                let removed = matches!(event, KernelEvent::RouteRemoved(_));
                let foreign = route.protocol != ROUTE_PROTOCOL;
                dirty.tiers = foreign || removed;
                dirty.flush |= foreign || removed;
            }
            KernelEvent::Neighbour(neighbour) => {
                let Some(mac) = neighbour.mac else {
                    return dirty;
                };
                let key = (neighbour.ifindex, neighbour.address);
                let before = self.neighbours.insert(key, mac);
                dirty.flush |= before.is_some_and(|before| before != mac);
                dirty.tiers = scene.vtep == Some(neighbour.ifindex) && before != Some(mac);
            }
            KernelEvent::NeighbourRemoved(neighbour) => {
                self.neighbours
                    .remove(&(neighbour.ifindex, neighbour.address));
                dirty.tiers = scene.vtep == Some(neighbour.ifindex);
            }
            KernelEvent::Fdb(_) => {}
            KernelEvent::FdbRemoved(entry) => dirty.tiers = scene.vtep == Some(entry.ifindex),
        }
        dirty
    }
}
