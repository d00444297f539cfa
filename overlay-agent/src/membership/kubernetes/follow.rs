//! Keeps the view of the leases as the Nodes are, and this node's annotations as they have to be.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::jiff::Timestamp;
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    annotations::Prefix,
    api::{ApiError, Change, Listing, NodeApi},
    config_file::ConfigFile,
    feed::{Ask, Feed, Heard},
    node::{Node, annotate, network_is_up},
    nodes::{self, Nodes},
};
use crate::{
    backoff::Backoff,
    complaints::Complaints,
    membership::{
        Allocation,
        member::{Member, Order},
    },
    model::{
        ConfigText, LeaseAttrs, LeaseKey, LeaseTable, LeaseView, OwnLease, OwnState, StoreState,
    },
};

/// How often the network config is looked at.
const PERIOD: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Messages that wait for the node; a list is one.
const QUEUE: usize = 64;

/// What a node joins with.
pub struct Joined<A> {
    pub api: Arc<A>,
    pub prefix: Prefix,
    pub config_file: Arc<ConfigFile>,
    pub own: LeaseKey,
    /// This node's, as it was last.
    pub node: Node,
    pub attrs: LeaseAttrs,
    pub network: Allocation,
    /// The network config the daemon runs with.
    pub in_force: ConfigText,
    /// Clear the condition once the node has started.
    pub set_condition: bool,
}

/// What follows the Nodes for one node.
pub struct Follower<A> {
    joined: Joined<A>,
    nodes: Nodes,
    view: watch::Sender<LeaseView>,
    asks: mpsc::UnboundedSender<Ask>,
    has_started: bool,
    /// The Node whose condition was cleared; once is enough, should somebody else want it otherwise.
    cleared: Option<String>,
    write: Option<Write>,
    backoff: Backoff,
    /// No write before.
    not_before: Instant,
    rng: StdRng,
    complaints: Complaints,
    /// Why nothing is heard, since it is so: each cause is logged once.
    causes: BTreeSet<String>,
}

/// A write that is under way.
struct Write {
    answer: BoxFuture<'static, Result<Node, ApiError>>,
    /// The Node whose condition it clears.
    clears: Option<String>,
}

impl<A: NodeApi> Follower<A> {
    /// Begins to follow, from what was listed.
    pub fn spawn(joined: Joined<A>, listing: Listing, stop: CancellationToken) -> Member {
        let (name, own) = (joined.node.name.clone(), joined.own);
        let mut nodes = Nodes::new(name, own, joined.attrs.node_ip());
        let mut peers = LeaseTable::default();
        apply(&mut peers, nodes.list(listing.nodes));
        nodes.put(joined.node.clone());
        info!(node = joined.node.name, lease = %own, peers = peers.len(), "lease read from the Node");
        let (view, receiver) = watch::channel(LeaseView {
            own: OwnLease {
                key: own,
                expires: None,
                reservation: true,
                state: OwnState::Held,
            },
            peers,
            store: StoreState {
                connected: true,
                last_error: None,
                revision: revision(&listing.version),
            },
            config: Some(joined.in_force.clone()),
            alarms: BTreeSet::new(),
        });
        let (member, inbox) = Member::new(receiver);
        let (sender, heard) = mpsc::channel(QUEUE);
        let (asks, asked) = mpsc::unbounded_channel();
        let feed = Feed::new(Arc::clone(&joined.api), listing.version, sender, asked);
        let follower = Self {
            joined,
            nodes,
            view,
            asks,
            has_started: false,
            cleared: None,
            write: None,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            not_before: Instant::now(),
            rng: StdRng::from_rng(&mut rand::rng()),
            complaints: Complaints::default(),
            causes: BTreeSet::new(),
        };
        tokio::spawn(async move {
            let both = async { tokio::join!(feed.run(), follower.run(heard, inbox)) };
            stop.run_until_cancelled(both).await;
        });
        member
    }

