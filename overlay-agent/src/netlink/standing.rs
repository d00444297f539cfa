//! What a reconciliation has left behind, and what changes of peers change about it: work for those
//! peers alone, however many others there are. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    admit::{Admission, OnLink, PeerPath, Refusal, admit, alone},
    device::Marks,
    plan::{ObjectPlan, ObservedObjects, Wanted, diff, want},
    route_mtu::RouteMtu,
};
use crate::model::{Desired, Family, LocalNode, Peer, V4};

/// Peers as they were before they changed; `None` for those that were not there.
pub type Before<F> = BTreeMap<<F as Family>::Network, Option<Peer<F>>>;

/// What a reconciliation has left behind.
#[derive(Clone, Debug)]
pub struct Standing<F: Family = V4> {
    local: LocalNode<F>,
    pub wanted: Wanted<F>,
    /// How each programmed peer is reached.
    paths: BTreeMap<F::Network, PeerPath>,
    refused: BTreeMap<F::Network, Refusal<F>>,
    entangled: BTreeSet<F::Network>,
    pub(super) on_link: OnLink<F>,
    /// All routes, if one of them carries an MTU.
    pub(super) routes: Vec<RouteMtu<F>>,
}

impl<F: Family> Standing<F> {
    /// What is there once all of this is done.
    pub fn of(
        desired: &Desired<F>,
        on_link: OnLink<F>,
        routes: Vec<RouteMtu<F>>,
        vtep: Option<u32>,
        marks: Marks<F>,
    ) -> Self {
        let admission = admission(desired, &on_link);
        let wanted = want(&desired.local, &admission, vtep, marks);
        let accepted = admission.accepted.into_iter();
        let refused = admission.refused.into_iter();
        Self {
            local: desired.local.clone(),
            wanted,
            paths: accepted.map(|(subnet, (_, path))| (subnet, path)).collect(),
            refused: refused.map(|refusal| (refusal.subnet, refusal)).collect(),
            entangled: admission.entangled,
            on_link,
            routes,
        }
    }

    /// Number of programmed peers.
    pub fn peers(&self) -> usize {
        self.paths.len()
    }

    /// How a peer is reached, if it is programmed.
    pub fn path(&self, subnet: F::Network) -> Option<PeerPath> {
        self.paths.get(&subnet).copied()
    }

    /// The peers that are not programmed.
    pub fn refused(&self) -> impl Iterator<Item = Refusal<F>> {
        self.refused.values().copied()
    }

    /// Peers have changed from `before` to `desired`, and nothing else: what that changes in the kernel.
    /// `None` if peers may be concerned that did not change themselves; then this is as it was.
    pub fn change(
        &mut self,
        desired: &Desired<F>,
        before: &Before<F>,
        vtep: Option<u32>,
    ) -> Option<ObjectPlan<F>> {
        let is_same_node = self.local == desired.local && self.wanted.vtep == vtep;
        let is_entangled = |subnet| self.entangled.contains(subnet);
        if !is_same_node || !self.routes.is_empty() || before.keys().any(is_entangled) {
            return None;
        }
        let mut old = self.nothing();
        for (subnet, peer) in before {
            if let Some((peer, &path)) = peer.as_ref().zip(self.paths.get(subnet)) {
                old.add_peer(peer, path).then_some(())?;
            }
        }
        let (mut new, mut paths, mut refused) = (self.nothing(), Vec::new(), Vec::new());
        let changed = before.keys().filter_map(|subnet| desired.peers.get(subnet));
        for peer in changed.filter(|_| desired.local.forwarding.is_any()) {
            match alone(&desired.local, peer, &self.on_link) {
                Ok(path) => {
                    new.add_peer(peer, path).then_some(())?;
                    paths.push((peer.subnet, path));
                }
                Err(reason) => refused.push((peer.subnet, Refusal::of(peer, reason))),
            }
        }
        let is_claimed = |peer: &Peer<F>| {
            peer.via_device.is_some_and(|via| {
                let base = via
                    .neighbour
                    .is_some_and(|(base, _)| new.neighbours.contains_key(&base));
                base || via.fdb.is_some_and(|(mac, _)| new.fdb.contains_key(&mac))
            })
        };
        // Those of them that are refused have nothing there, but would.
        let mut entangled = self
            .entangled
            .iter()
            .filter_map(|subnet| desired.peers.get(subnet));
        if entangled.any(is_claimed) || self.is_taken(&old, &new) {
            return None;
        }
        let mut plan = diff(&new, &ObservedObjects::just(&old));
        for subnet in before.keys() {
            self.paths.remove(subnet);
            self.refused.remove(subnet);
        }
        self.paths.extend(paths);
        self.refused.extend(refused);
        self.forget(&old);
        plan.kept += self.wanted.objects() + usize::from(self.wanted.address.is_some());
        self.wanted.neighbours.extend(new.neighbours);
        self.wanted.fdb.extend(new.fdb);
        self.wanted.routes.extend(new.routes);
        Some(plan)
    }

    fn nothing(&self) -> Wanted<F> {
        Wanted {
            vtep: self.wanted.vtep,
            marks: self.wanted.marks,
            protocols: self.wanted.protocols,
            ..Wanted::default()
        }
    }

    /// Whether a part of `new` is there already and not part of `old`.
    fn is_taken(&self, old: &Wanted<F>, new: &Wanted<F>) -> bool {
        fn any<K: Ord, V>(
            standing: &BTreeMap<K, V>,
            old: &BTreeMap<K, V>,
            new: &BTreeMap<K, V>,
        ) -> bool {
            let mut fresh = new.keys().filter(|key| !old.contains_key(key));
            fresh.any(|key| standing.contains_key(key))
        }
        let wanted = &self.wanted;
        any(&wanted.neighbours, &old.neighbours, &new.neighbours)
            || any(&wanted.fdb, &old.fdb, &new.fdb)
            || any(&wanted.routes, &old.routes, &new.routes)
    }

    fn forget(&mut self, old: &Wanted<F>) {
        let wanted = &mut self.wanted;
        for address in old.neighbours.keys() {
            wanted.neighbours.remove(address);
        }
        for mac in old.fdb.keys() {
            wanted.fdb.remove(mac);
        }
        for destination in old.routes.keys() {
            wanted.routes.remove(destination);
        }
    }

    /// Forgets where addresses are that peers have no longer. Returns those that are not known yet.
    pub(super) fn unknown(
        &mut self,
        desired: &Desired<F>,
        before: &Before<F>,
    ) -> BTreeSet<F::Address> {
        let now = before.keys().filter_map(|subnet| desired.peers.get(subnet));
        let mut now: BTreeSet<_> = now.map(|peer| peer.public_ip).collect();
        for peer in before.values().flatten() {
            if !now.contains(&peer.public_ip) {
                self.on_link.remove(&peer.public_ip);
            }
        }
        now.retain(|address| !self.on_link.contains_key(address));
        now
    }
}

fn admission<F: Family>(desired: &Desired<F>, on_link: &OnLink<F>) -> Admission<F> {
    if !desired.local.forwarding.is_any() {
        return Admission::default();
    }
    admit(desired, on_link)
}

#[cfg(test)]
mod tests;
