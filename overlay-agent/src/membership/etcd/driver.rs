//! Runs the lease state machine: carries its requests to the store and the store's answers back,
//! and publishes what it knows.
//!
//! Nothing here decides anything about leases. A lost connection changes `store.connected` and
//! nothing else in the view.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt, future::BoxFuture, stream::BoxStream};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    acquire::Acquired, error::EtcdError, lease_store::LeaseStore, machine::Machine, words,
};
use crate::{
    backoff::Backoff,
    core::{Core, Input, Output, Renewal, Snapshot, StoreRequest, WatchEvent},
    membership::member::{Member, Order},
    model::{ConfigText, LeaseView, OwnState, StoreError, StoreState},
};

/// Keeps the acquired lease and follows all others until cancelled. `config` is the network
/// config the daemon runs with. Etcd is left as it is on return.
pub fn spawn<S: LeaseStore>(
    store: Arc<S>,
    acquired: Acquired,
    renewal: Renewal,
    config: ConfigText,
    mut machine: Machine,
    cancel: CancellationToken,
) -> Member {
    let now = machine.time.now();
    let Acquired { held, snapshot } = acquired;
    let rng = StdRng::from_rng(&mut machine.rng);
    let core = Core::new(now, held, snapshot, renewal, config, rng);
    let (view, receiver) = watch::channel(LeaseView {
        own: core.own(),
        peers: core
            .peers()
            .iter()
            .map(|(subnet, lease)| (*subnet, lease.clone()))
            .collect(),
        store: StoreState::default(),
        config: core.config().cloned(),
        alarms: BTreeSet::new(),
    });
    let (member, inbox) = Member::new(receiver);
    let driver = Driver {
        store,
        core,
        view,
        inbox,
        request: None,
        listing: None,
        watch: WatchState::Down,
        slept: Duration::ZERO,
        pause: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
        machine,
        reported: Vec::new(),
        changes: Vec::new(),
    };
    tokio::spawn(async move {
        cancel.run_until_cancelled(driver.run()).await;
    });
    member
}

/// More peers than these that change at a time are summed up in one line.
const FEW: usize = 10;

struct Driver<S> {
    store: Arc<S>,
    core: Core<StdRng>,
    view: watch::Sender<LeaseView>,
    inbox: mpsc::UnboundedReceiver<Order>,
    request: Option<BoxFuture<'static, Input>>,
    listing: Option<BoxFuture<'static, Result<Snapshot, EtcdError>>>,
    watch: WatchState,
    /// Time that the machine slept, which timers do not count and leases do.
    slept: Duration,
    pause: Backoff,
    machine: Machine,
    /// Errors reported since etcd worked last.
    reported: Vec<String>,
    /// What the view does not show yet.
    changes: Vec<Output>,
}

/// So many different errors of one outage are worth a line in the log.
const REPORTED: usize = 5;

/// So many events that have come together are shown as one change of the view.
const TOGETHER: usize = 1000;

/// The watch.
enum WatchState {
    /// Waits for a list.
    Down,
    /// Opens again then.
    Paused(Instant),
    Watching(BoxStream<'static, WatchEvent>),
}

enum Wake {
    Input(Input),
    Listed(Result<Snapshot, EtcdError>),
    Reopen,
}

impl<S: LeaseStore> Driver<S> {
    async fn run(mut self) {
        self.handle(Input::Start);
        loop {
            self.show();
            let wake = self.wake().await;
            self.act(wake);
            for _ in 1..TOGETHER {
                let Some(wake) = self.watch.ready() else {
                    break;
                };
                self.act(wake);
            }
        }
    }

    fn act(&mut self, wake: Wake) {
        match wake {
            Wake::Input(input) => self.take_in(input),
            Wake::Listed(Ok(snapshot)) => {
                self.listing = None;
                self.handle(Input::Listed(snapshot));
            }
            Wake::Listed(Err(error)) => {
                // While the watch stands, the list only has to be repeated.
                let watching = matches!(self.watch, WatchState::Watching(_));
                if watching && self.view.borrow().store.connected {
                    debug!(%error, "leases not listed");
                } else {
                    self.disconnected(&error.into());
                }
                let pause = self.pause.failed(&mut self.machine.rng);
                self.list(pause);
            }
            Wake::Reopen => self.open(),
        }
    }

