//! What the service manager is told (`sd_notify(3)`): READY once everything is in place, as flannel
//! does at the end of its start; STATUS whenever readiness changes; WATCHDOG while the main loop
//! makes progress; RELOADING and STOPPING.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::health::Readiness;

/// Counts the turns of the main loop. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

/// The service manager, if there is one: without `NOTIFY_SOCKET` all of this does nothing.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    progress: Progress,
}

impl Progress {
    /// To be called at least every [`ServiceManager::beat_interval`].
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl ServiceManager {
    pub fn new(progress: Progress) -> Self {
        Self { progress }
    }

    /// How often the main loop has to beat for the watchdog to stay quiet. `None`: no watchdog.
    pub fn beat_interval() -> Option<Duration> {
        sd_notify::watchdog_enabled()
            .map(|limit| limit / 4)
            .filter(|period| !period.is_zero())
    }

    /// Reports readiness and feeds the watchdog until told to stop.
    pub async fn run(&self, readiness: &Readiness, stop: CancellationToken) {
        tokio::join!(self.report(readiness, &stop), self.feed_watchdog(&stop));
    }

    async fn report(&self, readiness: &Readiness, stop: &CancellationToken) {
        let mut changes = readiness.changes();
        let mut announced = false;
        loop {
            changes.mark_unchanged();
            let unmet = readiness.unmet();
            if let Some(unmet) = unmet.first() {
                send(&[NotifyState::Status(&format!("not ready: {unmet}"))]);
            } else if announced {
                send(&[NotifyState::Status("ready")]);
            } else {
                announced = true;
                send(&[NotifyState::Ready, NotifyState::Status("ready")]);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                result = changes.changed() => if result.is_err() { return },
            }
        }
    }

    /// Twice per watchdog period, but only while the main loop makes progress: a daemon that hangs
    /// is restarted by the service manager, and forwarding does not notice.
    async fn feed_watchdog(&self, stop: &CancellationToken) {
        let Some(beat) = Self::beat_interval() else {
            return;
        };
        let period = beat * 2;
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        send(&[NotifyState::Watchdog]);
        let mut fed_at = self.progress.count();
        let mut starving = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let count = self.progress.count();
            if count != fed_at {
                fed_at = count;
                starving = false;
                send(&[NotifyState::Watchdog]);
            } else if !std::mem::replace(&mut starving, true) {
                error!(
                    ?period,
                    "the main loop makes no progress, the watchdog goes unfed"
                );
            }
        }
    }

    /// A reload begins; [`reloaded`](Self::reloaded) must follow.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(error) => debug!(%error, "no monotonic clock, reload not announced"),
        }
    }

    /// The reload is done.
    pub fn reloaded(&self) {
        send(&[NotifyState::Ready]);
    }

    /// The daemon is on its way out.
    pub fn stopping(&self) {
        send(&[
            NotifyState::Stopping,
            NotifyState::Status("stopping, forwarding stays in place"),
        ]);
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "cannot notify the service manager");
    }
}
