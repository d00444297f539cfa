//! Reads the rule set whenever it changes while the daemon runs.

use std::{io, time::Duration};

use overlay_common::slow::Slow;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Report, Scope,
    read::Tools,
    report::{everything, of_findings},
};
use crate::filter::{RulesetVersion, exec::Executor};

/// Others change rules in bursts; one look at the end of each is enough.
const SETTLE: Duration = Duration::from_millis(20);
/// After a look the next one waits this many times as long as it took; as long as it took if it failed:
/// then every flow is left to the kernel.
const COST_FACTOR: u32 = 9;
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps `put` told which flows are to be left to the kernel: after each change of the rule set by
/// others, and of what it is seen from. `put` has the flows earn their permits again if that changes
/// anything. Ends with `stop`.
pub async fn keep(
    executor: &Executor,
    mut ruleset: watch::Receiver<RulesetVersion>,
    mut scope: watch::Receiver<Scope>,
    mut put: impl FnMut(&Slow) -> io::Result<bool>,
    stop: CancellationToken,
) {
    let tools = Tools::find(executor).await;
    let mut told = None;
    loop {
        let seen = ruleset.borrow_and_update().foreign;
        let from = scope.borrow_and_update().clone();
        let started = Instant::now();
        let read = tokio::select! {
            () = stop.cancelled() => return,
            read = tools.findings(&from) => read,
        };
        let ended = Instant::now();
        let mut failed = read.is_err();
        let slow = match read {
            Ok(findings) if findings.is_too_large => {
                everything("the rule set is too large to be followed")
            }
            Ok(findings) => of_findings(&findings),
            Err(error) => everything(&format!("the rules cannot be read: {error}")),
        };
        match put(&slow) {
            Ok(changed) => debug!(changed, cost = ?(ended - started), "rule set read"),
            Err(error) => {
                warn!(%error, "cannot write which flows are left to the kernel, trying on");
                failed = true;
            }
        }
        let report = Report::of(&slow);
        if report != told {
            log(report.as_ref(), told.as_ref());
            told = report;
        }
        let factor = if failed { 1 } else { COST_FACTOR };
        let earliest = ended + (ended - started) * factor;
        let retry = ended + RETRY;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = ruleset.changed() => if ruleset.borrow_and_update().foreign == seen {
                    continue;
                },
                Ok(()) = scope.changed() => {}
                () = sleep_until(retry), if failed => {}
            }
            break;
        }
        let next = earliest.max(Instant::now() + SETTLE);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(next) => {}
        }
    }
}

/// Each rule is told once while it is there.
fn log(report: Option<&Report>, before: Option<&Report>) {
    let Some(report) = report else {
        return;
    };
    if let Some(problem) = &report.problem {
        warn!("every flow is left to the kernel: {problem}");
    }
    let known = |rule| before.is_some_and(|before| before.rules.contains(rule));
    for rule in report.rules.iter().filter(|rule| !known(rule)) {
        warn!("left to the kernel, the fast path does not take it: {rule}");
    }
    if report.more > 0 {
        warn!(rules = report.more, "more rules judge each packet");
    }
    let is_clear = report.problem.is_none() && report.rules.is_empty();
    if is_clear && before.is_some_and(|before| before.problem.is_some() || !before.rules.is_empty())
    {
        info!("no rule judges each packet any more");
    }
}
