//! The daemon: flannel's start-up order, then one loop that keeps everything as the leases say.
//!
//! A stop, a crash or an upgrade never touches forwarding: nothing is undone here. `cleanup` is the
//! command for that.

mod changes;
mod controller;
mod convert;
mod dir_watch;
mod end;
mod past;
mod per_packet;
mod reload;
mod rules;
mod side;
mod start;
mod subnet_file;
mod tier1;

use std::{pin::Pin, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{changes::Dirty, start::Daemon};
use crate::{
    config::DaemonOptions,
    core::OwnState,
    health::{Condition, HealthServer, Readiness},
    lifecycle::{Progress, Request, ServiceManager, Signals, Supervisor},
    netlink::Netlink,
};

/// Events come in bursts; the end of one is waited for this long,
const QUIET: Duration = Duration::from_millis(5);
/// but not longer than this in all.
const PATIENCE: Duration = Duration::from_millis(40);
/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Everything is looked at afresh this often, in case an event was missed.
const PERIOD: Duration = Duration::from_secs(30);
/// What is still running after this long does not delay the stop.
const GRACE: Duration = Duration::from_millis(500);
/// The watchdog is fed from the main loop at least this often.
const BEAT: Duration = Duration::from_secs(1);

/// Runs the daemon until a signal stops it.
pub async fn run(options: DaemonOptions) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::install().context("cannot install signal handlers")?;
    let stop = CancellationToken::new();
    let supervisor = Supervisor::new(stop.clone());
    let readiness = Readiness::default();
    let progress = Progress::default();
    let manager = ServiceManager::new(progress.clone());

    if let Some(port) = options.health.port {
        let server = HealthServer::bind(&options.health.host, port, readiness.clone()).await?;
        let stop = stop.clone();
        tokio::spawn(server.serve(stop.cancelled_owned()));
    }
    supervisor.spawn("service manager", {
        let (manager, readiness) = (manager.clone(), readiness.clone());
        move |stop| {
            let (manager, readiness) = (manager.clone(), readiness.clone());
            async move {
                manager.run(&readiness, stop).await;
                Ok::<(), std::convert::Infallible>(())
            }
        }
    });

    let start = Daemon::start(&options, &supervisor, &readiness, &stop);
    let started = tokio::select! {
        started = start => started,
        name = stop_requested(&mut signals, &progress) => {
            info!(signal = name, "stopped before the start was complete");
            Ok(None)
        }
    };
    let result = match started {
        Ok(Some(daemon)) => serve(daemon, &mut signals, &manager, &progress).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    manager.stopping();
    stop.cancel();
    let late = supervisor.stop(GRACE).await;
    if !late.is_empty() {
        warn!(tasks = ?late, "these tasks did not stop in time");
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// Waits for a signal to stop; a reload before the start is complete has nothing to reload.
async fn stop_requested(signals: &mut Signals, progress: &Progress) -> &'static str {
    let mut beat = interval(BEAT);
    loop {
        tokio::select! {
            request = signals.next() => if let Request::Stop(name) = request { return name },
            _ = beat.tick() => progress.beat(),
        }
    }
}

async fn serve(
    mut daemon: Daemon,
    signals: &mut Signals,
    manager: &ServiceManager,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut pending = Pending::default();
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    period.reset();
    let mut beat = interval(BEAT);
    let mut config: Option<Pin<Box<dyn Future<Output = _> + Send>>> = None;
    loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Stop(name) => {
                    info!(signal = name, "stopping; forwarding goes on");
                    return Ok(());
                }
                Request::Reload => {
                    manager.reloading();
                    info!("reloading");
                    config = Some(Box::pin(daemon.read_config()));
                }
            },
            read = poll_option(&mut config) => {
                config = None;
                daemon.reload(read);
                daemon.subnet_file.keep();
                let again = daemon.settle(Dirty::ALL).await;
                pending.mark(again, RETRY);
                info!("reloaded");
                manager.reloaded();
            }
            event = daemon.watch.next() => if let Some(event) = event {
                let dirty = daemon.controller.note(&event);
                pending.mark(dirty, QUIET);
            } else {
                warn!("the kernel's notifications ended; subscribing again");
                daemon.watch = Netlink::watch()?;
                pending.mark(Dirty::ALL, Duration::ZERO);
            },
            changed = daemon.leases.view.changed() => {
                if changed.is_err() {
                    bail!("the lease task has ended; this is a defect of the daemon");
                }
                let dirty = daemon.take_leases();
                pending.mark(dirty, QUIET);
            }
            Ok(()) = daemon.rules.ruleset.changed() => {
                daemon.rules.ruleset.mark_unchanged();
                daemon.controller.flush();
            }
            () = daemon.subnet_file.disturbed() => daemon.subnet_file.keep(),
            () = pending.due() => {
                let dirty = pending.take();
                let again = daemon.settle(dirty).await;
                pending.mark(again, RETRY);
            }
            _ = period.tick() => {
                pending.mark(Dirty { flush: false, ..Dirty::ALL }, QUIET);
                daemon.subnet_file.keep();
            }
            _ = beat.tick() => progress.beat(),
        }
    }
}

/// What is dirty, and when it is settled.
#[derive(Default)]
struct Pending {
    dirty: Dirty,
    since: Option<Instant>,
    due: Option<Instant>,
}

impl Pending {
    fn mark(&mut self, dirty: Dirty, pause: Duration) {
        if !dirty.any() {
            return;
        }
        self.dirty |= dirty;
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let due = (now + pause).min(since + PATIENCE.max(pause));
        // A later retry does not hold up what is due sooner.
        self.due = Some(match self.due {
            Some(before) if pause == RETRY => before.min(due),
            _ => due,
        });
    }

    fn take(&mut self) -> Dirty {
        std::mem::take(self).dirty
    }

    async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

/// The future's output; never, when there is none.
async fn poll_option<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn report_lease(readiness: &Readiness, state: OwnState) {
    let problem = match state {
        OwnState::Held => return readiness.satisfy(Condition::LeaseHeld),
        OwnState::Lost => "it is gone from etcd and is being written again".to_owned(),
        OwnState::Taken { by } => format!("the subnet of this node is claimed by {by}"),
    };
    readiness.fail(Condition::LeaseHeld, problem);
}

impl Daemon {
    /// Takes over the leases as they are.
    fn take_leases(&mut self) -> Dirty {
        let view = self.leases.view.borrow_and_update();
        report_lease(&self.readiness, view.own.state);
        let mut desired = self.controller.desired();
        if let Some(side) = &mut desired.ipv4 {
            side.peers = view.usable_peers(&side.local.backend);
        }
        if let Some(side) = &mut desired.ipv6 {
            side.peers = view.usable_peers6(&side.local.backend);
        }
        drop(view);
        self.controller.want(desired)
    }
}
