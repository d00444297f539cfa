//! Brings both tiers to the desired state, in a task of its own: the main loop goes on meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{task::block_in_place, time::timeout};
use tracing::{debug, warn};

use super::{changes::Dirty, devices::Devices, side::Side, sides::Sides, tier1::Tier1};
use crate::{
    backend::Backend,
    conntrack::Shortest,
    health::{Condition, Readiness},
    model::{DesiredNode, Family, each_family},
    netlink::{Netlink, PodLink},
};

/// A whole job is cut off after this long, and tried again. A single request to the kernel may take
/// [`netlink::TIMEOUT`](crate::netlink::TIMEOUT).
pub const BOUND: Duration = Duration::from_mins(1);

/// Both tiers, and what was last known of them.
pub struct Settler {
    netlink: Netlink,
    tier1: Tier1,
    sides: Sides,
    readiness: Readiness,
    /// The programs are where they belong.
    attached: bool,
}

/// What is to be looked at, and what is wanted of it.
#[derive(Clone, Debug)]
pub struct Job {
    pub dirty: Dirty,
    pub backend: Backend,
    pub desired: DesiredNode,
    pub pods: BTreeMap<u32, PodLink>,
    pub timeouts: Shortest,
}

/// What came of a job.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What has to be tried again.
    pub again: Dirty,
    /// The kernel path was damaged and is mended: flows that it sent another way meanwhile, or nowhere, have to
    /// earn their permits again.
    pub mended: bool,
    pub devices: Devices,
}

/// What came of a look at the kernel tier and the maps.
struct Reconciled {
    in_sync: bool,
    /// Routes had to be put right.
    mended: bool,
}

/// How much of the kernel tier is looked at.
#[derive(Clone, Copy)]
enum Look {
    Whole,
    /// What changed about peers is changed, the rest taken to be as it was left.
    Peers,
}

impl Look {
    async fn at<F: Family>(self, side: &mut Side<F>, netlink: &Netlink) -> Result<bool, String> {
        match self {
            Self::Whole => side.reconcile(netlink).await,
            Self::Peers => side.follow(netlink).await,
        }
    }
}

impl Settler {
    pub fn new(netlink: Netlink, tier1: Tier1, sides: Sides, readiness: Readiness) -> Self {
        Self {
            netlink,
            tier1,
            sides,
            readiness,
            attached: false,
        }
    }

    /// Does a job. What fails stays reported as not ready. Ends within [`BOUND`], unless a system call
    /// does not return.
    pub async fn settle(&mut self, job: Job) -> Settled {
        let started = Instant::now();
        let dirty = job.dirty;
        let worked = timeout(BOUND, self.work(job)).await;
        let (again, mended) = worked.unwrap_or_else(|_| {
            let problem = format!(
                "the kernel is busy: not everything was looked at within {} s",
                BOUND.as_secs()
            );
            warn!("{problem}; trying on");
            self.readiness.fail(Condition::PeersInSync, problem);
            (dirty, false)
        });
        debug!(?dirty, ?again, elapsed = ?started.elapsed(), "settled");
        Settled {
            again,
            mended,
            devices: self.sides.devices(),
        }
    }

    /// Returns what has to be tried again, and whether the kernel path was mended.
    async fn work(&mut self, job: Job) -> (Dirty, bool) {
        let Job {
            dirty,
            backend,
            desired,
            pods,
            timeouts,
        } = job;
        let mut again = Dirty::default();
        let mut mended = dirty.flush_after;
        self.sides.want(desired);
        if dirty.resync {
            self.tier1.distrust();
        }
        if dirty.vtep && !self.restore_devices(&backend).await {
            again.vtep = true;
            again.tiers = true;
        }
        if dirty.tiers || dirty.vtep {
            let whole = self.reconcile(Look::Whole, &timeouts).await;
            again.tiers |= !whole.in_sync;
            mended |= whole.mended;
        } else if dirty.peers {
            again.tiers |= !self.reconcile(Look::Peers, &timeouts).await.in_sync;
        }
        if dirty.pods || dirty.vtep || dirty.underlay {
            self.attached = self.attach(&pods);
            again.pods |= !self.attached;
        }
        if self.attached && self.learn_translations().await {
            again.tiers |= !self.reconcile(Look::Peers, &timeouts).await.in_sync;
        }
        again.flush_after = mended && (again.tiers || again.vtep);
        (again, mended && !again.flush_after)
    }

    async fn restore_devices(&mut self, backend: &Backend) -> bool {
        let mut problems = Vec::new();
        each_family!(self.sides.as_mut(), side => {
            if let Some(side) = side {
                problems.extend(side.restore_device(&self.netlink, backend).await.err());
            }
        });
        self.is_in_sync(problems.first())
    }

    async fn reconcile(&mut self, look: Look, timeouts: &Shortest) -> Reconciled {
        let mut problems = Vec::new();
        let mut mended = false;
        let tier1 = &mut self.tier1;
        each_family!(self.sides.as_mut().zip(timeouts.permits()), (side, permits) => {
            if let Some(side) = side {
                match look.at(side, &self.netlink).await {
                    Ok(changed) => mended |= changed,
                    Err(problem) => problems.push(problem),
                }
                let applied = block_in_place(|| tier1.apply(side, permits));
                problems.extend(applied.err().map(|error| error.to_string()));
            }
        });
        let in_sync = self.is_in_sync(problems.first());
        if in_sync {
            self.readiness.satisfy(Condition::PeersInSync);
        }
        Reconciled { in_sync, mended }
    }

    /// Reports a problem, if there is one. Returns whether there is none.
    fn is_in_sync(&self, problem: Option<&String>) -> bool {
        if let Some(problem) = problem {
            self.readiness.fail(Condition::PeersInSync, problem.clone());
        }
        problem.is_none()
    }

    /// Returns whether the maps are to be applied again.
    async fn learn_translations(&mut self) -> bool {
        let learned = self.tier1.learn_translations().await;
        learned.unwrap_or_else(|error| {
            // Tried again with the next job.
            warn!(%error, "pairs of pods have no permits for all of their flows yet");
            false
        })
    }

    fn attach(&mut self, pods: &BTreeMap<u32, PodLink>) -> bool {
        let (tier1, sides) = (&mut self.tier1, &self.sides);
        let problems = block_in_place(|| tier1.attach(sides, pods));
        match problems.first() {
            None => self.readiness.satisfy(Condition::DatapathAttached),
            Some(problem) => {
                let others = match problems.len() {
                    1 => String::new(),
                    count => format!(" (and {} more, see the log)", count - 1),
                };
                self.readiness
                    .fail(Condition::DatapathAttached, format!("{problem}{others}"));
            }
        }
        problems.is_empty()
    }
}
