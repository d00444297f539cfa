//! From kernel events to what has to be looked at again. Pure.
//!
//! The two questions per event: which part of the desired state may be violated, and could a flow
//! that the fast path carries be affected. The second is answered generously: a flush costs every
//! flow one packet on the kernel path, a missed one sends packets where they no longer belong. Where the
//! kernel path itself is damaged, it is mended first: what is fast needs none of it meanwhile.

use std::{collections::BTreeMap, net::IpAddr, ops::BitOrAssign};

use overlay_common::addr::MacAddr;
use rtnetlink::packet_route::route::RouteType;

use super::{
    devices::{Device, Devices},
    ends::Ends,
};
use crate::{
    backend,
    model::{Desired, DesiredNode, Family, PerFamily, V4, V6, each_family},
    netlink::{FdbEntry, IpEvent, KernelEvent, LinkDump, LinkTable, Neighbour, Route},
};

/// More events than this during a dump are not kept; another dump follows instead.
const JOURNAL: usize = 10_000;

/// What has to be looked at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set of independent marks")]
pub struct Dirty {
    /// Pod interfaces and gateways.
    pub pods: bool,
    /// What the leases of peers say, and the maps.
    pub peers: bool,
    /// Addresses, neighbours, forwarding entries and routes of the kernel tier.
    pub tiers: bool,
    /// The backend's devices.
    pub vtep: bool,
    /// The underlay interface or its address.
    pub underlay: bool,
    /// Flows have to earn their permits again.
    pub flush: bool,
    /// They have to once the kernel path is as it should be: until then they would lose packets there.
    pub flush_after: bool,
    /// The link table is no longer to be trusted.
    pub resync: bool,
}

impl Dirty {
    /// Everything, as at the start and after lost events.
    pub const ALL: Self = Self {
        pods: true,
        peers: true,
        tiers: true,
        vtep: true,
        underlay: true,
        flush: true,
        flush_after: false,
        resync: true,
    };

    /// What the maps say, and nothing that the kernel tier depends on.
    pub const MAPS: Self = Self {
        pods: false,
        peers: true,
        tiers: false,
        vtep: false,
        underlay: false,
        flush: false,
        flush_after: false,
        resync: false,
    };

    /// Nothing but flows.
    pub const FLUSH: Self = Self {
        pods: false,
        peers: false,
        tiers: false,
        vtep: false,
        underlay: false,
        flush: true,
        flush_after: false,
        resync: false,
    };

    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// Whether the kernel tier is taken to be as it was left, unseen.
    pub fn is_unseen(self) -> bool {
        self.peers && !self.tiers && !self.vtep
    }

    /// What a flush alone does not settle.
    pub fn without_flush(self) -> Self {
        Self {
            flush: false,
            ..self
        }
    }
}

impl BitOrAssign for Dirty {
    fn bitor_assign(&mut self, other: Self) {
        self.pods |= other.pods;
        self.peers |= other.peers;
        self.tiers |= other.tiers;
        self.vtep |= other.vtep;
        self.underlay |= other.underlay;
        self.flush |= other.flush;
        self.flush_after |= other.flush_after;
        self.resync |= other.resync;
    }
}

/// What means something to this node.
pub type Scene<'a> = PerFamily<Option<SideScene<'a, V4>>, Option<SideScene<'a, V6>>>;

/// What means something to one family of it.
#[derive(Clone, Copy, Debug)]
pub struct SideScene<'a, F: Family> {
    desired: &'a Desired<F>,
    ends: &'a Ends<F>,
    vtep: Option<u32>,
}

impl<'a> Scene<'a> {
    pub fn of(
        desired: &'a DesiredNode,
        ends: &'a PerFamily<Ends<V4>, Ends<V6>>,
        devices: &Devices,
    ) -> Self {
        let parts = desired.present().zip(ends.as_ref()).zip(devices.present());
        each_family!(parts, ((side, ends), device) => {
            side.map(|side| SideScene::of(side, ends, device))
        })
    }

    fn is_underlay(self, ifindex: u32) -> bool {
        let is_its =
            each_family!(self, side => side.is_some_and(|side| side.underlay() == ifindex));
        is_its.any()
    }

    fn is_vtep(self, ifindex: u32) -> bool {
        let is_its =
            each_family!(self, side => side.is_some_and(|side| side.vtep == Some(ifindex)));
        is_its.any()
    }

