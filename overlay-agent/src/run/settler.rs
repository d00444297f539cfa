//! Brings both tiers to the desired state, in a task of its own: the main loop goes on meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{task::block_in_place, time::timeout};
use tracing::{debug, warn};

use super::{
    changes::Dirty,
    devices::Devices,
    side::Look,
    sides::{Orders, Sides},
    tier1::Tier1,
};
use crate::{
    backend::Backend,
    conntrack::Shortest,
    health::{Condition, Readiness},
    model::each_family,
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
    pub desired: Orders,
    pub pods: BTreeMap<u32, PodLink>,
    pub timeouts: Shortest,
}

/// What came of a job.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What has to be tried again.
    pub again: Dirty,
    pub devices: Devices,
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
        let again = timeout(BOUND, self.work(job)).await;
        let again = again.unwrap_or_else(|_| {
            let problem = format!(
                "the kernel is busy: not everything was looked at within {} s",
                BOUND.as_secs()
            );
            warn!("{problem}; trying on");
            self.readiness.fail(Condition::PeersInSync, problem);
            dirty
        });
        debug!(?dirty, ?again, elapsed = ?started.elapsed(), "settled");
        Settled {
            again,
            devices: self.sides.devices(),
        }
    }

    async fn work(&mut self, job: Job) -> Dirty {
        let Job {
            dirty,
            backend,
            desired,
            pods,
            timeouts,
        } = job;
        let mut again = Dirty::default();
        self.sides.want(desired);
        if dirty.resync {
            self.tier1.distrust();
        }
        if dirty.vtep && !self.restore_devices(&backend).await {
            again.vtep = true;
            again.tiers = true;
        }
        if dirty.tiers || dirty.vtep {
            again.tiers |= !self.reconcile(Look::Whole, &timeouts).await;
        } else if dirty.peers {
            again.tiers |= !self.reconcile(Look::Peers, &timeouts).await;
        }
        if dirty.pods || dirty.vtep || dirty.underlay {
            self.attached = self.attach(&pods);
            again.pods |= !self.attached;
        }
        if self.attached && self.learn_translations().await {
            again.tiers |= !self.reconcile(Look::Peers, &timeouts).await;
        }
        again
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

    async fn reconcile(&mut self, look: Look, timeouts: &Shortest) -> bool {
        let mut problems = Vec::new();
        let tier1 = &mut self.tier1;
        each_family!(self.sides.as_mut().zip(timeouts.permits()), (side, permits) => {
            if let Some(side) = side {
                problems.extend(look.at(side, &self.netlink).await.err());
                let applied = block_in_place(|| tier1.apply(look, side, permits));
                problems.extend(applied.err().map(|error| error.to_string()));
                // Where that failed, nothing is taken to be as it was left.
                side.before.clear();
            }
        });
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