    /// Waits for whatever comes first. Cancel-safe: every future lives in `self`.
    async fn wake(&mut self) -> Wake {
        let left = self.core.deadline().saturating_duration_since(self.now());
        let tick = self.machine.time.sleep(left);
        tokio::select! {
            // In one order, so that a simulation can be repeated. The first two come once in a while.
            biased;
            Some(order) = self.inbox.recv() => Wake::Input(input(order)),
            () = tick => Wake::Input(Input::Tick),
            input = poll_option(&mut self.request) => {
                self.request = None;
                Wake::Input(input)
            }
            listed = poll_option(&mut self.listing) => Wake::Listed(listed),
            wake = self.watch.next() => wake,
        }
    }

    fn now(&self) -> std::time::Instant {
        self.machine.time.now() + self.slept
    }

    fn take_in(&mut self, input: Input) {
        match &input {
            Input::Watch(WatchEvent::Opened { .. }) => self.connected(),
            Input::Watch(WatchEvent::Compacted { .. }) => {
                info!("the watch fell behind etcd's compaction; listing all leases");
                self.watch = WatchState::Down;
            }
            Input::Slept(time) => {
                self.slept += *time;
                self.watch = WatchState::Down;
            }
            Input::Watch(WatchEvent::Disconnected(error)) => {
                self.disconnected(error);
                let pause = self.pause.failed(&mut self.machine.rng);
                self.watch = WatchState::Paused(Instant::now() + pause);
            }
            Input::Written(Err(error)) | Input::Got(Err(error)) | Input::TimeToLive(Err(error)) => {
                self.request_failed(error);
            }
            Input::Written(Ok(_)) => self.request_succeeded(),
            _ => {}
        }
        self.handle(input);
    }

    fn handle(&mut self, input: Input) {
        let now = self.now();
        let outputs = self.core.handle(now, input);
        report(&outputs);
        for output in outputs {
            match output {
                Output::List => self.list(Duration::ZERO),
                Output::Watch => self.open(),
                Output::Request(request) => self.request = Some(self.send(request)),
                change => self.changes.push(change),
            }
        }
    }

    /// Has the view show what has changed.
    fn show(&mut self) {
        let revision = self.core.revision();
        let changes = std::mem::take(&mut self.changes);
        self.view.send_if_modified(|view| {
            view.store.revision = revision;
            let visible = !changes.is_empty();
            for change in changes {
                apply(view, change);
            }
            visible
        });
    }

    fn list(&mut self, pause: Duration) {
        let store = self.store.clone();
        let start = Instant::now() + pause;
        self.listing = Some(Box::pin(async move {
            sleep_until(start).await;
            store.list().await
        }));
    }

    fn open(&mut self) {
        self.watch = WatchState::Watching(self.store.watch(self.core.next_revision()));
    }

    fn send(&self, request: StoreRequest) -> BoxFuture<'static, Input> {
        let store = self.store.clone();
        Box::pin(async move {
            match request {
                StoreRequest::Put(put) => Input::Written(store.put(&put).await.map_err(Into::into)),
                StoreRequest::Get(key) => Input::Got(store.get(&key).await.map_err(Into::into)),
                StoreRequest::TimeToLive(id) => {
                    Input::TimeToLive(store.time_to_live(id).await.map_err(Into::into))
                }
            }
        })
    }

    fn connected(&mut self) {
        self.pause.succeeded();
        self.reported.clear();
        let changed = self.set_etcd(true, None);
        if changed {
            info!("connected to etcd");
        }
    }

    fn disconnected(&mut self, error: &StoreError) {
        let text = error.to_string();
        if self.is_new(&text) {
            warn!("etcd is away, forwarding goes on: {text}");
        }
        self.set_etcd(false, Some(text));
    }

    /// A request about the own record failed. The watch may stand all the same, as when etcd has
    /// run out of space.
    fn request_failed(&mut self, error: &StoreError) {
        let text = error.to_string();
        if self.is_new(&text) {
            warn!("own lease not written, trying on: {text}");
        }
        let connected = self.view.borrow().store.connected;
        self.set_etcd(connected, Some(text));
    }

    fn request_succeeded(&mut self) {
        let etcd = self.view.borrow().store.clone();
        if etcd.connected && etcd.last_error.is_some() {
            self.reported.clear();
            self.set_etcd(true, None);
        }
    }

    /// Whether an error has not been reported since etcd worked last.
    fn is_new(&mut self, text: &str) -> bool {
        let known = self.reported.iter().any(|reported| reported == text);
        let new = !known && self.reported.len() < REPORTED;
        if new {
            self.reported.push(text.to_owned());
        }
        new
    }