    /// Whether an event is about the backend's device itself: the one there is, or the one that takes
    /// its place.
    fn is_of_device(self, event: &KernelEvent, links: &LinkTable) -> bool {
        let ifindex = match event {
            KernelEvent::Link(link) => Some(link.ifindex),
            KernelEvent::LinkRemoved { ifindex, .. } => Some(*ifindex),
            KernelEvent::Ipv4(event) => interface_of(event),
            KernelEvent::Ipv6(event) => interface_of(event),
            _ => None,
        };
        ifindex.is_some_and(|ifindex| {
            let link = links.link(ifindex);
            self.is_vtep(ifindex) || link.and_then(backend::device_id).is_some()
        })
    }

    /// Whether a forwarding entry is the one of a peer.
    fn expects(self, entry: &FdbEntry) -> bool {
        each_family!(self, side => side.is_some_and(|side| side.expects(entry))).any()
    }
}

impl<'a, F: Family> SideScene<'a, F> {
    fn of(desired: &'a Desired<F>, ends: &'a Ends<F>, device: Option<&Device>) -> Self {
        Self {
            desired,
            ends,
            vtep: device.map(|device| device.ifindex),
        }
    }

    fn underlay(self) -> u32 {
        self.desired.local.underlay.ifindex
    }

    fn expects(self, entry: &FdbEntry) -> bool {
        let remote = entry.remote.and_then(F::address);
        self.vtep == Some(entry.ifindex)
            && remote.is_some_and(|remote| self.ends.has_tunnel(entry.mac, remote))
    }

    /// Whether a neighbour is the one of a peer.
    fn expects_neighbour(self, neighbour: &Neighbour<F>) -> bool {
        self.vtep == Some(neighbour.ifindex)
            && neighbour.permanent
            && neighbour.mac.is_some()
            && self.neighbour_at(neighbour.address) == neighbour.mac
    }

    /// The link-layer address of the peer that has this neighbour entry.
    fn neighbour_at(self, address: F::Address) -> Option<MacAddr> {
        let (_, peer) = self.desired.peers.range(..=F::host(address)).next_back()?;
        let (wanted, mac) = peer.via_device.as_ref()?.neighbour?;
        (wanted == address).then_some(mac)
    }

    /// Whether a route is one that this agent had for a peer, and has no use for any more.
    fn is_given_up(self, route: &Route<F>) -> bool {
        let local = self.desired.local.device.as_ref();
        let mut own = local.into_iter().flat_map(|device| &device.routes);
        route.is_ours()
            && route.kind == RouteType::Unicast
            && !self.desired.peers.contains_key(&route.destination)
            && !own.any(|own| own.destination == route.destination)
    }

    /// Whether a route to `destination` can decide where pods' packets or tunnel packets go.
    fn is_concerned_by(self, destination: F::Network) -> bool {
        F::overlap(destination, self.desired.local.network) || self.ends.any_in(destination)
    }
}

/// The interface that an address or a route is of.
fn interface_of<F: Family>(event: &IpEvent<F>) -> Option<u32> {
    match event {
        IpEvent::Address(address) | IpEvent::AddressRemoved(address) => Some(address.ifindex),
        IpEvent::Route(route) | IpEvent::RouteRemoved(route) => route.ifindex,
        IpEvent::Neighbour(_) | IpEvent::NeighbourRemoved(_) => None,
    }
}

/// What was seen so far of the host's links and neighbours.
#[derive(Debug, Default)]
pub struct Tracker {
    links: LinkTable,
    neighbours: BTreeMap<(u32, IpAddr), MacAddr>,
    /// Events since the dump under way began.
    journal: Option<Vec<KernelEvent>>,
}

impl Tracker {
    pub fn links(&self) -> &LinkTable {
        &self.links
    }

    /// A dump of links begins.
    pub fn begin_dump(&mut self) {
        self.journal = Some(Vec::new());
    }

    /// Takes over the dump, if it succeeded. What happened meanwhile is newer than parts of it, so it
    /// happens once more: the last word about each object is then the latest. Says what the dump puts
    /// in question.
    pub fn end_dump(&mut self, dump: Option<LinkDump>) -> Dirty {
        let journal = self.journal.take().unwrap_or_default();
        let Some(dump) = dump else {
            return Dirty::default();
        };
        self.links.replace(dump);
        for event in &journal {
            self.links.apply(event);
        }
        Dirty {
            pods: true,
            resync: journal.len() >= JOURNAL,
            ..Dirty::default()
        }
    }

