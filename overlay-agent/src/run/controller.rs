//! Keeps both tiers as the leases say, against whatever happens to the host's network.

use std::time::Instant;

use tracing::{debug, warn};

use super::{
    changes::{Dirty, Scene, Tracker},
    side::Side,
    tier1::Tier1,
};
use crate::{
    datapath::Serves,
    health::{Condition, Readiness},
    model::{DesiredNode, V6},
    netlink::{KernelEvent, Netlink, pod_links},
};

/// The state both tiers are kept in, and what is needed to keep them.
pub struct Controller {
    netlink: Netlink,
    tracker: Tracker,
    tier1: Tier1,
    sides: Sides,
    readiness: Readiness,
}

/// The families this node serves.
pub struct Sides {
    pub ipv4: Option<Side>,
    pub ipv6: Option<Side<V6>>,
}

impl Sides {
    pub fn serves(&self) -> Serves {
        Serves {
            ipv4: self.ipv4.is_some(),
            ipv6: self.ipv6.is_some(),
        }
    }

    pub fn desired(&self) -> DesiredNode {
        DesiredNode {
            ipv4: self.ipv4.as_ref().map(|side| side.desired.clone()),
            ipv6: self.ipv6.as_ref().map(|side| side.desired.clone()),
        }
    }
}

impl Controller {
    pub fn new(netlink: Netlink, tier1: Tier1, sides: Sides, readiness: Readiness) -> Self {
        Self {
            netlink,
            tracker: Tracker::default(),
            tier1,
            sides,
            readiness,
        }
    }

    pub fn desired(&self) -> DesiredNode {
        self.sides.desired()
    }

    pub const fn sides(&self) -> &Sides {
        &self.sides
    }

    /// Takes over an event of the kernel and says what it puts in question.
    pub fn note(&mut self, event: &KernelEvent) -> Dirty {
        self.tracker.note(event, Scene::of(&self.sides))
    }

    /// Takes over a new desired state of the same families; [`Self::settle`] brings it about.
    pub fn want(&mut self, desired: DesiredNode) -> Dirty {
        let ipv4 = self.sides.ipv4.as_mut().zip(desired.ipv4);
        let ipv6 = self.sides.ipv6.as_mut().zip(desired.ipv6);
        let changes = [
            ipv4.map(|(side, desired)| side.want(desired)),
            ipv6.map(|(side, desired)| side.want(desired)),
        ];
        let local = changes.iter().flatten().any(|change| change.local);
        Dirty {
            tiers: changes.iter().flatten().any(|change| change.any),
            vtep: local,
            pods: local,
            ..Dirty::default()
        }
    }

    /// Looks again at what is dirty and mends it. What fails stays reported as not ready; the
    /// returned marks say what has to be tried again.
    pub async fn settle(&mut self, dirty: Dirty) -> Dirty {
        let started = Instant::now();
        let mut again = Dirty::default();
        if dirty.flush {
            // First of all: the longer it waits, the longer a flow may go where it must not.
            self.flush();
        }
        if dirty.resync {
            self.tier1.distrust();
            if let Err(error) = self.netlink.refresh(self.tracker.links_mut()).await {
                warn!(%error, "cannot read the host's interfaces");
                again.resync = true;
            }
        }
        if dirty.vtep && !self.restore_vteps().await {
            again.vtep = true;
            again.tiers = true;
        }
        if dirty.tiers || dirty.vtep {
            again.tiers |= !self.reconcile().await;
        }
        if dirty.pods || dirty.vtep || dirty.underlay {
            again.pods |= !self.attach();
        }
        debug!(?dirty, ?again, elapsed = ?started.elapsed(), "settled");
        again
    }

    pub fn flush(&mut self) {
        if let Err(error) = self.tier1.flush() {
            warn!(%error, "cannot flush the flow table");
        }
    }

    async fn restore_vteps(&mut self) -> bool {
        let mut problems = Vec::new();
        if let Some(side) = &mut self.sides.ipv4 {
            problems.extend(side.restore_vtep(&self.netlink).await.err());
        }
        if let Some(side) = &mut self.sides.ipv6 {
            problems.extend(side.restore_vtep(&self.netlink).await.err());
        }
        self.is_in_sync(problems.first())
    }

    async fn reconcile(&mut self) -> bool {
        let mut problems = Vec::new();
        if let Some(side) = &mut self.sides.ipv4 {
            problems.extend(side.reconcile(&self.netlink).await.err());
            if let Err(error) = self.tier1.apply(side) {
                warn!(%error, "cannot write the maps");
                problems.push(error.to_string());
            }
        }
        if let Some(side) = &mut self.sides.ipv6 {
            problems.extend(side.reconcile(&self.netlink).await.err());
            if let Err(error) = self.tier1.apply6(side) {
                warn!(%error, "cannot write the maps");
                problems.push(error.to_string());
            }
        }
        let in_sync = self.is_in_sync(problems.first());
        if in_sync {
            self.readiness.satisfy(Condition::PeersInSync);
        }
        in_sync
    }

    /// Reports a problem, if there is one. Returns whether there is none.
    fn is_in_sync(&self, problem: Option<&String>) -> bool {
        if let Some(problem) = problem {
            self.readiness.fail(Condition::PeersInSync, problem.clone());
        }
        problem.is_none()
    }

    fn attach(&mut self) -> bool {
        let pods = pod_links(
            self.tracker.links(),
            self.sides.ipv4.as_ref().map(|side| &side.desired.local),
            self.sides.ipv6.as_ref().map(|side| &side.desired.local),
        );
        let attached = self.tier1.attach(&self.sides, &pods);
        let problem = match attached {
            Ok(true) => {
                self.readiness.satisfy(Condition::DatapathAttached);
                return true;
            }
            Ok(false) => "some programs are not attached; see the log".to_owned(),
            Err(error) => {
                warn!(%error, "cannot attach the programs");
                error.to_string()
            }
        };
        self.readiness.fail(Condition::DatapathAttached, problem);
        false
    }
}
