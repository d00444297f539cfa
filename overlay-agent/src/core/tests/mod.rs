//! The state machine against a store in memory: days pass in microseconds.

mod absent_peers;
mod chaos;
mod own_lease;
mod peer_table;

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;
use overlay_common::addr::MacAddr;
use rand::{SeedableRng, rngs::StdRng};

use super::{
    Core, Expect, GRACE, Held, Input, OUTAGE, Output, Put, PutOutcome, REGISTRATION, Renewal,
    Snapshot, StoreRequest, WatchEvent, fake::MemoryStore,
};
use crate::model::{
    Alarm, ConfigText, LeaseAttrs, LeaseKey, OwnState, PeerLease, StoreError, ValueError,
};

const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
const HOUR: Duration = Duration::from_hours(1);
const RENEWAL: Renewal = Renewal {
    ttl: Renewal::TTL,
    margin: HOUR,
};

fn key(text: &str) -> LeaseKey {
    LeaseKey::parse(text).unwrap()
}

fn own_key() -> LeaseKey {
    key("10.3.7.0-24")
}

fn subnet(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn attrs() -> LeaseAttrs {
    LeaseAttrs::vxlan(NODE, 1, MAC)
}

fn config(text: &str) -> ConfigText {
    ConfigText {
        text: text.to_owned(),
        mod_revision: 1,
    }
}

fn away() -> StoreError {
    StoreError {
        reason: "switched off".to_owned(),
    }
}

/// One node, its store, and the wire between them.
struct Sim {
    store: MemoryStore,
    core: Core<StdRng>,
    now: Instant,
    /// Whether the store answers; the watch stands exactly as long.
    connected: bool,
    watching: Option<i64>,
    alarms: Vec<Alarm>,
    lists: usize,
    list_waits: bool,
    /// Requests are carried out at once, but their answers wait here while `late` is set.
    late: bool,
    answers: VecDeque<Input>,
    /// So many answers get lost on their way back.
    lose: usize,
    /// Every change of a peer, and when.
    changes: Vec<(Instant, IpNetwork, Option<PeerLease>)>,
}

impl Sim {
    /// A node that has just acquired 10.3.7.0/24.
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(prepare: impl FnOnce(&mut MemoryStore)) -> Self {
        let now = Instant::now();
        let mut store = MemoryStore::new(now);
        store.config = Some(config("{}"));
        prepare(&mut store);
        let snapshot = store.list();
        let put = Put {
            key: own_key(),
            attrs: attrs(),
            expect: match store.entry(&own_key()) {
                Some(entry) => entry.unchanged(),
                None => Expect::Absent,
            },
            ttl: match store.entry(&own_key()) {
                Some(entry) if entry.lease_id.is_none() => None,
                _ => Some(RENEWAL.ttl),
            },
        };
        let PutOutcome::Written {
            mod_revision,
            lease_id,
            ttl,
        } = store.put(&put)
        else {
            panic!("the record was free");
        };
        let held = Held {
            key: own_key(),
            attrs: attrs(),
            create_revision: store
                .entry(&own_key())
                .map_or(mod_revision, |entry| entry.create_revision),
            mod_revision,
            lease: lease_id.zip(ttl).map(|(id, ttl)| (id, now + ttl)),
        };
        let rng = StdRng::seed_from_u64(5);
        let mut sim = Self {
            core: Core::new(now, held, snapshot, RENEWAL, config("{}"), rng),
            store,
            now,
            connected: true,
            watching: None,
            alarms: Vec::new(),
            lists: 0,
            list_waits: false,
            late: false,
            answers: VecDeque::new(),
            lose: 0,
            changes: Vec::new(),
        };
        sim.give(Input::Start);
        sim.deliver();
        sim
    }

    /// One input, and everything that follows from it without time passing.
    fn give(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.core.handle(self.now, input) {
                match output {
                    Output::Watch => {
                        let revision = self.store.revision;
                        self.watching = Some(self.core.next_revision());
                        inputs.push_back(Input::Watch(WatchEvent::Opened { revision }));
                    }
                    Output::List if self.connected => {
                        self.lists += 1;
                        inputs.push_back(Input::Listed(self.store.list()));
                    }
                    Output::List => self.list_waits = true,
                    Output::Request(request) => {
                        let answer = self.answer(request);
                        if self.late {
                            self.answers.push_back(answer);
                        } else {
                            inputs.push_back(answer);
                        }
                    }
                    Output::Raised(alarm) => self.alarms.push(alarm),
                    Output::Cleared(alarm) => self.alarms.retain(|raised| *raised != alarm),
                    Output::Peer { subnet, lease } => {
                        self.changes.push((self.now, subnet, lease));
                    }
                    Output::Own(_) | Output::Config(_) => {}
                }
            }
        }
    }

    fn answer(&mut self, request: StoreRequest) -> Input {
        let carried_out = self.connected;
        let lost = carried_out && self.lose > 0;
        self.lose -= usize::from(lost);
        let arrives = carried_out && !lost;
        match request {
            StoreRequest::Put(put) => {
                let outcome = carried_out.then(|| {
                    self.check(&put);
                    self.store.put(&put)
                });
                Input::Written(outcome.filter(|_| arrives).ok_or_else(away))
            }
            StoreRequest::Get(key) => {
                let found = arrives.then(|| self.store.observe(&key));
                Input::Got(found.ok_or_else(away))
            }
            StoreRequest::TimeToLive(id) => {
                let left = arrives.then(|| self.store.time_to_live(id));
                Input::TimeToLive(left.ok_or_else(away))
            }
        }
    }

    /// What no write may ever do.
    fn check(&self, put: &Put) {
        assert_eq!(put.key, own_key(), "only the own record is written");
        let Some(entry) = self.store.entry(&put.key) else {
            return;
        };
        if put.expect == entry.unchanged() {
            let reservation = entry.lease_id.is_none();
            assert_eq!(put.ttl.is_none(), reservation, "a reservation stays one");
            let owner = entry.value.as_ref().map(|attrs| attrs.public_ip);
            assert_ne!(owner, Ok(OTHER), "another node's record is left alone");
        }
    }

    /// Delivers the answers that were held back.
    fn settle(&mut self) {
        self.late = false;
        while let Some(answer) = self.answers.pop_front() {
            self.give(answer);
        }
    }

    /// Delivers what the watch has to tell.
    fn deliver(&mut self) {
        while self.connected
            && let Some(from) = self.watching
        {
            let events = self.store.events(from);
            self.watching = Some(self.store.revision + 1);
            if events.is_empty() {
                break;
            }
            for event in events {
                self.give(Input::Watch(event));
            }
        }
    }

    /// Lets time pass, waking the machine when it asks for it.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let next = self.core.deadline().min(end);
            assert!(next > self.now, "the machine asks to be woken in the past");
            self.now = next;
            self.store.advance(next);
            self.deliver();
            self.give(Input::Tick);
        }
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.give(Input::Watch(WatchEvent::Disconnected(away())));
    }

    fn reconnect(&mut self) {
        self.connected = true;
        self.watching = Some(self.core.next_revision());
        let revision = self.store.revision;
        self.give(Input::Watch(WatchEvent::Opened { revision }));
        if std::mem::take(&mut self.list_waits) {
            self.lists += 1;
            self.give(Input::Listed(self.store.list()));
        }
        self.deliver();
    }

    /// Has the machine ask for a list, and returns the answer, which is still on its way.
    fn ask_for_a_list(&mut self) -> Snapshot {
        let revision = self.core.revision() - 1;
        let lagging = Input::Watch(WatchEvent::Opened { revision });
        let outputs = self.core.handle(self.now, lagging);
        assert!(outputs.contains(&Output::List), "{outputs:?}");
        if let Some(request) = outputs.into_iter().find_map(|output| match output {
            Output::Request(request) => Some(request),
            _ => None,
        }) {
            let answer = self.answer(request);
            self.give(answer);
        }
        self.store.list()
    }

    fn peers(&self) -> Vec<String> {
        let subnets = self.core.peers().keys();
        subnets.map(ToString::to_string).collect()
    }

    fn peer(&self, text: &str) -> Option<&PeerLease> {
        self.core.peers().get(&subnet(text))
    }

    fn state(&self) -> OwnState {
        self.core.own().state
    }

    fn stored(&self) -> Option<LeaseAttrs> {
        self.store.entry(&own_key())?.value.clone().ok()
    }
}

fn two_peers(store: &mut MemoryStore) {
    store.force(
        key("10.3.1.0-24"),
        LeaseAttrs::alloc(OTHER),
        Some(RENEWAL.ttl),
    );
    store.force(
        key("10.3.2.0-24"),
        LeaseAttrs::alloc([192, 168, 0, 3].into()),
        Some(RENEWAL.ttl),
    );
}