    /// Takes over an event and says what it puts in question.
    pub fn note(&mut self, event: &KernelEvent, scene: Scene<'_>) -> Dirty {
        let changed = self.links.apply(event);
        if let Some(journal) = self
            .journal
            .as_mut()
            .filter(|journal| journal.len() < JOURNAL)
        {
            journal.push(event.clone());
        }
        let of_device = scene.is_of_device(event, &self.links);
        let mut dirty = Dirty {
            pods: changed,
            flush: changed && !of_device,
            flush_after: changed && of_device,
            ..Dirty::default()
        };
        match event {
            KernelEvent::Resync => return Dirty::ALL,
            KernelEvent::Link(link) => {
                if scene.is_vtep(link.ifindex) {
                    dirty.vtep = changed;
                    dirty.tiers = changed;
                }
                if scene.is_underlay(link.ifindex) {
                    dirty.underlay = changed;
                    dirty.tiers = changed;
                }
            }
            KernelEvent::LinkRemoved { ifindex, .. } => {
                self.neighbours.retain(|(at, _), _| at != ifindex);
                dirty.vtep = scene.is_vtep(*ifindex);
                dirty.underlay = scene.is_underlay(*ifindex);
                dirty.tiers = dirty.vtep || dirty.underlay;
            }
            KernelEvent::Ipv4(event) => match scene.ipv4 {
                Some(side) => dirty |= self.note_ip(event, side, of_device),
                None => return Dirty::default(),
            },
            KernelEvent::Ipv6(event) => match scene.ipv6 {
                Some(side) => dirty |= self.note_ip(event, side, of_device),
                None => return Dirty::default(),
            },
            KernelEvent::Fdb(entry) => {
                dirty.tiers = scene.is_vtep(entry.ifindex) && !scene.expects(entry);
            }
            KernelEvent::FdbRemoved(entry) => {
                dirty.tiers = scene.expects(entry);
                // A device that is deleted loses these first.
                dirty.vtep = dirty.tiers;
            }
            // It may send any packet another way, or nowhere, and decides which peers are on-link.
            KernelEvent::PolicyRule => {
                dirty.tiers = true;
                dirty.flush = true;
            }
            // It may end, or cipher, what flows send.
            KernelEvent::Ipsec => dirty.flush = true,
        }
        dirty
    }