    async fn run(
        mut self,
        mut heard: mpsc::Receiver<Heard>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.settle();
            let not_before = self.not_before;
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(order) => self.obey(order),
                },
                said = heard.recv() => match said {
                    None => return,
                    Some(said) => self.hear(said),
                },
                answer = answer(&mut self.write) => self.take_answer(answer),
                () = sleep_until(not_before), if not_before > Instant::now() => {}
                _ = period.tick() => self.look_at_config().await,
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Publish(attrs) => {
                let changes = self.nodes.set_own_ip(attrs.node_ip());
                self.joined.attrs = attrs;
                self.show(changes);
            }
            Order::InForce(config) => self.joined.in_force = config,
            Order::Started => self.has_started = true,
            Order::Slept(_) => self.ask(Ask::Reconnect),
        }
    }

    fn hear(&mut self, heard: Heard) {
        let (version, changes) = match heard {
            Heard::Listed(listing) => (listing.version, self.nodes.list(listing.nodes)),
            Heard::Changed(Change::Put(node)) => (node.version.clone(), self.nodes.put(node)),
            Heard::Changed(Change::Deleted(node)) => {
                let changes = self.nodes.delete(&node);
                (node.version, changes)
            }
            Heard::Changed(Change::Reached(version)) => (version, Vec::new()),
            Heard::Watching => {
                self.causes.clear();
                self.view.send_if_modified(|view| {
                    let changed = !view.store.connected;
                    view.store.connected = true;
                    if changed {
                        info!("the API server tells of changes again");
                    }
                    changed
                });
                return;
            }
            Heard::Lost(problem) => {
                if self.causes.insert(problem.clone()) {
                    warn!(
                        "no changes from the API server, trying on; everything stays as it was: {problem}"
                    );
                }
                self.view.send_if_modified(|view| {
                    let changed =
                        view.store.connected || view.store.last_error.as_ref() != Some(&problem);
                    view.store.connected = false;
                    view.store.last_error = Some(problem);
                    changed
                });
                return;
            }
        };
        self.show(changes);
        // Nobody waits for the number alone.
        self.view.send_if_modified(|view| {
            view.store.revision = revision(&version);
            false
        });
        if self.nodes.wants_list() {
            self.ask(Ask::List);
        }
        for problem in self.nodes.take_problems() {
            warn!("{problem}");
        }
    }

    fn show(&self, changes: Vec<nodes::Change>) {
        self.view
            .send_if_modified(|view| apply(&mut view.peers, changes));
    }

    /// What the store says of this node.
    fn own_state(&self) -> OwnState {
        let Joined {
            prefix,
            attrs,
            network,
            own,
            ..
        } = &self.joined;
        let Some(node) = self.nodes.own_node() else {
            return OwnState::Lost;
        };
        match node.own_key(network) {
            Ok(key) if key == *own => {}
            other => return OwnState::Reassigned { to: other.ok() },
        }
        if prefix.missing(&node.said, attrs).is_empty() {
            OwnState::Held
        } else {
            OwnState::Lost
        }
    }

    /// Has the view say how this node stands, and the Node what this node is.
    fn settle(&mut self) {
        let state = self.own_state();
        self.view.send_if_modified(|view| {
            let changed = view.own.state != state;
            view.own.state = state;
            changed
        });
        if self.write.is_some() || self.not_before > Instant::now() {
            return;
        }
        let Some((patch, clears)) = self.due() else {
            return;
        };
        let (api, name) = (Arc::clone(&self.joined.api), self.joined.node.name.clone());
        let answer = async move { api.patch(&name, &patch).await };
        self.write = Some(Write {
            answer: answer.boxed(),
            clears,
        });
    }

    /// What has to be written, and the Node whose condition that clears.
    fn due(&self) -> Option<(Value, Option<String>)> {
        let node = self.nodes.own_node()?;
        let Joined { prefix, attrs, .. } = &self.joined;
        let missing = prefix.missing(&node.said, attrs);
        if !missing.is_empty() {
            return Some((annotate(&missing), None));
        }
        let clear = self.joined.set_condition && self.has_started && !node.is_up;
        if !clear || self.cleared.as_ref() == Some(&node.uid) {
            return None;
        }
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        Some((network_is_up(&now), Some(node.uid.clone())))
    }

    fn take_answer(&mut self, answer: Result<Node, ApiError>) {
        let clears = self.write.take().and_then(|write| write.clears);
        match answer {
            Ok(node) => {
                self.backoff.succeeded();
                self.complaints.news([]);
                if let Some(uid) = clears {
                    info!("the condition NetworkUnavailable of this node is cleared");
                    self.cleared = Some(uid);
                } else {
                    info!("annotations of this node written");
                }
                self.nodes.put(node);
            }
            Err(error) => {
                self.not_before = Instant::now() + self.backoff.failed(&mut self.rng);
                let problem = format!("cannot write to the Node of this node, trying on: {error}");
                for problem in self.complaints.news([&problem]) {
                    warn!("{problem}");
                }
            }
        }
    }

    async fn look_at_config(&mut self) {
        // While it cannot be read, the last one counts.
        let Ok(Some(config)) = self.joined.config_file.read().await else {
            return;
        };
        let differs = config.text != self.joined.in_force.text;
        let changed = self.view.send_if_modified(|view| {
            let changed = view.config.as_ref() != Some(&config);
            view.config = Some(config);
            changed
        });
        if differs && changed {
            warn!(
                "{} differs from the network config in force; reload the daemon (SIGHUP) to apply what a running \
                 node can take over, or restart it",
                self.joined.config_file.place()
            );
        }
    }

    fn ask(&self, ask: Ask) {
        // The feed ends only when this does.
        let _ = self.asks.send(ask);
    }
}

/// The answer to what is being written; never, if nothing is.
async fn answer(write: &mut Option<Write>) -> Result<Node, ApiError> {
    match write {
        Some(write) => (&mut write.answer).await,
        None => std::future::pending().await,
    }
}

/// Takes over what differs. True if something did.
fn apply(peers: &mut LeaseTable, changes: Vec<nodes::Change>) -> bool {
    let mut differs = false;
    for (subnet, lease) in changes {
        if peers.get(&subnet) == lease.as_ref() {
            continue;
        }
        differs = true;
        match lease {
            Some(lease) => peers.insert(subnet, lease),
            None => peers.remove(&subnet),
        }
    }
    differs
}

/// The version as a number, which it is in practice.
fn revision(version: &str) -> i64 {
    version.parse().unwrap_or_default()
}
