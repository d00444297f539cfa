//! Keeps both tiers as the leases say, against whatever happens to the host's network.

use std::{collections::BTreeMap, time::Instant};

use tracing::{debug, info, warn};

use super::{
    changes::{Dirty, Scene, Tracker},
    tier1::Tier1,
};
use crate::{
    health::{Condition, Readiness},
    model::{Backend, Desired},
    netlink::{KernelEvent, Netlink, NetlinkError, Summary, Vtep, VtepSpec, pod_links},
};

/// The state both tiers are kept in, and what is needed to keep them.
pub struct Controller {
    netlink: Netlink,
    tracker: Tracker,
    tier1: Tier1,
    desired: Desired,
    vtep: Option<Vtep>,
    blackhole: Blackhole,
    readiness: Readiness,
    complaints: Complaints,
}

/// The blackhole route of this node's subnet (`--ip-blackhole-route`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blackhole {
    Kept,
    /// Not asked for; an earlier run may have left one.
    Unwanted,
    Absent,
}

/// What was last complained about, so that each problem is logged once.
#[derive(Default)]
struct Complaints {
    kernel: Vec<String>,
}

impl Controller {
    pub fn new(
        netlink: Netlink,
        tier1: Tier1,
        desired: Desired,
        vtep: Option<Vtep>,
        blackhole: bool,
        readiness: Readiness,
    ) -> Self {
        Self {
            netlink,
            tracker: Tracker::default(),
            tier1,
            desired,
            vtep,
            blackhole: if blackhole {
                Blackhole::Kept
            } else {
                Blackhole::Unwanted
            },
            readiness,
            complaints: Complaints::default(),
        }
    }

    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Takes over an event of the kernel and says what it puts in question.
    pub fn note(&mut self, event: &KernelEvent) -> Dirty {
        let scene = Scene {
            desired: &self.desired,
            vtep: self.vtep.as_ref().map(|vtep| vtep.ifindex),
        };
        self.tracker.note(event, scene)
    }

    /// Takes over a new desired state; [`Self::settle`] brings it about.
    pub fn want(&mut self, desired: Desired) -> Dirty {
        if desired == self.desired {
            return Dirty::default();
        }
        let local = desired.local != self.desired.local;
        self.desired = desired;
        Dirty {
            tiers: true,
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
        if dirty.vtep && !self.restore_vtep().await {
            again.vtep = true;
            again.tiers = true;
        }
        if dirty.tiers || dirty.vtep {
            again.tiers |= !self.reconcile().await;
        }
        if dirty.pods || dirty.vtep || dirty.underlay || self.tier1.is_attach_due() {
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

    async fn restore_vtep(&mut self) -> bool {
        let Backend::Vxlan(backend) = &self.desired.local.backend else {
            return true;
        };
        let spec = VtepSpec::new(backend, &self.desired.local.underlay);
        match self
            .netlink
            .restore_vtep(&spec, self.desired.local.vtep_mac)
            .await
        {
            Ok(vtep) => {
                if self.vtep.as_ref() != Some(&vtep) {
                    info!(device = %vtep.name, ifindex = vtep.ifindex, "VTEP restored");
                }
                self.vtep = Some(vtep);
                true
            }
            Err(error) => {
                self.vtep = None;
                self.not_in_sync(&error);
                false
            }
        }
    }

    async fn reconcile(&mut self) -> bool {
        let reconciled = self
            .netlink
            .reconcile(&self.desired, self.vtep.as_ref())
            .await;
        let blackholed = self.reconcile_blackhole().await;
        let kernel = match (reconciled, blackholed) {
            (Ok(summary), Ok(())) => self.report(&summary),
            (Err(error), _) | (_, Err(error)) => {
                self.not_in_sync(&error);
                false
            }
        };
        let maps = match self.tier1.apply(&self.desired, self.vtep.as_ref()) {
            Ok(()) => true,
            Err(error) => {
                warn!(%error, "cannot write the maps");
                self.readiness
                    .fail(Condition::PeersInSync, error.to_string());
                false
            }
        };
        if kernel && maps {
            self.readiness.satisfy(Condition::PeersInSync);
        }
        kernel && maps
    }

    async fn reconcile_blackhole(&mut self) -> Result<(), NetlinkError> {
        let wanted = match self.blackhole {
            Blackhole::Absent => return Ok(()),
            Blackhole::Kept => Some(self.desired.local.subnet),
            Blackhole::Unwanted => None,
        };
        self.netlink.set_blackhole(wanted).await?;
        if wanted.is_none() {
            self.blackhole = Blackhole::Absent;
        }
        Ok(())
    }

    fn attach(&mut self) -> bool {
        let pods = match self.desired.local.backend {
            Backend::Alloc => BTreeMap::new(),
            Backend::Vxlan(_) | Backend::HostGw => {
                pod_links(self.tracker.links(), &self.desired.local)
            }
        };
        let problem = match self.tier1.attach(&self.desired, self.vtep.as_ref(), &pods) {
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

    fn report(&mut self, summary: &Summary) -> bool {
        if summary.added + summary.removed > 0 {
            info!(
                added = summary.added,
                removed = summary.removed,
                kept = summary.kept,
                peers = summary.paths.len(),
                "kernel tier reconciled"
            );
        }
        let mut complaints: Vec<String> = Vec::new();
        complaints.extend(summary.failed.iter().map(ToString::to_string));
        complaints.extend(summary.refused.iter().map(ToString::to_string));
        for complaint in &complaints {
            if !self.complaints.kernel.contains(complaint) {
                warn!("{complaint}");
            }
        }
        self.complaints.kernel = complaints;
        if let Some(failure) = summary.failed.first() {
            let reason = format!("{failure} (and {} more)", summary.failed.len() - 1);
            self.readiness.fail(Condition::PeersInSync, reason);
            return false;
        }
        true
    }

    fn not_in_sync(&mut self, error: &NetlinkError) {
        let complaint = error.to_string();
        if !self.complaints.kernel.contains(&complaint) {
            warn!("{complaint}");
        }
        self.complaints.kernel = vec![complaint.clone()];
        self.readiness.fail(Condition::PeersInSync, complaint);
    }
}
