//! The running node's leases as one state machine: what the store says goes in, requests and
//! changes come out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;
use rand::{Rng, RngCore};

use super::{
    absent::{GRACE, OUTAGE, REGISTRATION, Stay},
    own::{Held, Own, Renewal, StoreRequest},
    peers::{PeerChange, Peers},
    record::{PutOutcome, RecordState, Snapshot, WatchEvent},
};
use crate::model::{Alarm, ConfigText, LeaseAttrs, LeaseKey, OwnLease, PeerLease, StoreError};

/// Everything the machine reacts to.
#[derive(Clone, Debug)]
pub enum Input {
    Start,
    /// The answer to [`Output::List`].
    Listed(Snapshot),
    Watch(WatchEvent),
    Written(Result<PutOutcome, StoreError>),
    Got(Result<RecordState, StoreError>),
    TimeToLive(Result<Option<Duration>, StoreError>),
    /// The own record is to say this.
    Publish(LeaseAttrs),
    /// The daemon runs with this config.
    InForce(ConfigText),
    /// The machine slept for so long. The time given with this and with every later input counts it,
    /// and the watch may be dead without knowing.
    Slept(Duration),
    Tick,
}

/// Everything the machine asks for or reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// List all leases, trying until it succeeds.
    List,
    /// Watch from [`Core::next_revision`], in place of a watch that stands.
    Watch,
    Request(StoreRequest),
    Peer {
        subnet: IpNetwork,
        lease: Option<PeerLease>,
    },
    Own(OwnLease),
    Config(Option<ConfigText>),
    Raised(Alarm),
    Cleared(Alarm),
}

/// Leases are listed in full about this often, in case an event was lost.
const AUDIT: Duration = Duration::from_hours(1);

/// The state machine.
pub struct Core<R> {
    own: Own,
    peers: Peers,
    renewal: Renewal,
    rng: R,
    /// Every event up to here has been taken in.
    revision: i64,
    /// Events up to here were part of a list.
    listed: i64,
    /// The revision known when the list under way was asked for.
    asked: Option<i64>,
    /// Keys that events have told of since then, which the list may not know yet.
    overtaken: BTreeMap<LeaseKey, i64>,
    /// There is no watch to go on with after the list.
    unwatched: bool,
    /// Since when no watch stands.
    blind: Option<Instant>,
    now: Instant,
    audit: Instant,
    in_force: ConfigText,
    config: Option<ConfigText>,
    /// What is known of the network config is from here.
    config_revision: i64,
    /// The store shows signs of having lost its data.
    suspect: bool,
    /// It has, and peers it does not know are kept.
    reset: bool,
    shown: OwnLease,
    alarms: BTreeSet<Alarm>,
    out: Vec<Output>,
}

