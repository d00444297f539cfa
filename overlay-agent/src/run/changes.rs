//! From kernel events to what has to be looked at again. Pure.
//!
//! The two questions per event: which part of the desired state may be violated, and could a flow
//! that the fast path carries be affected. The second is answered generously: a flush costs every
//! flow one packet on the kernel path, a missed one sends packets where they no longer belong.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::BitOrAssign};

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;

use crate::{
    model::Desired,
    netlink::{FdbEntry, KernelEvent, LinkTable, ROUTE_PROTOCOL},
};

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

/// What means something to this node.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub desired: &'a Desired,
    pub vtep: Option<u32>,
}

impl Scene<'_> {
    fn underlay(self) -> u32 {
        self.desired.local.underlay.ifindex
    }

    /// Whether a forwarding entry is the one of a peer.
    fn expects(self, entry: &FdbEntry) -> bool {
        self.desired
            .peers
            .values()
            .any(|peer| peer.vtep_mac == entry.mac && Some(peer.public_ip) == entry.remote)
    }

    /// Whether a route to `destination` can decide where pods' packets or tunnel packets go.
    fn is_concerned_by(self, destination: Ipv4Network) -> bool {
        destination.overlaps(self.desired.local.network)
            || self
                .desired
                .peers
                .values()
                .any(|peer| destination.contains(peer.public_ip))
    }
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
    pub fn note(&mut self, event: &KernelEvent, scene: Scene<'_>) -> Dirty {
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
                if scene.underlay() == link.ifindex {
                    dirty.underlay = changed;
                    dirty.tiers = changed;
                }
            }
            KernelEvent::LinkRemoved { ifindex, .. } => {
                self.neighbours.retain(|(at, _), _| at != ifindex);
                dirty.vtep = scene.vtep == Some(*ifindex);
                dirty.underlay = scene.underlay() == *ifindex;
                dirty.tiers = dirty.vtep || dirty.underlay;
            }
            KernelEvent::Address(address) | KernelEvent::AddressRemoved(address) => {
                dirty.underlay = scene.underlay() == address.ifindex;
                dirty.tiers = dirty.underlay || scene.vtep == Some(address.ifindex);
            }
            KernelEvent::Route(route) | KernelEvent::RouteRemoved(route) => {
                // What this agent adds is its own doing; what it misses has to come back.
                let removed = matches!(event, KernelEvent::RouteRemoved(_));
                let unexpected = removed || route.protocol != ROUTE_PROTOCOL;
                dirty.tiers = unexpected && scene.is_concerned_by(route.destination);
                dirty.flush |= dirty.tiers;
                // The default route is what chooses the underlay, unless flags do.
                dirty.underlay = route.destination.prefix() == 0;
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
            KernelEvent::Fdb(entry) => {
                dirty.tiers = scene.vtep == Some(entry.ifindex) && !scene.expects(entry);
            }
            KernelEvent::FdbRemoved(entry) => dirty.tiers = scene.vtep == Some(entry.ifindex),
        }
        dirty
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteScope, RouteType};

    use super::*;
    use crate::{
        model::{Backend, LocalNode, Peer, Underlay, VxlanBackend},
        netlink::{Address, Link, LinkKind, Neighbour, Route},
    };

    const UNDERLAY: u32 = 2;
    const VTEP: u32 = 3;
    const BRIDGE: u32 = 4;

    fn network(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn desired() -> Desired {
        let peer = Peer {
            subnet: network("10.5.2.0/24"),
            public_ip: Ipv4Addr::new(192, 168, 7, 2),
            vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 2]),
        };
        Desired {
            local: LocalNode {
                network: network("10.5.0.0/16"),
                subnet: network("10.5.1.0/24"),
                underlay: Underlay {
                    ifindex: UNDERLAY,
                    name: "eth0".to_owned(),
                    mtu: 1500,
                    hardware: true,
                    address: Ipv4Addr::new(192, 168, 7, 1),
                    public_ip: Ipv4Addr::new(192, 168, 7, 1),
                },
                backend: Backend::Vxlan(VxlanBackend {
                    vni: 1,
                    port: None,
                    mtu: None,
                    gbp: false,
                    learning: false,
                    direct_routing: false,
                }),
                vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            },
            peers: [(peer.subnet, peer)].into(),
        }
    }

    fn note(tracker: &mut Tracker, event: &KernelEvent) -> Dirty {
        let desired = desired();
        tracker.note(
            event,
            Scene {
                desired: &desired,
                vtep: Some(VTEP),
            },
        )
    }

    fn link(ifindex: u32, mtu: u32) -> KernelEvent {
        KernelEvent::Link(Link {
            ifindex,
            name: format!("link{ifindex}"),
            kind: LinkKind::Other,
            mac: Some(MacAddr::new([2, 0, 0, 0, 1, 0])),
            mtu,
            up: true,
            master: None,
        })
    }

    fn route(destination: &str, protocol: u8) -> Route {
        Route {
            destination: network(destination),
            gateway: None,
            ifindex: Some(UNDERLAY),
            onlink: false,
            kind: RouteType::Unicast,
            protocol,
            scope: RouteScope::Universe,
            metric: 0,
            tos: 0,
            table: 254,
        }
    }

    fn neighbour(ifindex: u32, mac: u8) -> KernelEvent {
        KernelEvent::Neighbour(Neighbour {
            ifindex,
            address: Ipv4Addr::new(10, 5, 1, 7),
            mac: Some(MacAddr::new([2, 0, 0, 0, 0, mac])),
            permanent: false,
        })
    }

    #[test]
    fn a_link_is_looked_at_once_and_again_when_it_changes() {
        let mut tracker = Tracker::default();
        let first = note(&mut tracker, &link(9, 1500));
        assert!(first.pods && first.flush && !first.tiers);
        assert_eq!(note(&mut tracker, &link(9, 1500)), Dirty::default());
        assert!(note(&mut tracker, &link(9, 1400)).flush);
    }

    #[test]
    fn the_device_that_goes_is_put_back_with_all_its_peers() {
        let mut tracker = Tracker::default();
        note(&mut tracker, &link(VTEP, 1450));
        let gone = KernelEvent::LinkRemoved {
            ifindex: VTEP,
            name: "flannel.1".to_owned(),
        };
        let dirty = note(&mut tracker, &gone);
        assert!(dirty.vtep && dirty.tiers && dirty.flush, "{dirty:?}");
    }

    #[test]
    fn an_address_of_the_underlay_puts_the_lease_in_question_others_do_not() {
        let mut tracker = Tracker::default();
        let address = |ifindex| {
            KernelEvent::Address(Address {
                ifindex,
                local: network("192.168.7.9/24"),
                remote: Ipv4Addr::new(192, 168, 7, 9),
            })
        };
        assert!(note(&mut tracker, &address(UNDERLAY)).underlay);
        assert!(!note(&mut tracker, &address(BRIDGE)).underlay);
    }

    #[test]
    fn routes_matter_where_pods_or_peers_are() {
        let mut tracker = Tracker::default();
        for destination in ["10.5.2.0/24", "10.5.1.0/24", "192.168.7.0/24", "0.0.0.0/0"] {
            let event = KernelEvent::Route(route(destination, 3));
            assert!(note(&mut tracker, &event).tiers, "{destination}");
        }
        let elsewhere = KernelEvent::Route(route("172.20.0.0/16", 3));
        assert!(!note(&mut tracker, &elsewhere).flush);
    }

    #[test]
    fn the_default_route_decides_on_the_underlay() {
        let mut tracker = Tracker::default();
        let gone = KernelEvent::RouteRemoved(route("0.0.0.0/0", 3));
        assert!(note(&mut tracker, &gone).underlay);
        let elsewhere = KernelEvent::Route(route("192.168.7.0/24", 3));
        assert!(!note(&mut tracker, &elsewhere).underlay);
    }

    #[test]
    fn a_forwarding_entry_that_leads_elsewhere_is_corrected() {
        let mut tracker = Tracker::default();
        let entry = |remote| {
            KernelEvent::Fdb(FdbEntry {
                ifindex: VTEP,
                mac: MacAddr::new([2, 0, 0, 0, 0, 2]),
                remote: Some(remote),
                permanent: true,
                overridden: false,
            })
        };
        let right = entry(Ipv4Addr::new(192, 168, 7, 2));
        assert!(!note(&mut tracker, &right).any());
        let wrong = entry(Ipv4Addr::new(192, 168, 7, 9));
        assert!(note(&mut tracker, &wrong).tiers);
    }

    #[test]
    fn own_routes_matter_only_when_they_go() {
        let mut tracker = Tracker::default();
        let own = route("10.5.2.0/24", ROUTE_PROTOCOL);
        assert!(!note(&mut tracker, &KernelEvent::Route(own)).any());
        assert!(note(&mut tracker, &KernelEvent::RouteRemoved(own)).tiers);
    }

    #[test]
    fn an_address_that_moves_to_another_mac_flushes() {
        let mut tracker = Tracker::default();
        assert!(!note(&mut tracker, &neighbour(BRIDGE, 1)).flush);
        assert!(!note(&mut tracker, &neighbour(BRIDGE, 1)).flush);
        assert!(note(&mut tracker, &neighbour(BRIDGE, 2)).flush);
    }

    #[test]
    fn lost_events_put_everything_in_question() {
        let mut tracker = Tracker::default();
        assert_eq!(note(&mut tracker, &KernelEvent::Resync), Dirty::ALL);
    }
}
