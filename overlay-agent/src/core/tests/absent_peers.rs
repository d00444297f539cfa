//! A peer whose record is gone is not gone yet.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const PEER: &str = "10.3.1.0-24";

fn mac(n: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 1, n])
}

/// The record of a node of its own.
fn node(n: u8) -> LeaseAttrs {
    LeaseAttrs::vxlan([192, 168, 0, n].into(), 1, mac(n))
}

fn one_peer() -> Sim {
    Sim::with(|store| {
        store.force(key(PEER), node(2), Some(RENEWAL.ttl));
    })
}

impl Sim {
    fn write(&mut self, at: &str, attrs: LeaseAttrs) {
        self.store.force(key(at), attrs, Some(RENEWAL.ttl));
        self.deliver();
    }

    fn delete(&mut self, at: &str) {
        self.store.remove(&key(at));
        self.deliver();
    }

    /// The watch breaks, and stands again that much later.
    fn outage(&mut self, lasts: Duration) {
        self.disconnect();
        self.pass(lasts);
        self.reconnect();
    }
}

#[test]
fn a_record_that_is_written_again_within_the_grace_was_never_gone() {
    let mut sim = one_peer();
    for pause in [0, 50, 1999] {
        sim.delete(PEER);
        sim.pass(Duration::from_millis(pause));
        sim.write(PEER, node(2));
        sim.pass(3 * GRACE);
    }
    assert_eq!(sim.changes, [], "nothing is to be touched");
    assert_eq!(sim.peers(), ["10.3.1.0/24"]);
}

#[test]
fn a_record_that_stays_away_is_gone_after_the_grace_and_not_before() {
    let mut sim = one_peer();
    sim.delete(PEER);
    sim.pass(GRACE.saturating_sub(Duration::from_millis(1)));
    assert_eq!(sim.changes, []);
    sim.pass(Duration::from_millis(1));
    assert_eq!(sim.changes, [(sim.now, subnet("10.3.1.0/24"), None)]);
    // It is a peer like any other if it comes back later.
    sim.write(PEER, node(2));
    assert_eq!(sim.peers(), ["10.3.1.0/24"]);
}

#[test]
fn a_record_that_returns_with_another_vtep_or_owner_takes_effect_at_once() {
    for attrs in [
        LeaseAttrs::vxlan([192, 168, 0, 2].into(), 1, mac(99)),
        node(3),
        LeaseAttrs::host_gw([192, 168, 0, 2].into()),
    ] {
        let mut sim = one_peer();
        sim.delete(PEER);
        sim.write(PEER, attrs.clone());
        assert_eq!(*sim.peer("10.3.1.0/24").unwrap().attrs, attrs);
        sim.pass(2 * GRACE);
        assert_eq!(sim.changes.len(), 1, "{:?}", sim.changes);
    }
}

#[test]
fn an_absent_peer_makes_room_for_a_record_that_contradicts_it() {
    let moved = |ip| LeaseAttrs::vxlan([192, 168, 0, ip].into(), 1, mac(2));
    for (at, attrs, shown) in [
        // The subnet, or a part of it, is another node's now.
        ("10.3.0.0-22", node(3), "10.3.0.0/22"),
        ("10.3.1.128-25", node(3), "10.3.1.128/25"),
        // The node has another subnet now, or its device another address.
        ("10.3.5.0-24", node(2), "10.3.5.0/24"),
        ("10.3.5.0-24", moved(9), "10.3.5.0/24"),
    ] {
        let mut sim = one_peer();
        sim.delete(PEER);
        sim.write(at, attrs);
        assert_eq!(sim.peers(), [shown], "{at}");
    }
    // Others do not concern it.
    let mut sim = one_peer();
    sim.delete(PEER);
    sim.write("10.3.5.0-24", node(3));
    assert_eq!(sim.peers(), ["10.3.1.0/24", "10.3.5.0/24"]);
}

#[test]
fn a_record_that_is_not_routed_has_no_grace_and_takes_nobodys_place() {
    let mut sim = one_peer();
    sim.delete(PEER);
    // Overlaps the own subnet as well as the absent peer's.
    sim.write("10.3.0.0-21", node(3));
    assert_eq!(sim.peers(), ["10.3.1.0/24"]);
    assert!(matches!(sim.alarms[..], [Alarm::Overlap { .. }]));
    sim.delete("10.3.0.0-21");
    assert_eq!(sim.alarms, []);
}

#[test]
fn the_own_subnet_never_becomes_a_peers_whatever_vanishes() {
    let mut sim = one_peer();
    sim.delete(PEER);
    sim.delete("10.3.7.0-24");
    assert_eq!(sim.stored(), Some(attrs()));
    sim.write("10.3.7.0-24", node(9));
    assert!(matches!(sim.state(), OwnState::Taken { .. }));
    assert_eq!(sim.peers(), ["10.3.1.0/24"]);
}

