//! What this node should be like, and what of the host's network is known: the main loop's knowledge,
//! from which it says what has to be looked at again. Nothing here waits.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    changes::{Dirty, Scene, Tracker},
    devices::Devices,
    ends::Ends,
    side::{Order, PeerChanges},
    sides::Orders,
};
use crate::{
    backend::{self, Backend},
    model::{
        Desired, DesiredNode, Family, LeaseKey, LeaseView, OwnState, PeerLease, PerFamily, V4, V6,
        each_family,
    },
    netlink::{KernelEvent, LinkDump, PodLink, pod_links},
};

/// The desired state and the view of the host.
pub struct Controller {
    tracker: Tracker,
    desired: DesiredNode,
    ends: PerFamily<Ends<V4>, Ends<V6>>,
    /// Peers that changed since orders were given.
    changed: PerFamily<BTreeSet<Network<V4>>, BTreeSet<Network<V6>>>,
    /// Up to where the leases were followed; `None` if that is not known.
    followed: Option<u64>,
    /// Of the backend's nodes, where something runs that has to know them.
    leases: Vec<PeerLease>,
    /// See [`backend::Scene::holds_lease`].
    holds_lease: bool,
    devices: Devices,
}

type Network<F> = <F as Family>::Network;

impl Controller {
    /// A node that is like this, `followed` being the position in the table of leases that its peers are
    /// from.
    pub fn new(desired: DesiredNode, followed: u64, devices: Devices) -> Self {
        let ends = each_family!(desired.present(), side => {
            side.map_or_else(Ends::default, |side| Ends::of(side.peers.values()))
        });
        Self {
            tracker: Tracker::default(),
            desired,
            ends,
            changed: PerFamily::default(),
            followed: Some(followed),
            leases: Vec::new(),
            holds_lease: true,
            devices,
        }
    }

    pub fn desired(&self) -> &DesiredNode {
        &self.desired
    }

    /// Takes over an event of the kernel and says what it puts in question.
    pub fn note(&mut self, event: &KernelEvent) -> Dirty {
        let scene = Scene::of(&self.desired, &self.ends, &self.devices);
        self.tracker.note(event, scene)
    }

    /// Takes over what changed about the leases and says what it puts in question.
    pub fn follow_leases(&mut self, view: &LeaseView, backend: &Backend) -> Dirty {
        let news = self
            .followed
            .and_then(|seen| view.peers.changed_since(seen));
        self.followed = Some(view.peers.position());
        let parts = self
            .desired
            .as_mut()
            .zip(self.ends.as_mut())
            .zip(self.changed.as_mut());
        let changed = each_family!(parts, ((side, ends), changed) => side.as_mut().is_some_and(|side| {
            let followed = match &news {
                Some(keys) => some_peers(side, keys, view, backend),
                None => all_peers(side, view, backend),
            };
            let any = !followed.is_empty();
            for (subnet, peer) in followed {
                if let Some(peer) = &peer {
                    ends.add(peer);
                }
                let before = match peer {
                    Some(peer) => side.peers.insert(subnet, peer),
                    None => side.peers.remove(&subnet),
                };
                if let Some(before) = before {
                    ends.remove(&before);
                }
                changed.insert(subnet);
            }
            any
        }));
        Dirty {
            peers: changed.any(),
            ..Dirty::default()
        }
    }

    /// Takes over what another desired state of the same families says of this node, and says what it puts
    /// in question.
    pub fn want(&mut self, desired: DesiredNode) -> Dirty {
        let pairs = self.desired.as_mut().zip(desired);
        let changed = each_family!(pairs, (before, after) => {
            before.as_mut().zip(after).is_some_and(|(before, after)| {
                let changed = before.local != after.local;
                before.local = after.local;
                changed
            })
        });
        let local = changed.any();
        Dirty {
            peers: local,
            tiers: local,
            vtep: local,
            pods: local,
            ..Dirty::default()
        }
    }

    /// Every lease is looked at anew with the next change of one.
    pub fn distrust_peers(&mut self) {
        self.followed = None;
    }

    /// How many peers may differ from what was ordered before.
    pub fn changed(&self) -> usize {
        let changed = self.changed.as_ref();
        each_family!(changed, subnets => subnets.len())
            .into_iter()
            .sum()
    }

    /// What is desired now, in so far as it may differ from what was ordered before.
    pub fn order(&mut self) -> Orders {
        let parts = self.desired.present().zip(self.changed.as_mut());
        each_family!(parts, (side, changed) => side.map(|side| {
            let changed = std::mem::take(changed).into_iter();
            Order {
                local: side.local.clone(),
                peers: changed
                    .map(|subnet| (subnet, side.peers.get(&subnet).cloned()))
                    .collect(),
            }
        }))
    }

    /// Takes over what there is to know about leases where something runs of the backend.
    pub fn want_leases(&mut self, view: &LeaseView, backend: &Backend) -> Dirty {
        let leases = view.of_backend(backend);
        let holds_lease = matches!(view.own.state, OwnState::Held | OwnState::Lost);
        let changed = leases != self.leases || holds_lease != self.holds_lease;
        self.leases = leases;
        self.holds_lease = holds_lease;
        Dirty {
            peers: changed,
            ..Dirty::default()
        }
    }

    /// What there is for what runs of the backend.
    pub fn scene(&self) -> backend::Scene {
        backend::Scene {
            node: self.desired.clone(),
            holds_lease: self.holds_lease,
            leases: self.leases.clone(),
        }
    }

    /// The devices are these now.
    pub fn take_devices(&mut self, devices: Devices) {
        each_family!(self.desired.as_mut().zip(devices.present()), (side, device) => {
            if let Some((side, device)) = side.as_mut().zip(device) {
                side.local.lease_data.clone_from(&device.lease_data);
            }
        });
        self.devices = devices;
    }

    /// A dump of links begins; events from here on are newer than parts of it.
    pub fn begin_dump(&mut self) {
        self.tracker.begin_dump();
    }

    /// The dump that began last is done; without one, events alone have to do.
    pub fn end_dump(&mut self, dump: Option<LinkDump>) -> Dirty {
        self.tracker.end_dump(dump)
    }

    /// The interfaces of pods.
    pub fn pods(&self) -> BTreeMap<u32, PodLink> {
        let locals = each_family!(self.desired.present(), side => side.map(|side| &side.local));
        pod_links(self.tracker.links(), locals)
    }
}

/// What differs about those peers whose leases have these keys.
fn some_peers<F: Family>(
    side: &Desired<F>,
    keys: &BTreeSet<LeaseKey>,
    view: &LeaseView,
    backend: &Backend,
) -> PeerChanges<F> {
    let subnets = keys.iter().filter_map(LeaseKey::subnet_of::<F>);
    let peers = subnets.map(|subnet| (subnet, view.usable_peer(subnet, backend)));
    peers
        .filter(|(subnet, peer)| side.peers.get(subnet) != peer.as_ref())
        .collect()
}

/// What differs about all peers.
fn all_peers<F: Family>(side: &Desired<F>, view: &LeaseView, backend: &Backend) -> PeerChanges<F> {
    let peers = view.usable_peers::<F>(backend);
    let gone = side
        .peers
        .keys()
        .filter(|subnet| !peers.contains_key(subnet));
    let mut changes: PeerChanges<F> = gone.map(|subnet| (*subnet, None)).collect();
    let there = peers.into_iter().map(|(subnet, peer)| (subnet, Some(peer)));
    changes.extend(there.filter(|(subnet, peer)| side.peers.get(subnet) != peer.as_ref()));
    changes
}