    fn note_ip<F: Family>(
        &mut self,
        event: &IpEvent<F>,
        side: SideScene<'_, F>,
        of_device: bool,
    ) -> Dirty {
        let mut dirty = Dirty::default();
        match event {
            IpEvent::Address(address) | IpEvent::AddressRemoved(address) => {
                dirty.underlay = side.underlay() == address.ifindex;
                dirty.tiers = dirty.underlay || side.vtep == Some(address.ifindex);
            }
            IpEvent::Route(route) | IpEvent::RouteRemoved(route) => {
                // What this agent adds and gives up is its own doing; what it misses has to come back.
                let own = route.is_ours();
                let unexpected = match event {
                    IpEvent::RouteRemoved(_) => !side.is_given_up(route),
                    _ => !own,
                };
                dirty.tiers = unexpected && side.is_concerned_by(route.destination);
                dirty.flush_after = dirty.tiers && (own || of_device);
                dirty.flush = dirty.tiers && !dirty.flush_after;
                // The default route is what chooses the underlay, unless flags do.
                dirty.underlay = route.destination.into().prefix() == 0;
            }
            IpEvent::Neighbour(neighbour) => {
                let Some(mac) = neighbour.mac else {
                    return dirty;
                };
                let key = (neighbour.ifindex, neighbour.address.into());
                let before = self.neighbours.insert(key, mac);
                dirty.flush = before.is_some_and(|before| before != mac);
                dirty.tiers = side.vtep == Some(neighbour.ifindex)
                    && before != Some(mac)
                    && !side.expects_neighbour(neighbour);
            }
            IpEvent::NeighbourRemoved(neighbour) => {
                self.neighbours
                    .remove(&(neighbour.ifindex, neighbour.address.into()));
                dirty.tiers = side.vtep == Some(neighbour.ifindex)
                    && side.neighbour_at(neighbour.address).is_some();
            }
        }
        dirty
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnetwork::Ipv4Network;
    use rtnetlink::packet_route::route::RouteScope;

    use super::*;
    use crate::{
        backend::{Kind as _, Vxlan},
        model::{LocalNode, Underlay, VxlanEnd},
        netlink::{Address, Link, LinkKind, Neighbour, ROUTE_PROTOCOL, Route, VxlanLink},
    };

    const UNDERLAY: u32 = 2;
    const VTEP: u32 = 3;
    const BRIDGE: u32 = 4;

    fn network(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn desired() -> Desired {
        let peer = Vxlan::peer_at::<V4>(
            network("10.5.2.0/24"),
            Ipv4Addr::new(192, 168, 7, 2),
            VxlanEnd::new(MacAddr::new([2, 0, 0, 0, 0, 2])),
        );
        Desired {
            local: LocalNode {
                network: network("10.5.0.0/16"),
                subnet: network("10.5.1.0/24"),
                underlay: Underlay {
                    ifindex: UNDERLAY,
                    name: "eth0".to_owned(),
                    mtu: 1500,
                    hardware: true,
                    ethernet: true,
                    address: Ipv4Addr::new(192, 168, 7, 1),
                    public_ip: Ipv4Addr::new(192, 168, 7, 1),
                },
                forwarding: Vxlan::DEFAULT.forwarding::<V4>(),
                device: None,
                vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
                lease_data: None,
            },
            peers: [(peer.subnet, peer)].into(),
        }
    }

    fn note(tracker: &mut Tracker, event: &KernelEvent) -> Dirty {
        let desired = desired();
        let ends = Ends::of(desired.peers.values());
        let ipv4 = SideScene {
            desired: &desired,
            ends: &ends,
            vtep: Some(VTEP),
        };
        tracker.note(
            event,
            Scene {
                ipv4: Some(ipv4),
                ipv6: None,
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

    fn routed(route: Route) -> KernelEvent {
        KernelEvent::Ipv4(IpEvent::Route(route))
    }

    fn neighbour(ifindex: u32, mac: u8) -> KernelEvent {
        KernelEvent::Ipv4(IpEvent::Neighbour(Neighbour {
            ifindex,
            address: Ipv4Addr::new(10, 5, 1, 7),
            mac: Some(MacAddr::new([2, 0, 0, 0, 0, mac])),
            permanent: false,
        }))
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
        assert!(dirty.vtep && dirty.tiers, "{dirty:?}");
        assert!(dirty.flush_after && !dirty.flush, "{dirty:?}");
    }

    #[test]
    fn flows_outlast_a_device_that_goes_comes_or_has_another_name() {
        let mut tracker = Tracker::default();
        let device = |ifindex, name: &str| {
            KernelEvent::Link(Link {
                ifindex,
                name: name.to_owned(),
                kind: LinkKind::Vxlan(VxlanLink {
                    vni: 1,
                    ..VxlanLink::default()
                }),
                mac: Some(MacAddr::new([2, 0, 0, 0, 0, 1])),
                mtu: 1450,
                up: true,
                master: None,
            })
        };
        for (ifindex, name) in [(VTEP, "flannel.1"), (VTEP, "elsewhere"), (9, "flannel.1")] {
            let dirty = note(&mut tracker, &device(ifindex, name));
            assert!(dirty.flush_after && !dirty.flush, "{name}: {dirty:?}");
        }
        assert!(note(&mut tracker, &device(10, "vxlan1")).flush);
    }

    #[test]
    fn an_address_of_the_underlay_puts_the_lease_in_question_others_do_not() {
        let mut tracker = Tracker::default();
        let address = |ifindex| {
            KernelEvent::Ipv4(IpEvent::Address(Address {
                ifindex,
                local: network("192.168.7.9/24"),
                remote: Ipv4Addr::new(192, 168, 7, 9),
            }))
        };
        assert!(note(&mut tracker, &address(UNDERLAY)).underlay);
        assert!(!note(&mut tracker, &address(BRIDGE)).underlay);
    }

    #[test]
    fn routes_matter_where_pods_or_peers_are() {
        let mut tracker = Tracker::default();
        for destination in ["10.5.2.0/24", "10.5.1.0/24", "192.168.7.0/24", "0.0.0.0/0"] {
            let event = routed(route(destination, 3));
            assert!(note(&mut tracker, &event).tiers, "{destination}");
        }
        let elsewhere = routed(route("172.20.0.0/16", 3));
        assert!(!note(&mut tracker, &elsewhere).flush);
    }

    #[test]
    fn the_default_route_decides_on_the_underlay() {
        let mut tracker = Tracker::default();
        let gone = KernelEvent::Ipv4(IpEvent::RouteRemoved(route("0.0.0.0/0", 3)));
        assert!(note(&mut tracker, &gone).underlay);
        let elsewhere = routed(route("192.168.7.0/24", 3));
        assert!(!note(&mut tracker, &elsewhere).underlay);
    }

    #[test]
    fn a_forwarding_entry_that_leads_elsewhere_is_corrected() {
        let mut tracker = Tracker::default();
        let entry = |remote: Ipv4Addr| {
            KernelEvent::Fdb(FdbEntry {
                ifindex: VTEP,
                mac: MacAddr::new([2, 0, 0, 0, 0, 2]),
                remote: Some(remote.into()),
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
        assert!(!note(&mut tracker, &routed(own)).any());
        let dirty = note(&mut tracker, &KernelEvent::Ipv4(IpEvent::RouteRemoved(own)));
        assert!(
            dirty.tiers && dirty.flush_after && !dirty.flush,
            "{dirty:?}"
        );
    }

    #[test]
    fn what_a_peer_leaves_behind_that_is_gone_needs_no_look_and_what_is_missed_does() {
        let mut tracker = Tracker::default();
        let mut removed = |third: u8| {
            let address = Ipv4Addr::new(10, 5, third, 0);
            let mac = MacAddr::new([2, 0, 0, 0, 0, third]);
            let route = route(&format!("{address}/24"), ROUTE_PROTOCOL);
            let neighbour = Neighbour {
                ifindex: VTEP,
                address,
                mac: Some(mac),
                permanent: true,
            };
            let entry = FdbEntry {
                ifindex: VTEP,
                mac,
                remote: Some(Ipv4Addr::new(192, 168, 7, third).into()),
                permanent: true,
                overridden: false,
            };
            [
                KernelEvent::Ipv4(IpEvent::RouteRemoved(route)),
                KernelEvent::Ipv4(IpEvent::NeighbourRemoved(neighbour)),
                KernelEvent::FdbRemoved(entry),
            ]
            .map(|event| note(&mut tracker, &event))
        };
        assert_eq!(removed(3), [Dirty::default(); 3]);
        assert!(removed(2).into_iter().all(|dirty| dirty.tiers));
        let blackhole = Route {
            kind: RouteType::BlackHole,
            ..route("10.5.1.0/24", ROUTE_PROTOCOL)
        };
        let gone = KernelEvent::Ipv4(IpEvent::RouteRemoved(blackhole));
        assert!(note(&mut tracker, &gone).tiers);
    }

    #[test]
    fn an_address_that_moves_to_another_mac_flushes() {
        let mut tracker = Tracker::default();
        assert!(!note(&mut tracker, &neighbour(BRIDGE, 1)).flush);
        assert!(!note(&mut tracker, &neighbour(BRIDGE, 1)).flush);
        assert!(note(&mut tracker, &neighbour(BRIDGE, 2)).flush);
    }

    #[test]
    fn a_family_that_is_not_served_does_not_matter() {
        let mut tracker = Tracker::default();
        let address = Address::<V6> {
            ifindex: UNDERLAY,
            local: "fd00::9/64".parse().unwrap(),
            remote: "fd00::9".parse().unwrap(),
        };
        let event = KernelEvent::Ipv6(IpEvent::Address(address));
        assert_eq!(note(&mut tracker, &event), Dirty::default());
    }

    #[test]
    fn a_policy_routing_rule_concerns_every_flow_and_peer() {
        let mut tracker = Tracker::default();
        let dirty = Dirty {
            tiers: true,
            flush: true,
            ..Dirty::default()
        };
        assert_eq!(note(&mut tracker, &KernelEvent::PolicyRule), dirty);
    }

    #[test]
    fn ipsec_concerns_every_flow() {
        let mut tracker = Tracker::default();
        assert_eq!(note(&mut tracker, &KernelEvent::Ipsec), Dirty::FLUSH);
    }

    #[test]
    fn what_this_agent_sets_on_its_device_puts_nothing_in_question() {
        let peer = |last, permanent| {
            KernelEvent::Ipv4(IpEvent::Neighbour(Neighbour {
                ifindex: VTEP,
                address: Ipv4Addr::new(10, 5, 2, 0),
                mac: Some(MacAddr::new([2, 0, 0, 0, 0, last])),
                permanent,
            }))
        };
        let mut tracker = Tracker::default();
        assert_eq!(note(&mut tracker, &peer(2, true)), Dirty::default());
        assert!(note(&mut tracker, &peer(9, true)).tiers);
        assert!(note(&mut tracker, &peer(2, false)).tiers);
    }

    #[test]
    fn what_happens_during_a_dump_of_links_is_not_undone_by_it() {
        let mut tracker = Tracker::default();
        note(&mut tracker, &link(9, 1500));
        tracker.begin_dump();
        note(&mut tracker, &link(9, 1400));
        let mut old = LinkDump::default();
        let KernelEvent::Link(before) = link(9, 1500) else {
            panic!("not a link");
        };
        old.links.push(before);
        let dirty = tracker.end_dump(Some(old));
        assert!(dirty.pods && !dirty.resync);
        assert_eq!(tracker.links().link(9).map(|link| link.mtu), Some(1400));
    }

    #[test]
    fn lost_events_put_everything_in_question() {
        let mut tracker = Tracker::default();
        assert_eq!(note(&mut tracker, &KernelEvent::Resync), Dirty::ALL);
    }
}