#[test]
fn nobody_is_let_go_while_there_is_no_watch() {
    let mut sim = one_peer();
    sim.delete(PEER);
    sim.outage(OUTAGE.saturating_sub(SECOND));
    assert_eq!(sim.changes, []);
    sim.pass(GRACE);
    assert_eq!(sim.peers(), Vec::<String>::new());
}

#[test]
fn a_watch_that_fell_behind_lets_nobody_go_before_the_list() {
    let mut sim = one_peer();
    sim.delete(PEER);
    sim.connected = false;
    let revision = sim.store.revision;
    let compacted = Input::Watch(WatchEvent::Compacted { revision });
    sim.give(compacted);
    sim.pass(5 * GRACE);
    assert_eq!(sim.changes, []);
    sim.write(PEER, node(2));
    sim.reconnect();
    sim.pass(5 * GRACE);
    assert_eq!(sim.changes, []);
}

#[test]
fn after_a_mass_expiry_everyone_has_time_to_register_again() {
    for compacted in [false, true] {
        let peer = |n: u8| format!("10.3.{}.0-24", 100 + n);
        let mut sim = Sim::with(|store| {
            for n in 2..50 {
                store.force(key(&peer(n)), node(n), Some(RENEWAL.ttl));
            }
        });
        sim.disconnect();
        sim.pass(30 * HOUR);
        assert!(sim.store.list().entries.is_empty(), "all ran out");
        if compacted {
            sim.store.compact();
        }
        sim.reconnect();
        // They come back one by one, the slowest after a minute and a half; one never does.
        for n in 2..49 {
            sim.write(&peer(n), node(n));
            sim.pass(REGISTRATION / 48);
        }
        assert_eq!(sim.changes, [], "compacted: {compacted}");
        sim.pass(REGISTRATION);
        assert_eq!(sim.changes.len(), 1, "{:?}", sim.changes);
        assert_eq!(sim.peer("10.3.149.0/24"), None);
    }
}

#[test]
fn leases_that_run_out_only_after_the_outage_wait_as_long() {
    let mut sim = one_peer();
    sim.outage(OUTAGE);
    // etcd ends them when it has a leader again, not before.
    sim.pass(30 * SECOND);
    sim.delete(PEER);
    sim.pass(REGISTRATION.saturating_sub(31 * SECOND));
    assert_eq!(sim.changes, []);
    sim.pass(SECOND);
    assert_eq!(sim.changes.len(), 1);
}

#[test]
fn an_own_record_that_went_unseen_is_a_sign_that_others_may_have() {
    let mut sim = one_peer();
    // The clock stood still with the machine, so that the outage seems short.
    sim.disconnect();
    sim.store.remove(&key(PEER));
    sim.store.remove(&own_key());
    sim.reconnect();
    sim.pass(REGISTRATION.saturating_sub(SECOND));
    assert_eq!(sim.changes, []);
    sim.pass(SECOND);
    assert_eq!(sim.changes.len(), 1);
}

#[test]
fn nobody_is_let_go_while_this_node_cannot_write_its_own_record() {
    let mut sim = one_peer();
    sim.late = true;
    sim.delete("10.3.7.0-24");
    sim.answers.clear();
    let refused = StoreError {
        reason: "mvcc: database space exceeded".to_owned(),
    };
    sim.give(Input::Written(Err(refused)));
    sim.delete(PEER);
    sim.pass(HOUR);
    assert_eq!(sim.changes, []);
    // What holds this node up held up the others.
    sim.settle();
    sim.pass(Duration::from_mins(2));
    assert_eq!(sim.stored(), Some(attrs()));
    sim.pass(REGISTRATION);
    assert_eq!(sim.peers(), Vec::<String>::new());
}

#[test]
fn a_write_that_was_carried_out_without_an_answer_is_no_sign_that_others_cannot_write() {
    let mut sim = one_peer();
    sim.late = true;
    sim.delete("10.3.7.0-24");
    sim.answers.clear();
    // A reservation is never renewed, so no later write would tell.
    sim.store.write(own_key(), Ok(attrs()), None);
    sim.deliver();
    let reason = "no answer".to_owned();
    sim.give(Input::Written(Err(StoreError { reason })));
    sim.delete(PEER);
    sim.pass(REGISTRATION + GRACE);
    assert_eq!(sim.peers(), Vec::<String>::new());
}