impl<R: RngCore> Core<R> {
    /// Starts from the acquired record and the list it was chosen from.
    pub fn new(
        now: Instant,
        held: Held,
        snapshot: Snapshot,
        renewal: Renewal,
        in_force: ConfigText,
        mut rng: R,
    ) -> Self {
        let key = held.key;
        let wanted = held.attrs.clone();
        let mut peers = Peers::new(key, wanted.node_ip());
        peers.replace(snapshot.entries, Stay::grace(now), |_| false);
        let own = Own::new(held, wanted, renewal, now);
        Self {
            peers,
            shown: own.lease(),
            own,
            renewal,
            revision: snapshot.revision,
            listed: snapshot.revision,
            asked: None,
            overtaken: BTreeMap::new(),
            unwatched: false,
            blind: Some(now),
            now,
            audit: now + audit_period(&mut rng),
            config: snapshot.config,
            config_revision: snapshot.revision,
            in_force,
            rng,
            suspect: false,
            reset: false,
            alarms: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    /// The peers known so far.
    pub fn peers(&self) -> &BTreeMap<IpNetwork, PeerLease> {
        self.peers.shown()
    }

    /// The network config as the store has it.
    pub fn config(&self) -> Option<&ConfigText> {
        self.config.as_ref()
    }

    /// Where a watch goes on.
    pub fn next_revision(&self) -> i64 {
        self.revision.saturating_add(1)
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn own(&self) -> OwnLease {
        self.own.lease()
    }

    /// When to send the next [`Input::Tick`].
    pub fn deadline(&self) -> Instant {
        let others = [self.own.deadline(self.now), self.peers.deadline()];
        others.into_iter().flatten().fold(self.audit, Instant::min)
    }

    /// Takes in one input and returns what follows from it.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        self.now = now;
        let was_failing = self.own.is_failing();
        match input {
            Input::Start => self.out.push(Output::Watch),
            Input::Listed(snapshot) => self.listed(now, snapshot),
            Input::Watch(event) => self.event(now, event),
            Input::Written(answer) => {
                if let Ok(PutOutcome::Conflict(observed)) = &answer {
                    self.compare(now, observed);
                }
                self.own.written(now, answer, &mut self.rng);
            }
            Input::Got(answer) => {
                if let Ok(observed) = &answer {
                    self.compare(now, observed);
                    if observed.entry.is_none() {
                        // It went while nobody watched. So may have those of nodes that, as this
                        // one, are alive.
                        self.peers.wait(now + REGISTRATION);
                    }
                }
                self.own.got(now, answer, &mut self.rng);
            }
            Input::TimeToLive(answer) => {
                // A wiped store that has seen many writes since does not show by its revision.
                if let Ok(left) = answer
                    && self.own.is_lost_too_early(now, left)
                {
                    self.suspect = true;
                    self.list(now);
                }
                self.own.time_to_live(now, &answer, &mut self.rng);
            }
            Input::Publish(attrs) => {
                let own_ip = attrs.node_ip();
                self.own.publish(attrs);
                let changes = self.peers.set_own_ip(own_ip);
                self.changed(changes);
            }
            Input::InForce(config) => self.in_force = config,
            Input::Slept(_) => self.lose_watch(now),
            Input::Tick => {
                let changes = self.peers.expire(now);
                self.changed(changes);
                if now >= self.audit {
                    self.list(now);
                }
            }
        }
        self.settle_absent(now, was_failing);
        self.own.give_way(self.rival());
        self.settle(now);
        std::mem::take(&mut self.out)
    }

    fn listed(&mut self, now: Instant, snapshot: Snapshot) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        let overtaken = std::mem::take(&mut self.overtaken);
        let reset = snapshot.revision < asked || self.suspect;
        self.suspect = false;
        if reset {
            self.own.store_reset();
            self.reset = true;
            self.revision = snapshot.revision;
            self.listed = snapshot.revision;
            self.config_revision = snapshot.revision;
        } else {
            self.revision = self.revision.max(snapshot.revision);
            self.listed = self.listed.max(snapshot.revision);
        }
        self.configured(snapshot.config, snapshot.revision);
        let own = self.own.key();
        let (mine, others) = snapshot
            .entries
            .into_iter()
            .partition::<Vec<_>, _>(|entry| entry.key == own);
        let observed = RecordState {
            revision: snapshot.revision,
            entry: mine.into_iter().next(),
        };
        self.own.observe(now, observed, &mut self.rng);
        let stay = if reset {
            Stay {
                until: now + self.renewal.ttl,
                store_reset: true,
            }
        } else {
            Stay::grace(now)
        };
        let listed = snapshot.revision;
        let changes = self.peers.replace(others, stay, |key| {
            !reset && overtaken.get(key).is_some_and(|told| *told > listed)
        });
        self.changed(changes);
        if reset || self.unwatched {
            self.unwatched = false;
            self.out.push(Output::Watch);
        }
    }

    fn event(&mut self, now: Instant, event: WatchEvent) {
        match event {
            WatchEvent::Opened { revision } => {
                self.own.reconnected();
                if let Some(since) = self.blind.take() {
                    let long = now.saturating_duration_since(since) >= OUTAGE;
                    self.peers
                        .wait(now + if long { REGISTRATION } else { GRACE });
                }
                // A store behind what it has told before has lost data, or this member lags: the
                // list, which asks the leader, tells.
                if revision < self.revision {
                    self.list(now);
                }
            }
            WatchEvent::Put(entry) => {
                let revision = entry.mod_revision;
                if self.is_news(entry.key, revision) {
                    if entry.key == self.own.key() {
                        let entry = Some(entry);
                        self.own
                            .observe(now, RecordState { revision, entry }, &mut self.rng);
                    } else {
                        let changes = self.peers.put(entry);
                        self.changed(changes);
                    }
                }
            }
            WatchEvent::Delete { key, revision } => {
                if self.is_news(key, revision) {
                    self.deleted(now, key, revision);
                }
            }
            WatchEvent::Config { config, revision } => self.configured(config, revision),
            WatchEvent::Progress { revision } => self.revision = self.revision.max(revision),
            WatchEvent::Compacted { .. } => self.lose_watch(now),
            WatchEvent::Disconnected(_) => {
                self.blind.get_or_insert(now);
            }
        }
    }

    /// There is no watch to go on with: the list tells what it would have told.
    fn lose_watch(&mut self, now: Instant) {
        self.unwatched = true;
        self.blind.get_or_insert(now);
        self.list(now);
    }

    /// The network config was this at a revision.
    fn configured(&mut self, config: Option<ConfigText>, revision: i64) {
        if revision < self.config_revision {
            return;
        }
        self.config_revision = revision;
        if self.config != config {
            self.config.clone_from(&config);
            self.out.push(Output::Config(config));
        }
    }

    fn deleted(&mut self, now: Instant, key: LeaseKey, revision: i64) {
        if key == self.own.key() {
            let entry = None;
            self.own
                .observe(now, RecordState { revision, entry }, &mut self.rng);
        } else {
            let change = self.peers.delete(&key, Stay::grace(now));
            self.changed(change);
        }
    }

    /// Lists if an answer shows that events were missed: the own record is gone without one, or
    /// the store went back in time.
    fn compare(&mut self, now: Instant, observed: &RecordState) {
        if observed.entry.is_none() || observed.revision < self.revision {
            self.list(now);
        }
    }

    fn is_news(&mut self, key: LeaseKey, revision: i64) -> bool {
        self.revision = self.revision.max(revision);
        let is_news = revision > self.listed;
        if is_news && self.asked.is_some() {
            self.overtaken.insert(key, revision);
        }
        is_news
    }

    fn list(&mut self, now: Instant) {
        self.audit = now + audit_period(&mut self.rng);
        if self.asked.is_none() {
            self.asked = Some(self.revision);
            self.out.push(Output::List);
        }
    }

    /// Who has a subnet of this node's and had it first. A watch that is behind the own record tells of what was
    /// there before it; what was there beside it has been looked for when it was written.
    fn rival(&self) -> Option<IpAddr> {
        let created = self.own.create_revision();
        let is_behind = created.is_some_and(|created| self.revision < created);
        if is_behind {
            return None;
        }
        self.peers.rival(created)
    }

    fn changed(&mut self, changes: impl IntoIterator<Item = PeerChange>) {
        let outputs = changes
            .into_iter()
            .map(|(subnet, lease)| Output::Peer { subnet, lease });
        self.out.extend(outputs);
    }

    /// Without a watch nobody is seen to come back, and while this node cannot write its record,
    /// others may not be able to, either.
    fn settle_absent(&mut self, now: Instant, was_failing: bool) {
        let failing = self.own.is_failing();
        if was_failing && !failing {
            self.peers.wait(now + REGISTRATION);
        }
        self.peers.hold(failing || self.blind.is_some());
    }

    fn settle(&mut self, now: Instant) {
        let request = self.own.poll(now);
        self.out.extend(request.map(Output::Request));
        let own = self.own.lease();
        if own != self.shown {
            self.shown = own.clone();
            self.out.push(Output::Own(own));
        }
        let alarms = self.current_alarms(now);
        let raised = alarms.difference(&self.alarms).cloned();
        let cleared = self.alarms.difference(&alarms).cloned();
        self.out.extend(cleared.map(Output::Cleared));
        self.out.extend(raised.map(Output::Raised));
        self.alarms = alarms;
    }

    fn current_alarms(&mut self, now: Instant) -> BTreeSet<Alarm> {
        let mut alarms: BTreeSet<_> = self.own.alarms(now).into_iter().collect();
        alarms.extend(self.peers.alarms().cloned());
        let absent_peers = self.peers.lost();
        self.reset &= absent_peers > 0;
        if self.reset {
            alarms.insert(Alarm::StoreReset { absent_peers });
        }
        match &self.config {
            None => drop(alarms.insert(Alarm::ConfigMissing)),
            Some(config) if config.text != self.in_force.text => {
                alarms.insert(Alarm::ConfigChanged);
            }
            Some(_) => {}
        }
        alarms
    }
}

/// Spread over half of the period, so that the nodes of a cluster do not list in step.
fn audit_period(rng: &mut dyn RngCore) -> Duration {
    AUDIT.mul_f64(rng.random_range(0.75..=1.25))
}
