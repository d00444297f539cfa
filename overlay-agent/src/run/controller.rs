//! What this node should be like, and what of the host's network is known: the main loop's knowledge,
//! from which it says what has to be looked at again. Nothing here waits.

use std::collections::BTreeMap;

use super::{
    changes::{Dirty, Scene, Tracker},
    devices::Devices,
    sides::Sides,
};
use crate::{
    backend,
    model::{Desired, DesiredNode, Family, PeerLease, each_family},
    netlink::{KernelEvent, LinkDump, PodLink, pod_links},
};

/// The desired state and the view of the host.
pub struct Controller {
    tracker: Tracker,
    scene: backend::Scene,
    devices: Devices,
}

/// What of one family another desired state puts in question.
#[derive(Clone, Copy, Debug)]
struct DesiredChange {
    any: bool,
    /// It is about this node, not its peers.
    local: bool,
}

impl DesiredChange {
    fn between<F: Family>(before: Option<&Desired<F>>, after: Option<&Desired<F>>) -> Self {
        let local = |side: Option<&Desired<F>>| side.map(|side| side.local.clone());
        Self {
            any: before != after,
            local: local(before) != local(after),
        }
    }
}

impl Controller {
    pub fn new(sides: &Sides) -> Self {
        Self {
            tracker: Tracker::default(),
            scene: backend::Scene {
                node: sides.desired(),
                leases: Vec::new(),
            },
            devices: sides.devices(),
        }
    }

    pub fn desired(&self) -> &DesiredNode {
        &self.scene.node
    }

    /// What a job is about.
    pub fn scene(&self) -> backend::Scene {
        self.scene.clone()
    }

    /// Takes over an event of the kernel and says what it puts in question.
    pub fn note(&mut self, event: &KernelEvent) -> Dirty {
        let scene = Scene::of(&self.scene.node, &self.devices);
        self.tracker.note(event, scene)
    }

    /// Takes over a new desired state of the same families and says what it puts in question.
    pub fn want(&mut self, desired: DesiredNode) -> Dirty {
        let pairs = self.scene.node.present().zip(desired.present());
        let changes = each_family!(pairs, (before, after) => DesiredChange::between(before, after));
        self.scene.node = desired;
        let local = changes.into_iter().any(|change| change.local);
        Dirty {
            peers: changes.into_iter().any(|change| change.any),
            tiers: local,
            vtep: local,
            pods: local,
            ..Dirty::default()
        }
    }

    /// Takes over the leases of the backend's nodes, where something runs that has to know them.
    pub fn want_leases(&mut self, leases: Vec<PeerLease>) -> Dirty {
        let changed = leases != self.scene.leases;
        self.scene.leases = leases;
        Dirty {
            peers: changed,
            ..Dirty::default()
        }
    }

    /// The devices are these now.
    pub fn take_devices(&mut self, devices: Devices) {
        each_family!(self.scene.node.as_mut().zip(devices.present()), (side, device) => {
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
        let locals = each_family!(self.scene.node.present(), side => side.map(|side| &side.local));
        pod_links(self.tracker.links(), locals)
    }
}
