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
    side::{Look, Side},
    sides::{Orders, Sides},
    tier1::{Placed, Tier1},
};
use crate::{
    backend::{Backend, Runtime, Scene},
    complaints::Complaints,
    conntrack::Shortest,
    datapath::Lent,
    health::{Condition, Readiness},
    loan::Answer,
    metrics::{self, FlushCause},
    model::{Family, each_family},
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
    /// What runs of the backend.
    runtime: Option<Box<dyn Runtime>>,
    /// What was last complained about of it, so that each problem is logged once.
    complaints: Complaints,
    readiness: Readiness,
    /// The programs are where they belong.
    attached: bool,
    /// Where pods were when they were last attached; `None` before.
    pods: Option<BTreeMap<u32, PodLink>>,
    /// There was a job before: what is changed without news from the leases is a repair.
    began: bool,
    metrics: metrics::Daemon,
}

/// What is to be looked at, and what is wanted of it.
#[derive(Clone, Debug)]
pub struct Job {
    pub dirty: Dirty,
    pub backend: Backend,
    pub desired: Orders,
    /// For what runs of the backend, if something does.
    pub scene: Option<Scene>,
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

const fn family_of<F: Family>(_: &Side<F>) -> &'static str {
    F::NAME
}

impl Settler {
    pub fn new(
        netlink: Netlink,
        tier1: Tier1,
        sides: Sides,
        runtime: Option<Box<dyn Runtime>>,
        readiness: Readiness,
        metrics: metrics::Daemon,
    ) -> Self {
        Self {
            netlink,
            tier1,
            sides,
            runtime,
            complaints: Complaints::default(),
            readiness,
            attached: false,
            pods: None,
            began: false,
            metrics,
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
    async fn work(&mut self, mut job: Job) -> (Dirty, bool) {
        let dirty = job.dirty;
        let mut again = Dirty::default();
        let repair = self.began && (!dirty.peers || dirty.resync);
        self.began = true;
        let mut mended = dirty.flush_after;
        self.sides.want(std::mem::take(&mut job.desired));
        if dirty.resync {
            self.tier1.distrust();
        }
        if dirty.vtep && !self.restore_devices(&job.backend).await {
            again.vtep = true;
            again.tiers = true;
        }
        if dirty.tiers || dirty.vtep {
            let whole = self.reconcile(Look::Whole, repair, &job).await;
            again.tiers |= !whole.in_sync;
            mended |= whole.mended;
        } else if dirty.peers {
            let followed = self.reconcile(Look::Peers, repair, &job).await;
            again.tiers |= !followed.in_sync;
        }
        if dirty.pods || dirty.vtep || dirty.underlay {
            self.attached = self.attach(&job.pods);
            self.pods = Some(std::mem::take(&mut job.pods));
            again.pods |= !self.attached;
        }
        if self.attached && self.learn_translations().await {
            let followed = self.reconcile(Look::Peers, repair, &job).await;
            again.tiers |= !followed.in_sync;
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

    async fn reconcile(&mut self, look: Look, repair: bool, job: &Job) -> Reconciled {
        let started = Instant::now();
        let mut problems = Vec::new();
        let mut mended = false;
        let tier1 = &mut self.tier1;
        let metrics = self.metrics.clone();
        each_family!(self.sides.as_mut().zip(job.timeouts.permits()), (side, permits) => {
            if let Some(side) = side {
                match look.at(side, &self.netlink, &job.backend).await {
                    Ok(changed) => mended |= changed,
                    Err(problem) => problems.push(problem),
                }
                metrics.changed(family_of(side), repair, side.changed.kinds());
                let applied = block_in_place(|| tier1.apply(look, side, permits));
                problems.extend(applied.err().map(|error| error.to_string()));
                // Where that failed, nothing is taken to be as it was left.
                side.before.clear();
            }
        });
        problems.extend(self.keep_running(job.scene.as_ref()).await);
        let in_sync = self.is_in_sync(problems.first());
        metrics.reconciled(look.name(), started.elapsed(), in_sync);
        if in_sync {
            self.readiness.satisfy(Condition::PeersInSync);
        }
        Reconciled { in_sync, mended }
    }

    /// Has what runs of the backend be as it should be. Returns what is not.
    async fn keep_running(&mut self, scene: Option<&Scene>) -> Vec<String> {
        let Some((runtime, scene)) = self.runtime.as_mut().zip(scene) else {
            return Vec::new();
        };
        runtime.heed_programs(self.tier1.is_fast());
        let problems = runtime.keep(scene).await;
        for problem in self.complaints.news(&problems) {
            warn!("{problem}");
        }
        problems
    }

    /// Has programs of another process run instead of the agent's own.
    pub fn borrow_programs(&mut self, lent: Lent) -> Answer {
        if self.pods.is_none() {
            return Answer::refused("the node is being started");
        }
        if !self.tier1.borrow_programs(Some(lent)) {
            return Answer::refused(
                "this node has no programs: packets take the kernel tier alone",
            );
        }
        let is_complete = self.attach_again();
        let problem = "not all of them could be put in place: see the agent's log";
        Answer {
            refused: None,
            problem: (!is_complete).then(|| problem.to_owned()),
        }
    }

    /// Has the agent's own programs run again; `None` if they did, else whether all do.
    pub fn own_programs(&mut self) -> Option<bool> {
        let others_ran = self.tier1.borrow_programs(None);
        others_ran.then(|| self.attach_again())
    }

    fn attach_again(&mut self) -> bool {
        let Some(pods) = self.pods.take() else {
            return true;
        };
        self.attached = self.attach(&pods);
        self.pods = Some(pods);
        self.attached
    }

    /// Ends what runs of the backend.
    pub async fn end(&mut self) {
        if let Some(runtime) = &mut self.runtime {
            runtime.end().await;
        }
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
        let Placed { problems, flushed } = block_in_place(|| tier1.attach(sides, pods));
        if flushed {
            self.metrics.flushed(FlushCause::Gateway);
        }
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
