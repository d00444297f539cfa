//! The own lease is kept, put right, written again, or given up.

use super::*;

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
        create_revision: 2,
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
fn a_machine_that_slept_past_its_lease_writes_it_again_at_once_and_suspects_nobody() {
    let mut sim = Sim::with(two_peers);
    // Neither the clock of the machine nor its watch notice anything of this.
    let slept = 30 * HOUR;
    sim.store.advance(sim.now + slept);
    sim.store.force(
        key("10.3.3.0-24"),
        LeaseAttrs::alloc(OTHER),
        Some(RENEWAL.ttl),
    );
    assert_eq!(sim.stored(), None, "it ran out");
    sim.now += slept;
    sim.give(Input::Slept(slept));
    sim.deliver();
    assert_eq!(sim.stored(), Some(attrs()));
    assert_eq!(sim.state(), OwnState::Held);
    assert!(sim.peer("10.3.3.0/24").is_some(), "what came is known");
    assert_eq!(sim.alarms, []);
}

#[test]
fn a_machine_that_slept_past_the_moment_of_renewal_renews_at_once() {
    let mut sim = Sim::new();
    let slept = 23 * HOUR + HOUR / 2;
    sim.now += slept;
    sim.store.advance(sim.now);
    sim.give(Input::Slept(slept));
    assert_eq!(sim.store.puts, 2);
    assert_eq!(sim.alarms, []);
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
    assert_eq!(sim.peers().len(), 2, "they had no chance to renew, either");
    sim.pass(REGISTRATION);
    assert!(sim.peers().is_empty(), "they have had one since");
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
    assert_eq!(sim.state(), OwnState::Taken { by: OTHER.into() });
    assert_eq!(
        sim.alarms,
        [Alarm::Taken {
            subnet: subnet("10.3.7.0/24"),
            by: OTHER.into()
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
    assert_eq!(sim.state(), OwnState::Taken { by: OTHER.into() });
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
    assert_eq!(sim.state(), OwnState::Taken { by: OTHER.into() });
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
fn a_backup_that_has_the_nodes_former_address_is_put_right() {
    let backup = {
        let mut store = MemoryStore::new(Instant::now());
        store.config = Some(config("{}"));
        let former = LeaseAttrs::vxlan([192, 168, 0, 99].into(), 1, MAC);
        store.force(own_key(), former, Some(RENEWAL.ttl));
        store
    };
    // The agent has been restarted since, and knows nothing of that address.
    let mut sim = Sim::with(two_peers);
    sim.disconnect();
    sim.store = backup;
    sim.reconnect();
    sim.deliver();
    assert_eq!(sim.state(), OwnState::Held);
    assert_eq!(sim.stored(), Some(attrs()));
}

#[test]
fn a_newer_record_of_the_same_device_at_another_address_is_another_nodes() {
    let mut sim = Sim::new();
    let clone = LeaseAttrs::vxlan(OTHER, 1, MAC);
    sim.store.force(own_key(), clone.clone(), Some(RENEWAL.ttl));
    sim.deliver();
    sim.pass(HOUR);
    assert_eq!(sim.state(), OwnState::Taken { by: OTHER.into() });
    assert_eq!(sim.stored(), Some(clone));
}

#[test]
fn a_record_of_another_device_at_the_former_address_is_another_nodes() {
    let mut sim = Sim::new();
    let moved = LeaseAttrs::vxlan([192, 168, 0, 77].into(), 1, MAC);
    sim.give(Input::Publish(moved));
    sim.deliver();
    let successor = LeaseAttrs::vxlan(NODE, 1, MacAddr::new([2, 0, 0, 0, 0, 9]));
    sim.store
        .force(own_key(), successor.clone(), Some(RENEWAL.ttl));
    sim.deliver();
    sim.pass(HOUR);
    assert_eq!(sim.state(), OwnState::Taken { by: NODE.into() });
    assert_eq!(sim.stored(), Some(successor));
}

#[test]
fn a_record_by_hand_at_the_former_address_is_put_right() {
    let mut sim = Sim::new();
    let moved = LeaseAttrs::vxlan([192, 168, 0, 77].into(), 1, MAC);
    sim.give(Input::Publish(moved.clone()));
    sim.deliver();
    sim.store
        .force(own_key(), LeaseAttrs::alloc(NODE), Some(RENEWAL.ttl));
    sim.deliver();
    assert_eq!(sim.state(), OwnState::Held);
    assert_eq!(sim.stored(), Some(moved));
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
fn a_lost_lease_is_not_written_again_beside_one_that_overlaps_it() {
    let mut sim = Sim::new();
    let whole = key("10.3.0.0-16");
    sim.store.remove(&own_key());
    sim.store.force(whole, LeaseAttrs::alloc(OTHER), None);
    sim.late = true;
    sim.deliver();
    // The write was on its way when the other lease became known.
    sim.settle();
    sim.deliver();
    assert_eq!(sim.state(), OwnState::Taken { by: OTHER.into() });
    let puts = sim.store.puts;
    sim.pass(48 * HOUR);
    assert_eq!(sim.store.puts, puts, "it gives way");

    sim.store.remove(&whole);
    sim.deliver();
    sim.pass(HOUR);
    assert_eq!(sim.state(), OwnState::Held);
    assert_eq!(sim.stored(), Some(attrs()));
}

#[test]
fn a_lease_is_kept_beside_a_later_one_that_overlaps_it() {
    let mut sim = Sim::new();
    let whole = key("10.3.0.0-16");
    sim.store
        .force(whole, LeaseAttrs::alloc(OTHER), Some(RENEWAL.ttl));
    sim.deliver();
    sim.pass(20 * HOUR);
    assert_eq!(sim.state(), OwnState::Held);
    assert!(matches!(sim.alarms[..], [Alarm::Overlap { .. }]));
}
