//! The short way of a running node, as what others do with tc leaves it.

use std::{sync::Arc, time::Duration};

use overlay_common::short::closed;
use tokio::{
    sync::Mutex,
    task::block_in_place,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::tier1::Tier1;
use crate::{
    complaints::Complaints,
    config::{DatapathOptions, Fastpath},
    datapath::{DatapathError, ShortWay, short_way_closed},
    lifecycle::Supervisor,
    netlink::{Netlink, NetlinkError},
    ticks::{self, OFTEN},
};

/// Nobody announces tcx programs.
const PERIOD: Duration = OFTEN;
/// At the latest after this long all is looked at, whatever is announced or seen.
const AT_LAST: Duration = Duration::from_secs(10);
/// Changes seldom come alone.
const PAUSE: Duration = Duration::from_millis(50);

/// From here on the short way is closed while others have something of tc that would not see its packets.
pub fn spawn(
    options: &DatapathOptions,
    tier1: &Tier1,
    supervisor: &Supervisor,
) -> Result<(), DatapathError> {
    let Some(way) = tier1.short_way()? else {
        return Ok(());
    };
    if options.fastpath == Fastpath::Off {
        return Ok(());
    }
    let way = Arc::new(Mutex::new(way));
    supervisor.spawn("short way", move |stop| {
        let way = Arc::clone(&way);
        async move { keep(&mut *way.lock().await, stop).await }
    });
    Ok(())
}

async fn keep(way: &mut ShortWay, stop: CancellationToken) -> Result<(), NetlinkError> {
    let mut tc = Netlink::watch_tc()?;
    let mut period = ticks::together(PERIOD);
    let mut complaints = Complaints::default();
    let mut told = 0;
    let mut looked_at: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = tc.changed() => changed?,
            _ = period.tick() => {
                let is_recent = looked_at.is_some_and(|at| at.elapsed() < AT_LAST);
                if is_recent && way.is_as_seen() {
                    continue;
                }
            }
        }
        looked_at = Some(Instant::now());
        let looked = block_in_place(|| way.look());
        let problem = looked.as_ref().err().map(ToString::to_string);
        for problem in complaints.news(problem.as_slice()) {
            warn!("cannot tell whether the short way may be used: {problem}");
        }
        let closed = looked.unwrap_or(closed::UNKNOWN);
        if closed != told {
            told = closed;
            match &*short_way_closed(closed, 0) {
                [] => info!("the short way is open again"),
                reasons => info!(reasons = reasons.join("; "), "the short way is closed"),
            }
        }
        sleep(PAUSE).await;
    }
}