#[test]
fn a_deleted_record_overwritten_with_junk_is_still_there() {
    let mut sim = one_peer();
    sim.delete(PEER);
    let reason = "junk".to_owned();
    sim.store.write(key(PEER), Err(ValueError { reason }), None);
    sim.deliver();
    sim.pass(HOUR);
    assert_eq!(sim.changes, []);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A node writes its record, with one of two VTEPs.
    Write(u8, bool),
    Delete(u8),
    Disconnect,
    Reconnect,
    Compact,
    OwnRecordDeleted,
    Millis(u64),
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    prop_oneof![
        5 => (2..6_u8, any::<bool>()).prop_map(|(n, other)| Write(n, other)),
        5 => (2..6_u8).prop_map(Delete),
        1 => Just(Disconnect),
        2 => Just(Reconnect),
        1 => Just(Compact),
        1 => Just(OwnRecordDeleted),
        6 => (0..3000_u64).prop_map(Millis),
        2 => (3000..100_000_u64).prop_map(Millis),
    ]
}

fn key_of(n: u8) -> LeaseKey {
    key(&format!("10.3.{}.0-24", 100 + n))
}

/// What must be true of every change, judged from outside.
#[derive(Default)]
struct Judge {
    judged: usize,
    /// Since when a record is not in the store.
    absent: BTreeMap<IpNetwork, Instant>,
    /// Since when the watch is broken, and until when nobody may be let go after it was.
    broken: Option<Instant>,
    patience: Option<Instant>,
    shown: BTreeMap<IpNetwork, PeerLease>,
}

impl Judge {
    fn judge(&mut self, sim: &Sim) -> Result<(), TestCaseError> {
        for (at, subnet, lease) in &sim.changes[self.judged..] {
            let before = self.shown.get(subnet);
            prop_assert_ne!(before, lease.as_ref(), "a change that is none");
            if let Some(lease) = lease {
                self.shown.insert(*subnet, lease.clone());
                continue;
            }
            prop_assert!(self.broken.is_none(), "let go without a watch");
            prop_assert!(self.patience.is_none_or(|until| *at >= until));
            let absent = self.absent.get(subnet);
            prop_assert!(absent.is_some_and(|since| *at >= *since + GRACE));
            self.shown.remove(subnet);
        }
        self.judged = sim.changes.len();
        prop_assert_eq!(&self.shown, sim.core.peers());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 1000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_peer_is_let_go_only_when_its_record_stayed_away_while_it_could_return(
        steps in vec(step(), 1..60),
    ) {
        let mut sim = Sim::new();
        let mut judge = Judge::default();
        for step in steps {
            match step {
                Step::Write(n, other) => {
                    let ip = [192, 168, 0, n].into();
                    let attrs = LeaseAttrs::vxlan(ip, 1, mac(if other { n + 100 } else { n }));
                    sim.store.force(key_of(n), attrs.clone(), None);
                    judge.absent.remove(&key_of(n).subnet());
                    sim.deliver();
                    if sim.connected {
                        let shown = sim.core.peers().get(&key_of(n).subnet());
                        prop_assert_eq!(shown.map(|lease| &*lease.attrs), Some(&attrs));
                    }
                }
                Step::Delete(n) => {
                    if sim.store.entry(&key_of(n)).is_some() {
                        judge.absent.insert(key_of(n).subnet(), sim.now);
                    }
                    sim.store.remove(&key_of(n));
                    sim.deliver();
                }
                Step::Disconnect => {
                    sim.disconnect();
                    judge.broken.get_or_insert(sim.now);
                }
                Step::Reconnect if !sim.connected => {
                    let lasted = judge.broken.take().map(|since| sim.now - since);
                    if lasted >= Some(OUTAGE) {
                        judge.patience = Some(sim.now + REGISTRATION);
                    }
                    sim.reconnect();
                }
                Step::Reconnect => {}
                Step::Compact => sim.store.compact(),
                Step::OwnRecordDeleted => {
                    sim.store.remove(&own_key());
                    sim.deliver();
                }
                Step::Millis(millis) => sim.pass(Duration::from_millis(millis)),
            }
            judge.judge(&sim)?;
        }
        sim.disconnect();
        sim.reconnect();
        judge.broken = None;
        sim.pass(REGISTRATION + GRACE);
        judge.judge(&sim)?;
        let entries = sim.store.list().entries.into_iter();
        let stored: Vec<_> = entries
            .filter(|entry| entry.key != own_key())
            .map(|entry| (entry.key, entry.value.unwrap()))
            .collect();
        let peers = sim.core.peers().values();
        let shown: Vec<_> = peers.map(|peer| (peer.key, LeaseAttrs::clone(&peer.attrs))).collect();
        prop_assert_eq!(shown, stored, "nobody stays for ever");
    }
}
