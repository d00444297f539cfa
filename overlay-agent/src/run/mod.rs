//! The daemon: flannel's start-up order, then one loop that keeps everything as the leases say.
//!
//! A stop, a crash or an upgrade never touches forwarding: nothing is undone here. `cleanup` is the
//! command for that.

mod changes;
mod controller;
mod convert;
mod devices;
mod dir_watch;
mod end;
mod ends;
mod flushes;
mod monitor;
mod past;
mod pending;
mod per_packet;
mod reload;
mod rules;
mod settler;
mod short_way;
mod side;
mod sides;
mod start;
mod subnet_file;
mod tier1;
mod work;

use std::{pin::Pin, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    changes::Dirty,
    pending::{Pending, STORM},
    start::Daemon,
    work::{Done, Work},
};
use crate::{
    clock::Clock,
    config::DaemonOptions,
    datapath::PinDir,
    health::{Condition, HealthServer, Readiness},
    history::History,
    lifecycle::{Progress, ServiceManager, SignalRequest, Signals, SleepWatch, Supervisor},
    metrics::{FlushCause, Metrics},
    model::{Family, OwnState},
    netlink::{IpEvent, KernelEvent, Netlink},
    probe::Probes,
    ticks,
    view::NodeMetrics,
};

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// After peers were changed without a look at the rest of the kernel tier, it follows once this long no
/// peer changes,
const VERIFY: Duration = Duration::from_secs(1);
/// or this long after the first of them.
const VERIFY_AT_LAST: Duration = Duration::from_secs(10);
/// Damage to the kernel path seldom comes alone: flows are flushed once this long after the last of it was
/// mended no other is known.
const CALM: Duration = Duration::from_millis(5);
/// Everything is looked at afresh this often, in case an event was missed.
const PERIOD: Duration = Duration::from_secs(30);
/// What is still running after this long does not delay the stop.
const GRACE: Duration = Duration::from_millis(500);
/// What the backend does at the stop may take this long. Less than `TimeoutStopSec` of the unit file.
const END: Duration = Duration::from_secs(3);
/// The watchdog is fed from the main loop at least this often.
const BEAT: Duration = Duration::from_secs(1);

/// Runs the daemon until a signal stops it.
pub async fn run(options: DaemonOptions) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::install().context("cannot install signal handlers")?;
    let stop = CancellationToken::new();
    let supervisor = Supervisor::new(stop.clone());
    let readiness = Readiness::default();
    let metrics = Metrics::default();
    metrics.register(readiness.clone());
    let probes = options.health.probe_port.map(Probes::new);
    if let Some(probes) = &probes {
        metrics.register(probes.clone());
    }
    let clock = Clock::default();
    metrics.register(clock.clone());
    let _asked = probes.as_ref().and_then(Probes::serve);
    metrics.register(NodeMetrics::new(PinDir::new(&options.datapath.pin_dir)));
    let history = History::new(
        PinDir::new(&options.datapath.pin_dir),
        metrics.daemon.events.clone(),
    );
    let _remembered = history.serve();
    supervisor.spawn("history", move |stop| history.clone().run(stop));
    let progress = Progress::default();
    let manager = ServiceManager::new(progress.clone());
    let sleep = SleepWatch::start();

    if let Some(port) = options.health.port {
        let host = options.health.host.clone();
        // A port that is taken is the operator's to settle, before anything else is done.
        let mut bound =
            Some(HealthServer::bind(&host, port, readiness.clone(), metrics.clone()).await?);
        let (readiness, metrics) = (readiness.clone(), metrics.clone());
        supervisor.spawn("health server", move |stop| {
            let (bound, host) = (bound.take(), host.clone());
            let (readiness, metrics) = (readiness.clone(), metrics.clone());
            async move {
                let server = match bound {
                    Some(server) => server,
                    None => HealthServer::bind(&host, port, readiness, metrics).await?,
                };
                server.serve(stop.cancelled_owned()).await
            }
        });
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

    let start = Daemon::start(
        &options,
        &supervisor,
        &readiness,
        &metrics,
        probes,
        clock,
        &stop,
    );
    let started = tokio::select! {
        started = start => started,
        name = stop_requested(&mut signals, &progress) => {
            info!(signal = name, "stopped before the start was complete");
            Ok(None)
        }
    };
    let result = match started {
        Ok(Some(daemon)) => serve(daemon, &mut signals, &manager, &progress, sleep).await,
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
    let mut beat = ticks::together(BEAT);
    loop {
        tokio::select! {
            request = signals.next() => if let SignalRequest::Stop(name) = request { return name },
            _ = beat.tick() => progress.beat(),
        }
    }
}

/// How far a reload has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reload {
    Idle,
    /// Everything is to be settled as the new config says.
    Due,
    /// It is being settled.
    UnderWay,
}

