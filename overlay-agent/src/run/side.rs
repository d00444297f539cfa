//! One address family of the running node: what is desired of its kernel tier, and keeping it so.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::{
    backend::{self, Backend},
    complaints::Complaints,
    model::{Desired, Family, LocalNode, Peer, V4},
    netlink::{Netlink, NetlinkError, Standing, Summary, Tally, Vtep},
};

/// Peers that changed; `None` for those that are gone.
pub type PeerChanges<F> = BTreeMap<<F as Family>::Network, Option<Peer<F>>>;

/// What is desired of a family.
#[derive(Clone, Debug)]
pub struct Order<F: Family> {
    pub local: LocalNode<F>,
    /// As they are to be; all others stay as they are.
    pub peers: PeerChanges<F>,
}

/// A family's desired state and its device.
pub struct Side<F: Family = V4> {
    pub desired: Desired<F>,
    /// What peers were like that changed since both tiers were last brought to the desired state.
    pub before: PeerChanges<F>,
    pub vtep: Option<Vtep>,
    /// The device there was, while there is none.
    lost: Option<Vtep>,
    /// MTUs of the kernel's routes to peers, where they carry one.
    pub route_mtus: BTreeMap<F::Address, u32>,
    blackhole: Blackhole,
    /// What the kernel tier was left like, if nothing failed.
    standing: Option<Standing<F>>,
    /// Objects of the kernel that the last reconciliation added and removed.
    pub changed: Tally,
    /// What was last complained about, so that each problem is logged once.
    complaints: Complaints,
}

/// How much of both tiers is looked at.
#[derive(Clone, Copy)]
pub enum Look {
    Whole,
    /// What changed about peers is changed, the rest taken to be as it was left.
    Peers,
}

impl Look {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Peers => "peers",
        }
    }

    /// Looks at a side of the kernel tier. Returns whether something had to be put right.
    pub async fn at<F: Family>(
        self,
        side: &mut Side<F>,
        netlink: &Netlink,
        backend: &Backend,
    ) -> Result<bool, String> {
        side.changed = Tally::default();
        match self {
            Self::Whole => side.reconcile(netlink, backend).await,
            Self::Peers => side.follow(netlink, backend).await,
        }
    }
}

/// The blackhole route of this node's subnet (`--ip-blackhole-route`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blackhole {
    Kept,
    /// Not asked for; an earlier run may have left one.
    Unwanted,
    Absent,
}

impl<F: Family> Side<F> {
    pub fn new(desired: Desired<F>, vtep: Option<Vtep>, blackhole: bool) -> Self {
        Self {
            desired,
            before: PeerChanges::<F>::new(),
            vtep,
            lost: None,
            route_mtus: BTreeMap::new(),
            blackhole: if blackhole {
                Blackhole::Kept
            } else {
                Blackhole::Unwanted
            },
            standing: None,
            changed: Tally::default(),
            complaints: Complaints::default(),
        }
    }

    /// Takes over what is desired from here on.
    pub fn want(&mut self, order: Order<F>) {
        let Order { local, peers } = order;
        self.desired.local = local;
        for (subnet, peer) in peers {
            let before = match peer {
                Some(peer) => self.desired.peers.insert(subnet, peer),
                None => self.desired.peers.remove(&subnet),
            };
            self.before.entry(subnet).or_insert(before);
        }
    }

    /// The device, or the one there was: what is fast goes on with it until there is another.
    pub fn last_vtep(&self) -> Option<&Vtep> {
        self.vtep.as_ref().or(self.lost.as_ref())
    }

    /// Has the device exist as peers know it. The error is the reason why it does not.
    pub async fn restore_device(
        &mut self,
        netlink: &Netlink,
        backend: &Backend,
    ) -> Result<(), String> {
        let local = &mut self.desired.local;
        let known = local.lease_data.as_deref();
        let restored = backend.restore_device(netlink, &local.underlay, known);
        match restored.await {
            Ok(None) => Ok(()),
            Ok(Some(vtep)) => {
                if self.vtep.as_ref() != Some(&vtep) {
                    info!(device = %vtep.name, ifindex = vtep.ifindex, "VTEP restored");
                }
                if let Some(said) = backend.lease_data::<F>(Some(&vtep)) {
                    local.lease_data = Some(said);
                }
                self.vtep = Some(vtep);
                Ok(())
            }
            Err(error) => {
                self.lost = self.vtep.take().or(self.lost.take());
                Err(self.not_in_sync(&error))
            }
        }
    }

    /// Has the kernel tier be as desired. Returns whether routes were not; the error is the reason why it
    /// is not.
    pub async fn reconcile(
        &mut self,
        netlink: &Netlink,
        backend: &Backend,
    ) -> Result<bool, String> {
        self.standing = None;
        let reconciled =
            netlink.reconcile(&self.desired, self.vtep.as_ref(), backend::marks(backend));
        let reconciled = reconciled.await;
        let blackholed = self.reconcile_blackhole(netlink).await;
        match (reconciled, blackholed) {
            (Ok(summary), Ok(())) => self.take(summary),
            (Err(error), _) | (_, Err(error)) => Err(self.not_in_sync(&error)),
        }
    }

    /// As [`Self::reconcile`], after a change of peers and nothing else: what is new of them is no
    /// damage.
    pub async fn follow(&mut self, netlink: &Netlink, backend: &Backend) -> Result<bool, String> {
        let Some(standing) = self.standing.take() else {
            return self.reconcile(netlink, backend).await;
        };
        let followed = netlink.follow(&self.desired, self.vtep.as_ref(), &self.before, standing);
        match followed.await {
            Ok(summary) => self.take(summary).map(|_| false),
            Err(error) => Err(self.not_in_sync(&error)),
        }
    }

    fn take(&mut self, mut summary: Summary<F>) -> Result<bool, String> {
        self.route_mtus = std::mem::take(&mut summary.route_mtus);
        self.standing = summary.standing.take();
        self.changed = std::mem::take(&mut summary.changed);
        self.report(&summary)?;
        Ok(summary.rerouted)
    }

    async fn reconcile_blackhole(&mut self, netlink: &Netlink) -> Result<(), NetlinkError> {
        let wanted = match self.blackhole {
            Blackhole::Absent => return Ok(()),
            Blackhole::Kept => Some(self.desired.local.subnet),
            Blackhole::Unwanted => None,
        };
        netlink.set_blackhole::<F>(wanted).await?;
        if wanted.is_none() {
            self.blackhole = Blackhole::Absent;
        }
        Ok(())
    }

    fn report(&mut self, summary: &Summary<F>) -> Result<(), String> {
        if !self.changed.is_empty() {
            info!(
                family = F::NAME,
                added = self.changed.added(),
                removed = self.changed.removed(),
                kept = summary.kept,
                peers = summary.peers,
                "kernel tier reconciled"
            );
        }
        let mut complaints: Vec<String> = Vec::new();
        complaints.extend(summary.failed.iter().map(ToString::to_string));
        complaints.extend(summary.refused.iter().map(ToString::to_string));
        for complaint in self.complaints.news(&complaints) {
            warn!("{complaint}");
        }
        match summary.failed.first() {
            Some(failure) => Err(format!("{failure} (and {} more)", summary.failed.len() - 1)),
            None => Ok(()),
        }
    }

    fn not_in_sync(&mut self, error: &NetlinkError) -> String {
        let complaint = error.to_string();
        for complaint in self.complaints.news([&complaint]) {
            warn!("{complaint}");
        }
        complaint
    }
}