    /// Whether it changed.
    fn set_etcd(&self, connected: bool, last_error: Option<String>) -> bool {
        self.view.send_if_modified(|view| {
            let etcd = StoreState {
                connected,
                last_error,
                revision: view.store.revision,
            };
            let changed = view.store != etcd;
            view.store = etcd;
            changed
        })
    }
}

impl WatchState {
    /// What has come already.
    fn ready(&mut self) -> Option<Wake> {
        match self {
            Self::Down | Self::Paused(_) => None,
            Self::Watching(_) => self.next().now_or_never(),
        }
    }

    async fn next(&mut self) -> Wake {
        match self {
            Self::Down => std::future::pending().await,
            Self::Paused(until) => {
                sleep_until(*until).await;
                Wake::Reopen
            }
            Self::Watching(events) => {
                if let Some(event) = events.next().await {
                    return Wake::Input(Input::Watch(event));
                }
                *self = Self::Down;
                Wake::Reopen
            }
        }
    }
}

fn input(order: Order) -> Input {
    match order {
        Order::Publish(attrs) => Input::Publish(attrs),
        Order::InForce(config) => Input::InForce(config),
        Order::Slept(time) => Input::Slept(time),
        // A lease in etcd does not depend on it.
        Order::Started => Input::Tick,
    }
}

/// The future's output; never, when there is none.
async fn poll_option<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn apply(view: &mut LeaseView, change: Output) {
    match change {
        Output::Peer {
            subnet,
            lease: Some(lease),
        } => view.peers.insert(subnet, lease),
        Output::Peer { subnet, .. } => view.peers.remove(&subnet),
        Output::Own(own) => view.own = own,
        Output::Config(config) => view.config = config,
        Output::Raised(alarm) => drop(view.alarms.insert(alarm)),
        Output::Cleared(alarm) => drop(view.alarms.remove(&alarm)),
        Output::List | Output::Watch | Output::Request(_) => {}
    }
}

/// A line for each change; one for all that happened to peers, if that is much.
fn report(changes: &[Output]) {
    let leased = |change: &Output| match change {
        Output::Peer { lease, .. } => Some(lease.is_some()),
        _ => None,
    };
    let (come, gone): (Vec<bool>, Vec<bool>) =
        { changes.iter().filter_map(leased) }.partition(|leased| *leased);
    let is_burst = come.len() + gone.len() > FEW;
    if is_burst {
        info!(leased = come.len(), gone = gone.len(), "peer leases");
    }
    let single = |change: &&Output| !is_burst || leased(change).is_none();
    changes.iter().filter(single).for_each(report_one);
}

fn report_one(change: &Output) {
    match change {
        Output::Peer {
            subnet,
            lease: Some(lease),
        } => info!(%subnet, public_ip = %lease.attrs.node_ip(), "peer lease"),
        Output::Peer { subnet, .. } => info!(%subnet, "peer lease gone"),
        Output::Own(own) => match own.state {
            OwnState::Held => {
                info!(lease = %own.key, reservation = own.reservation, "own lease held");
            }
            OwnState::Lost => warn!(
                lease = %own.key,
                "own lease was deleted or ran out; forwarding goes on, writing it again"
            ),
            OwnState::Taken { .. } | OwnState::Reassigned { .. } => {}
        },
        Output::Config(Some(config)) => {
            info!(revision = config.mod_revision, "network config written");
        }
        Output::Raised(alarm) => error!("{}", words::alarm(alarm)),
        Output::Cleared(alarm) => info!("no longer: {}", words::alarm(alarm)),
        Output::Config(None) | Output::List | Output::Watch | Output::Request(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::capture::Log;

    #[test]
    fn a_few_peers_have_a_line_each_and_many_have_one_together() {
        let lines = |count: u8| {
            let gone = |number| Output::Peer {
                subnet: format!("10.5.{number}.0/24").parse().unwrap(),
                lease: None,
            };
            let config = Output::Config(Some(ConfigText {
                text: "{}".to_owned(),
                mod_revision: 1,
            }));
            let changes: Vec<_> = (0..count).map(gone).chain([config]).collect();
            let log = Log::default();
            let _guard = log.capture();
            report(&changes);
            log.lines()
        };
        assert_eq!(lines(10).len(), 11);
        let [sum, config] = &lines(200)[..] else {
            panic!("{:?}", lines(200))
        };
        assert!(sum.ends_with("peer leases leased=0 gone=200"), "{sum}");
        assert!(config.contains("network config written"), "{config}");
    }
}