async fn serve(
    mut daemon: Daemon,
    signals: &mut Signals,
    manager: &ServiceManager,
    progress: &Progress,
    mut sleep: SleepWatch,
) -> anyhow::Result<()> {
    let mut pending = Pending::default();
    pending.mark_for(daemon.again, Instant::now() + RETRY);
    let mut work: Option<Work> = None;
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    period.reset();
    let mut beat = ticks::together(BEAT);
    let mut config: Option<Pin<Box<dyn Future<Output = _> + Send>>> = None;
    let mut reload = Reload::Idle;
    let mut verification: Option<Verification> = None;
    let mut mended: Option<Instant> = None;
    loop {
        let mut cause = FlushCause::Lost;
        let dirty = tokio::select! {
            request = signals.next() => match request {
                SignalRequest::Stop(name) => {
                    info!(signal = name, "stopping; forwarding goes on");
                    // What is half written is written to its end, if that does not take long.
                    let _ = timeout(GRACE, Work::done(&mut work)).await;
                    drop(work);
                    let _ = timeout(END, daemon.end_backend()).await;
                    return Ok(());
                }
                SignalRequest::Reload => {
                    manager.reloading();
                    info!("reloading");
                    config = Some(Box::pin(daemon.read_config()));
                    Dirty::default()
                }
            },
            read = poll_option(&mut config) => {
                config = None;
                cause = FlushCause::Reload;
                daemon.reload(read);
                daemon.subnet_file.keep();
                reload = Reload::Due;
                Dirty::ALL
            }
            event = daemon.watch.next() => if let Some(event) = event {
                cause = cause_of(&event);
                daemon.controller.note(&event)
            } else {
                warn!("the kernel's notifications ended; subscribing again");
                daemon.watch = Netlink::watch()?;
                Dirty::ALL
            },
            changed = daemon.leases.view.changed() => {
                if changed.is_err() {
                    bail!("the lease task has ended; this is a defect of the daemon");
                }
                let dirty = daemon.take_leases();
                if dirty.peers && daemon.controller.changed() >= STORM {
                    pending.storm(Instant::now());
                }
                dirty
            }
            Ok(()) = daemon.rules.ruleset.changed() => {
                daemon.rules.ruleset.mark_unchanged();
                cause = FlushCause::Rules;
                Dirty::FLUSH
            }
            Ok(()) = daemon.timeouts.changed() => {
                daemon.timeouts.mark_unchanged();
                Dirty::MAPS
            }
            () = daemon.subnet_file.disturbed() => {
                daemon.subnet_file.keep();
                Dirty::default()
            }
            () = until(pending.due()), if work.is_none() => {
                if reload == Reload::Due {
                    reload = Reload::UnderWay;
                }
                work = Some(daemon.begin(pending.take()));
                Dirty::default()
            }
            done = Work::done(&mut work) => {
                let (dirty, done) = done.context("keeping the node as desired has failed")?;
                match done {
                    Done::Seen(seen) => {
                        let (dirty, again) = daemon.take_seen(dirty, seen);
                        pending.mark_for(again, Instant::now() + RETRY);
                        work = Some(daemon.settle(dirty));
                    }
                    Done::Settled(settled) => {
                        daemon.take_settled(&settled, dirty);
                        let now = Instant::now();
                        pending.done(now);
                        if dirty.is_unseen() {
                            let verification = verification.get_or_insert(Verification {
                                due: now,
                                last: now + VERIFY_AT_LAST,
                            });
                            verification.due = verification.last.min(now + VERIFY);
                        } else if dirty.tiers {
                            verification = None;
                        }
                        if settled.mended {
                            mended = Some(now + CALM);
                        }
                        pending.mark_for(settled.again, Instant::now() + RETRY);
                        if reload == Reload::UnderWay {
                            reload = Reload::Idle;
                            info!("reloaded");
                            manager.reloaded();
                        }
                    }
                }
                Dirty::default()
            }
            () = until(mended) => {
                mended = None;
                cause = FlushCause::Repair;
                let mends = |work: &Work| work.dirty.flush_after;
                let goes_on = pending.will_flush_after() || work.as_ref().is_some_and(mends);
                Dirty { flush: !goes_on, ..Dirty::default() }
            }
            () = until(verification.as_ref().map(|verification| verification.due)) => {
                verification = None;
                Dirty { tiers: true, ..Dirty::default() }
            }
            _ = period.tick() => {
                daemon.subnet_file.keep();
                Dirty { flush: false, ..Dirty::ALL }
            }
            _ = beat.tick() => {
                // Work that is stuck in the kernel for good takes a restart.
                if !work.as_ref().is_some_and(Work::is_stuck) {
                    progress.beat();
                }
                match sleep.slept() {
                    Some(time) => {
                        info!(?time, "the machine slept; looking at everything afresh");
                        daemon.leases.slept(time);
                        cause = FlushCause::Sleep;
                        daemon.subnet_file.keep();
                        Dirty::ALL
                    }
                    None => Dirty::default(),
                }
            }
        };
        if dirty.flush {
            // At once: the longer it waits, the longer a flow may go where it must not.
            daemon.flushes.request();
            daemon.metrics.flushed(cause);
        }
        pending.mark(dirty.without_flush(), Instant::now());
    }
}

