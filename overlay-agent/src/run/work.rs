//! Work that the main loop does not wait for: looks at the host, and jobs of the settler. One at a
//! time.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::anyhow;
use tokio::{
    sync::Mutex,
    task::JoinError,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    changes::Dirty,
    settler::{BOUND, Job, Settled, Settler},
};
use crate::{
    netlink::{LinkDump, Netlink, NetlinkError},
    underlay::{self, HostSnapshot},
};

/// Each look at the host is cut off after this long, and tried again.
const LOOK: Duration = Duration::from_secs(30);

/// Beyond this the work is stuck in a system call.
const STUCK: Duration = BOUND.saturating_add(Duration::from_secs(10));

/// What is under way.
pub struct Work {
    task: AbortOnDropHandle<Done>,
    since: Instant,
    /// What it is about.
    pub dirty: Dirty,
}

/// What came of it.
pub enum Done {
    Seen(Seen),
    Settled(Settled),
}

/// What a look has shown; nothing of what was not asked for.
#[derive(Default)]
pub struct Seen {
    pub host: Option<anyhow::Result<HostSnapshot>>,
    pub links: Option<Result<LinkDump, NetlinkError>>,
}

impl Work {
    /// Looks at what has to be known before the rest of what is dirty can be settled. `can_reach` is the
    /// address the options choose the interface by, if they do.
    pub fn look(dirty: Dirty, netlink: Netlink, can_reach: Option<IpAddr>) -> Self {
        Self::spawn(dirty, async move {
            let mut seen = Seen::default();
            if dirty.underlay {
                let host = timeout(LOOK, underlay::snapshot(can_reach)).await;
                seen.host = Some(host.map_or_else(
                    |_| {
                        let seconds = LOOK.as_secs();
                        Err(anyhow!(
                            "the kernel did not tell its interfaces within {seconds} s"
                        ))
                    },
                    |host| host.map_err(anyhow::Error::from),
                ));
            }
            if dirty.resync {
                let links = timeout(LOOK, netlink.dump_links()).await;
                seen.links = Some(links.unwrap_or(Err(NetlinkError::Timeout {
                    operation: "list interfaces",
                    seconds: LOOK.as_secs(),
                })));
            }
            Done::Seen(seen)
        })
    }

    /// Has the settler do a job.
    pub fn settle(settler: Arc<Mutex<Settler>>, job: Job) -> Self {
        Self::spawn(job.dirty, async move {
            Done::Settled(settler.lock().await.settle(job).await)
        })
    }

    fn spawn(dirty: Dirty, work: impl Future<Output = Done> + Send + 'static) -> Self {
        Self {
            task: AbortOnDropHandle::new(tokio::spawn(work)),
            since: Instant::now(),
            dirty,
        }
    }

    /// Whether it takes longer than it can, so that only a restart helps.
    pub fn is_stuck(&self) -> bool {
        self.since.elapsed() > STUCK
    }

    /// Waits for the end of what is under way; for ever, if nothing is. Cancel-safe.
    pub async fn done(work: &mut Option<Self>) -> Result<(Dirty, Done), JoinError> {
        match work {
            Some(under_way) => {
                let done = (&mut under_way.task).await;
                let dirty = under_way.dirty;
                *work = None;
                Ok((dirty, done?))
            }
            None => std::future::pending().await,
        }
    }
}
