//! The state machine against a store in memory: days pass in microseconds.

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;
use rand::{SeedableRng, rngs::StdRng};

use super::{Alarm, Core, Held, Input, Output, OwnState, PeerLease, Renewal, Request};
use crate::lease::{
    ConfigText, Expect, LeaseAttrs, LeaseKey, Put, PutOutcome, Snapshot, ValueError, WatchEvent,
    fake::{State, away},
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

fn subnet(text: &str) -> Ipv4Network {
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

/// One node, its store, and the wire between them.
struct Sim {
    store: State,
    core: Core<StdRng>,
    now: Instant,
    /// Whether the store answers; the watch stands exactly as long.
    connected: bool,
    watching: Option<i64>,
    alarms: Vec<Alarm>,
    lists: usize,
    list_waits: bool,
}

impl Sim {
    /// A node that has just acquired 10.3.7.0/24.
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(prepare: impl FnOnce(&mut State)) -> Self {
        let now = Instant::now();
        let mut store = State::new(now);
        prepare(&mut store);
        let snapshot = store.list();
        let put = Put {
            key: own_key(),
            attrs: attrs(),
            expect: match store.entry(&own_key()) {
                Some(entry) => Expect::ModRevision(entry.mod_revision),
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
                    Output::Request(request) => inputs.push_back(self.answer(request)),
                    Output::Raised(alarm) => self.alarms.push(alarm),
                    Output::Cleared(alarm) => self.alarms.retain(|raised| *raised != alarm),
                    Output::Peer { .. } | Output::Own(_) | Output::Config(_) => {}
                }
            }
        }
    }

    fn answer(&mut self, request: Request) -> Input {
        let up = self.connected;
        let refuse = || away();
        match request {
            Request::Put(put) if up => Input::Written(Ok(self.store.put(&put))),
            Request::Get(key) if up => Input::Got(Ok(self.store.observe(&key))),
            Request::TimeToLive(id) if up => Input::TimeToLive(Ok(self.store.time_to_live(id))),
            Request::Put(_) => Input::Written(Err(refuse())),
            Request::Get(_) => Input::Got(Err(refuse())),
            Request::TimeToLive(_) => Input::TimeToLive(Err(refuse())),
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

fn two_peers(store: &mut State) {
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

#[test]
fn a_month_of_renewals_keeps_the_lease_with_one_write_in_23_hours() {
    let mut sim = Sim::new();
    sim.pass(30 * 24 * HOUR);
    assert_eq!(sim.stored(), Some(attrs()));
    assert_eq!(sim.store.puts, 1 + 30 * 24 / 23);
    assert_eq!(sim.state(), OwnState::Held);
    assert_eq!(sim.alarms, []);
}

#[test]
fn a_margin_as_long_as_the_lease_does_not_renew_without_pause() {
    let held = Held {
        key: own_key(),
        attrs: attrs(),
        mod_revision: 2,
        lease: Some((1, Instant::now() + RENEWAL.ttl)),
    };
    let now = Instant::now();
    let renewal = Renewal {
        ttl: RENEWAL.ttl,
        margin: RENEWAL.ttl,
    };
    let rng = StdRng::seed_from_u64(5);
    let core = Core::new(now, held, Snapshot::default(), renewal, config("{}"), rng);
    assert!(core.deadline() >= now + Duration::from_secs(10));
}

#[test]
fn a_renewal_that_fails_is_repeated_until_etcd_is_back() {
    let mut sim = Sim::new();
    sim.disconnect();
    sim.pass(23 * HOUR + HOUR / 2);
    assert_eq!(sim.alarms, []);
    sim.reconnect();
    sim.pass(HOUR);
    assert_eq!(sim.stored(), Some(attrs()));
    assert_eq!(sim.state(), OwnState::Held);
}

#[test]
fn a_lease_that_ran_out_while_etcd_was_away_is_reported_and_written_again() {
    let mut sim = Sim::with(two_peers);
    sim.disconnect();
    sim.pass(25 * HOUR);
    assert_eq!(sim.peers().len(), 2, "peers stay while etcd is away");
    assert_eq!(
        sim.alarms,
        [Alarm::Overdue {
            subnet: subnet("10.3.7.0/24")
        }]
    );
    assert_eq!(sim.stored(), None);
    sim.reconnect();
    assert_eq!(sim.stored(), Some(attrs()));
    assert_eq!(sim.alarms, []);
    assert!(sim.peers().is_empty(), "the peers' leases ran out too");
}

#[test]
fn a_write_that_timed_out_but_was_applied_is_recognised() {
    let mut sim = Sim::new();
    sim.disconnect();
    sim.pass(23 * HOUR + HOUR / 2);
    // The renewal reached the store, its answer did not reach us.
    sim.store.force(own_key(), attrs(), Some(RENEWAL.ttl));
    let puts = sim.store.puts;
    sim.reconnect();
    assert_eq!(sim.state(), OwnState::Held);
    assert_eq!(sim.store.puts, puts, "nothing is written twice");
    let left = sim.core.own().expires.unwrap() - sim.now;
    assert_eq!(left, RENEWAL.ttl, "the end is asked for");
}

#[test]
fn a_deleted_lease_is_written_again_at_once() {
    let mut sim = Sim::new();
    sim.store.remove(&own_key());
    sim.deliver();
    assert_eq!(sim.stored(), Some(attrs()));
    assert_eq!(sim.state(), OwnState::Held);
}

#[test]
fn a_taken_lease_is_neither_renewed_nor_fought_for() {
    let mut sim = Sim::new();
    sim.store
        .force(own_key(), LeaseAttrs::alloc(OTHER), Some(48 * HOUR));
    let puts = sim.store.puts;
    sim.deliver();
    assert_eq!(sim.state(), OwnState::Taken { by: OTHER });
    assert_eq!(
        sim.alarms,
        [Alarm::Taken {
            subnet: subnet("10.3.7.0/24"),
            by: OTHER
        }]
    );
    sim.pass(47 * HOUR);
    assert_eq!(sim.store.puts, puts);
    assert!(sim.peers().is_empty(), "the own subnet is no peer's");
    sim.pass(2 * HOUR);
    assert_eq!(sim.stored(), Some(attrs()), "taken back when it ran out");
    assert_eq!(sim.alarms, []);
}

#[test]
fn a_lease_taken_while_etcd_was_away_is_given_up_at_reconnection() {
    let mut sim = Sim::new();
    sim.disconnect();
    sim.pass(HOUR);
    sim.store
        .force(own_key(), LeaseAttrs::alloc(OTHER), Some(RENEWAL.ttl));
    sim.reconnect();
    assert_eq!(sim.state(), OwnState::Taken { by: OTHER });
    assert_eq!(sim.stored(), Some(LeaseAttrs::alloc(OTHER)));
}

#[test]
fn a_renewal_that_meets_another_node_gives_up() {
    let mut sim = Sim::new();
    // The event is late: the renewal is the first to see the other node.
    sim.connected = false;
    sim.store
        .force(own_key(), LeaseAttrs::alloc(OTHER), Some(48 * HOUR));
    sim.pass(22 * HOUR);
    sim.connected = true;
    sim.watching = None;
    sim.pass(2 * HOUR);
    assert_eq!(sim.state(), OwnState::Taken { by: OTHER });
    assert_eq!(sim.stored(), Some(LeaseAttrs::alloc(OTHER)));
}

#[test]
fn a_value_spoilt_by_hand_is_put_right() {
    let mut sim = Sim::new();
    let junk = Err(ValueError {
        reason: "junk".to_owned(),
    });
    sim.store.write(own_key(), junk, None);
    sim.deliver();
    assert_eq!(sim.stored(), Some(attrs()));
    assert!(sim.core.own().reservation);
}

#[test]
fn a_reservation_is_written_without_a_lease_and_never_renewed() {
    let mut sim = Sim::with(|store| {
        store.force(own_key(), LeaseAttrs::alloc(NODE), None);
    });
    assert!(sim.core.own().reservation);
    let puts = sim.store.puts;
    sim.pass(100 * HOUR);
    assert_eq!(sim.store.puts, puts);
    assert_eq!(sim.stored(), Some(attrs()));
    assert_eq!(sim.store.entry(&own_key()).unwrap().lease_id, None);
}

#[test]
fn a_running_node_accepts_that_its_lease_becomes_a_reservation() {
    let mut sim = Sim::new();
    sim.store.force(own_key(), LeaseAttrs::alloc(NODE), None);
    sim.deliver();
    assert!(sim.core.own().reservation);
    assert_eq!(sim.stored(), Some(attrs()), "the value is completed");
    sim.pass(100 * HOUR);
    assert_eq!(sim.store.entry(&own_key()).unwrap().lease_id, None);
}

#[test]
fn two_nodes_with_one_public_ip_are_reported_and_do_not_flood_etcd() {
    let mut sim = Sim::new();
    let twin = LeaseAttrs::vxlan(NODE, 1, MacAddr::new([2, 0, 0, 0, 0, 9]));
    for _ in 0..600 {
        if sim.stored() != Some(twin.clone()) {
            sim.store.force(own_key(), twin.clone(), Some(RENEWAL.ttl));
            sim.deliver();
        }
        sim.pass(Duration::from_secs(1));
    }
    assert!(sim.store.puts < 20, "{} writes", sim.store.puts);
    assert_eq!(
        sim.alarms,
        [Alarm::Contended {
            subnet: subnet("10.3.7.0/24")
        }]
    );
    sim.pass(HOUR);
    assert_eq!(sim.alarms, []);
    assert_eq!(sim.stored(), Some(attrs()));
}

#[test]
fn a_changed_address_is_published_under_the_same_key() {
    let mut sim = Sim::new();
    let moved = LeaseAttrs::vxlan([192, 168, 0, 77].into(), 1, MAC);
    sim.give(Input::Publish(moved.clone()));
    assert_eq!(sim.stored(), Some(moved));
    assert_eq!(sim.store.list().entries.len(), 1);
    sim.deliver();
    assert_eq!(sim.state(), OwnState::Held);
    assert_eq!(sim.alarms, []);
}

#[test]
fn an_address_that_changes_while_etcd_is_away_is_published_when_it_is_back() {
    let mut sim = Sim::new();
    sim.disconnect();
    let moved = LeaseAttrs::vxlan([192, 168, 0, 77].into(), 1, MAC);
    sim.give(Input::Publish(moved.clone()));
    sim.pass(HOUR);
    sim.reconnect();
    assert_eq!(sim.stored(), Some(moved));
    assert_eq!(sim.state(), OwnState::Held);
}

#[test]
fn peers_come_change_and_go_with_the_watch() {
    let mut sim = Sim::with(two_peers);
    assert_eq!(sim.peers(), ["10.3.1.0/24", "10.3.2.0/24"]);
    let moved = LeaseAttrs::host_gw([192, 168, 0, 33].into());
    sim.store
        .force(key("10.3.2.0-24"), moved.clone(), Some(RENEWAL.ttl));
    sim.store.remove(&key("10.3.1.0-24"));
    sim.deliver();
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
    assert_eq!(sim.peer("10.3.2.0/24").unwrap().attrs, moved);
}

#[test]
fn a_peers_plain_renewal_is_no_change() {
    let mut sim = Sim::with(two_peers);
    let renewed = sim
        .store
        .force(key("10.3.1.0-24"), LeaseAttrs::alloc(OTHER), None);
    let entry = sim.store.entry(&key("10.3.1.0-24")).unwrap().clone();
    assert_eq!(entry.mod_revision, renewed);
    let outputs = sim
        .core
        .handle(sim.now, Input::Watch(WatchEvent::Put(entry)));
    assert_eq!(outputs, []);
}

#[test]
fn a_compacted_watch_is_replaced_and_every_changed_attribute_is_seen() {
    let mut sim = Sim::with(two_peers);
    sim.disconnect();
    let moved = LeaseAttrs::alloc([192, 168, 0, 33].into());
    sim.store
        .force(key("10.3.2.0-24"), moved.clone(), Some(RENEWAL.ttl));
    sim.store.remove(&key("10.3.1.0-24"));
    sim.store
        .force(key("10.3.4.0-24"), LeaseAttrs::alloc(OTHER), None);
    sim.store.compact();
    sim.reconnect();
    assert_eq!(sim.lists, 1);
    assert_eq!(sim.peers(), ["10.3.2.0/24", "10.3.4.0/24"]);
    assert_eq!(sim.peer("10.3.2.0/24").unwrap().attrs, moved);
    // The watch goes on behind the list.
    sim.store.remove(&key("10.3.4.0-24"));
    sim.deliver();
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
    assert_eq!(sim.alarms, []);
}

#[test]
fn a_store_without_its_data_gets_the_own_lease_and_takes_no_peer_away() {
    let mut sim = Sim::with(two_peers);
    sim.disconnect();
    sim.pass(HOUR);
    sim.store.wipe();
    sim.reconnect();
    assert_eq!(sim.stored(), Some(attrs()));
    assert_eq!(sim.peers(), ["10.3.1.0/24", "10.3.2.0/24"]);
    assert_eq!(sim.alarms, [Alarm::StoreReset { absent_peers: 2 }]);
    // One comes back, the other never does.
    let moved = LeaseAttrs::alloc([192, 168, 0, 33].into());
    sim.store
        .force(key("10.3.1.0-24"), moved.clone(), Some(48 * HOUR));
    sim.deliver();
    assert_eq!(sim.peer("10.3.1.0/24").unwrap().attrs, moved);
    assert_eq!(sim.alarms, [Alarm::StoreReset { absent_peers: 1 }]);
    sim.pass(25 * HOUR);
    assert_eq!(sim.peers(), ["10.3.1.0/24"]);
    assert_eq!(sim.alarms, []);
}

#[test]
fn a_wiped_store_is_recognised_even_when_its_revision_has_passed_the_old_one() {
    let mut sim = Sim::with(two_peers);
    sim.disconnect();
    sim.pass(HOUR);
    sim.store.wipe();
    for _ in 0..50 {
        sim.store.set_config(Some("{}"));
    }
    sim.reconnect();
    assert_eq!(sim.stored(), Some(attrs()));
    assert_eq!(sim.peers(), ["10.3.1.0/24", "10.3.2.0/24"]);
    assert_eq!(sim.alarms, [Alarm::StoreReset { absent_peers: 2 }]);
}

#[test]
fn a_subnet_another_node_took_after_the_loss_of_data_belongs_to_that_node() {
    let mut sim = Sim::with(two_peers);
    sim.disconnect();
    sim.store.wipe();
    let newcomer = LeaseAttrs::alloc([192, 168, 0, 50].into());
    sim.store
        .force(key("10.3.1.0-24"), newcomer.clone(), Some(48 * HOUR));
    sim.reconnect();
    assert_eq!(sim.peer("10.3.1.0/24").unwrap().attrs, newcomer);
}

#[test]
fn a_member_that_lags_behind_is_no_loss_of_data() {
    let mut sim = Sim::with(two_peers);
    let revision = sim.store.revision - 1;
    sim.give(Input::Watch(WatchEvent::Opened { revision }));
    assert_eq!(sim.lists, 1);
    assert_eq!(sim.alarms, []);
    assert_eq!(sim.peers().len(), 2);
}

#[test]
fn a_list_that_events_have_overtaken_brings_nothing_back() {
    let mut sim = Sim::with(two_peers);
    let old = sim.store.list();
    let outputs = sim.core.handle(
        sim.now,
        Input::Watch(WatchEvent::Opened {
            revision: sim.store.revision - 1,
        }),
    );
    assert!(outputs.contains(&Output::List), "{outputs:?}");
    sim.store.remove(&key("10.3.1.0-24"));
    sim.deliver();
    sim.give(Input::Listed(old));
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
    assert_eq!(sim.alarms, []);
}

#[test]
fn events_that_a_list_already_contained_change_nothing() {
    let mut sim = Sim::with(two_peers);
    let stale = sim.store.entry(&key("10.3.1.0-24")).unwrap().clone();
    sim.store.remove(&key("10.3.1.0-24"));
    sim.store.compact();
    sim.watching = Some(1);
    sim.deliver();
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
    sim.give(Input::Watch(WatchEvent::Put(stale)));
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
}

#[test]
fn lists_are_repeated_about_hourly_in_case_an_event_was_lost() {
    let mut sim = Sim::with(two_peers);
    sim.store.remove(&key("10.3.1.0-24"));
    sim.watching = Some(sim.store.revision + 1);
    sim.pass(2 * HOUR);
    assert!((1..=2).contains(&sim.lists), "{} lists", sim.lists);
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
}

#[test]
fn leases_that_overlap_the_own_subnet_are_reported_and_not_routed() {
    for other in ["10.3.7.128-25", "10.3.0.0-16"] {
        let mut sim = Sim::with(|store| {
            store.force(key(other), LeaseAttrs::alloc(OTHER), None);
        });
        assert!(sim.peers().is_empty(), "{other}");
        assert!(
            matches!(sim.alarms[..], [Alarm::Overlap { by: OTHER, .. }]),
            "{:?}",
            sim.alarms
        );
        sim.store.remove(&key(other));
        sim.deliver();
        assert_eq!(sim.alarms, []);
    }
}

#[test]
fn a_second_record_of_the_own_public_ip_is_reported_and_not_routed() {
    let mut sim = Sim::with(|store| {
        store.force(key("10.3.1.0-24"), LeaseAttrs::alloc(NODE), None);
    });
    assert!(sim.peers().is_empty());
    assert!(
        matches!(sim.alarms[..], [Alarm::SecondRecord { .. }]),
        "{:?}",
        sim.alarms
    );
    // With an address of its own, the node's other record is somebody else's.
    let moved = LeaseAttrs::vxlan([192, 168, 0, 77].into(), 1, MAC);
    sim.give(Input::Publish(moved));
    assert_eq!(sim.peers(), ["10.3.1.0/24"]);
    assert_eq!(sim.alarms, []);
}

#[test]
fn a_record_that_cannot_be_read_leaves_the_peer_as_it_was() {
    let mut sim = Sim::with(two_peers);
    let junk = Err(ValueError {
        reason: "junk".to_owned(),
    });
    sim.store.write(key("10.3.1.0-24"), junk, None);
    sim.deliver();
    assert_eq!(sim.peer("10.3.1.0/24").unwrap().attrs.public_ip, OTHER);
}

#[test]
fn a_peer_without_an_address_is_not_routed() {
    let mut sim = Sim::new();
    let nowhere = LeaseAttrs::alloc(Ipv4Addr::UNSPECIFIED);
    sim.store.force(key("10.3.1.0-24"), nowhere, None);
    sim.deliver();
    assert!(sim.peers().is_empty());
    assert_eq!(sim.alarms, []);
}

#[test]
fn of_two_keys_for_one_subnet_the_one_written_last_counts() {
    let mut sim = Sim::new();
    let dual = key("10.3.1.0-24&fd00:1::-64");
    sim.store
        .force(key("10.3.1.0-24"), LeaseAttrs::alloc(OTHER), None);
    let newer = LeaseAttrs::alloc([192, 168, 0, 3].into());
    sim.store.force(dual, newer.clone(), None);
    sim.deliver();
    assert_eq!(sim.peer("10.3.1.0/24").unwrap().attrs, newer);
    sim.store.remove(&dual);
    sim.deliver();
    assert_eq!(sim.peer("10.3.1.0/24").unwrap().attrs.public_ip, OTHER);
}

#[test]
fn a_changed_or_missing_network_config_is_reported_until_it_is_in_force_again() {
    let mut sim = Sim::new();
    sim.store.set_config(Some("{ }"));
    sim.deliver();
    assert_eq!(sim.alarms, [Alarm::ConfigChanged]);
    sim.store.set_config(None);
    sim.deliver();
    assert_eq!(sim.alarms, [Alarm::ConfigMissing]);
    sim.store.set_config(Some("{}"));
    sim.deliver();
    assert_eq!(sim.alarms, []);
    sim.store.set_config(Some("{ }"));
    sim.deliver();
    sim.give(Input::InForce(config("{ }")));
    assert_eq!(sim.alarms, []);
}