/// Why an event of the kernel makes flows earn their permits again.
const fn cause_of(event: &KernelEvent) -> FlushCause {
    match event {
        KernelEvent::Ipv4(event) => cause_of_ip(event),
        KernelEvent::Ipv6(event) => cause_of_ip(event),
        KernelEvent::Link(_) | KernelEvent::LinkRemoved { .. } => FlushCause::Interface,
        KernelEvent::Fdb(_) | KernelEvent::FdbRemoved(_) => FlushCause::Neighbour,
        KernelEvent::PolicyRule => FlushCause::PolicyRule,
        KernelEvent::Ipsec => FlushCause::Ipsec,
        KernelEvent::Resync => FlushCause::Lost,
    }
}

const fn cause_of_ip<F: Family>(event: &IpEvent<F>) -> FlushCause {
    match event {
        IpEvent::Address(_) | IpEvent::AddressRemoved(_) => FlushCause::Interface,
        IpEvent::Route(_) | IpEvent::RouteRemoved(_) => FlushCause::Route,
        IpEvent::Neighbour(_) | IpEvent::NeighbourRemoved(_) => FlushCause::Neighbour,
    }
}

/// A look at the whole kernel tier that is to come.
struct Verification {
    due: Instant,
    /// It is not put off beyond this.
    last: Instant,
}

/// Waits for a moment; for ever, if there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        // A timer would take until its next tick, up to a millisecond.
        Some(moment) if moment <= Instant::now() => {}
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The future's output; never, when there is none.
async fn poll_option<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn report_lease(readiness: &Readiness, store: &str, state: OwnState) {
    let problem = match state {
        OwnState::Held => return readiness.satisfy(Condition::LeaseHeld),
        OwnState::Lost => format!("it is gone from {store} and is being written again"),
        OwnState::Taken { by } => format!("the subnet of this node is claimed by {by}"),
        OwnState::Reassigned { to: Some(key) } => {
            format!("{store} gives this node {key} now; restart the daemon to take it")
        }
        OwnState::Reassigned { to: None } => {
            format!("{store} has no subnet for this node any more")
        }
    };
    readiness.fail(Condition::LeaseHeld, problem);
}

impl Daemon {
    /// Takes over the leases as they are.
    fn take_leases(&mut self) -> Dirty {
        let view = self.leases.view.borrow_and_update();
        report_lease(&self.readiness, self.store.name(), view.own.state);
        let backend = &self.config.backend;
        let mut dirty = self.controller.follow_leases(&view, backend);
        if self.runs {
            dirty |= self.controller.want_leases(&view, backend);
        }
        dirty
    }
}
