//! Other nodes' leases are followed through everything that happens to the store.

use std::net::IpAddr;

use super::*;
use crate::{
    backend::{Backend, Vxlan, VxlanData},
    model::V6,
};

#[test]
fn peers_come_change_and_go_with_the_watch() {
    let mut sim = Sim::with(two_peers);
    assert_eq!(sim.peers(), ["10.3.1.0/24", "10.3.2.0/24"]);
    let moved = LeaseAttrs::host_gw([192, 168, 0, 33].into());
    sim.store
        .force(key("10.3.2.0-24"), moved.clone(), Some(RENEWAL.ttl));
    sim.store.remove(&key("10.3.1.0-24"));
    sim.deliver();
    assert_eq!(*sim.peer("10.3.2.0/24").unwrap().attrs, moved);
    sim.pass(GRACE);
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
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
    sim.pass(GRACE);
    assert_eq!(sim.peers(), ["10.3.2.0/24", "10.3.4.0/24"]);
    assert_eq!(*sim.peer("10.3.2.0/24").unwrap().attrs, moved);
    // The watch goes on behind the list.
    sim.store.remove(&key("10.3.4.0-24"));
    sim.deliver();
    sim.pass(GRACE);
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
    assert_eq!(*sim.peer("10.3.1.0/24").unwrap().attrs, moved);
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
    assert_eq!(*sim.peer("10.3.1.0/24").unwrap().attrs, newcomer);
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
    let old = sim.ask_for_a_list();
    sim.store.remove(&key("10.3.1.0-24"));
    sim.deliver();
    sim.pass(GRACE);
    sim.give(Input::Listed(old));
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
    sim.pass(GRACE);
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
    assert_eq!(sim.alarms, []);
}

#[test]
fn a_list_that_events_have_overtaken_counts_for_all_that_they_did_not_tell() {
    let mut sim = Sim::with(two_peers);
    // Two events are lost.
    let missed = LeaseAttrs::alloc([192, 168, 0, 4].into());
    sim.store.force(key("10.3.4.0-24"), missed.clone(), None);
    sim.store.remove(&key("10.3.2.0-24"));
    sim.watching = Some(sim.store.revision + 1);
    let old = sim.ask_for_a_list();
    let moved = LeaseAttrs::host_gw([192, 168, 0, 33].into());
    sim.store.force(key("10.3.1.0-24"), moved.clone(), None);
    sim.deliver();
    sim.give(Input::Listed(old));
    assert_eq!(*sim.peer("10.3.1.0/24").unwrap().attrs, moved);
    assert_eq!(*sim.peer("10.3.4.0/24").unwrap().attrs, missed);
    sim.pass(GRACE);
    assert_eq!(sim.peers(), ["10.3.1.0/24", "10.3.4.0/24"]);
    // An event from before the list that arrives late is no news.
    let stale = WatchEvent::Delete {
        key: key("10.3.4.0-24"),
        revision: old_revision(&sim),
    };
    sim.give(Input::Watch(stale));
    sim.pass(GRACE);
    assert_eq!(sim.peers(), ["10.3.1.0/24", "10.3.4.0/24"]);
}

/// Before everything that a list told.
fn old_revision(sim: &Sim) -> i64 {
    let entries = sim.store.list().entries;
    entries
        .iter()
        .map(|entry| entry.mod_revision)
        .min()
        .unwrap()
}

#[test]
fn a_watch_compacted_while_an_older_list_is_under_way_is_opened_again() {
    let mut sim = Sim::with(two_peers);
    let old = sim.ask_for_a_list();
    sim.store.remove(&key("10.3.1.0-24"));
    sim.deliver();
    sim.watching = None;
    let revision = sim.store.revision;
    let compacted = Input::Watch(WatchEvent::Compacted { revision });
    sim.give(compacted);
    assert_eq!(sim.lists, 0, "one is under way");
    sim.give(Input::Listed(old));
    assert!(sim.watching.is_some(), "events arrive again");
    sim.store
        .force(key("10.3.4.0-24"), LeaseAttrs::alloc(OTHER), None);
    sim.deliver();
    sim.pass(GRACE);
    assert_eq!(sim.peers(), ["10.3.2.0/24", "10.3.4.0/24"]);
}

#[test]
fn a_cluster_in_which_something_always_happens_has_its_audits() {
    let mut sim = Sim::with(two_peers);
    sim.store.remove(&key("10.3.1.0-24"));
    sim.watching = Some(sim.store.revision + 1);
    for n in 0..10_u8 {
        let old = sim.ask_for_a_list();
        let attrs = LeaseAttrs::alloc([192, 168, 1, n].into());
        sim.store.force(key("10.3.2.0-24"), attrs, None);
        sim.deliver();
        sim.give(Input::Listed(old));
        sim.pass(GRACE);
    }
    assert_eq!(sim.peers(), ["10.3.2.0/24"]);
}

#[test]
fn events_that_a_list_already_contained_change_nothing() {
    let mut sim = Sim::with(two_peers);
    let stale = sim.store.entry(&key("10.3.1.0-24")).unwrap().clone();
    sim.store.remove(&key("10.3.1.0-24"));
    sim.store.compact();
    sim.watching = Some(1);
    sim.deliver();
    sim.give(Input::Watch(WatchEvent::Put(stale)));
    sim.pass(GRACE);
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
        let mut sim = Sim::new();
        sim.store.force(key(other), LeaseAttrs::alloc(OTHER), None);
        sim.deliver();
        assert!(sim.peers().is_empty(), "{other}");
        assert!(
            matches!(
                sim.alarms[..],
                [Alarm::Overlap {
                    by: IpAddr::V4(OTHER),
                    ..
                }]
            ),
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
    assert_eq!(*sim.peer("10.3.1.0/24").unwrap().attrs, newer);
    sim.store.remove(&dual);
    sim.deliver();
    assert_eq!(sim.peer("10.3.1.0/24").unwrap().attrs.public_ip, OTHER);
}

#[test]
fn a_node_that_goes_back_to_flanneld_is_sent_checksums_again() {
    let mut sim = Sim::new();
    let backend = Backend::from(Vxlan::DEFAULT);
    let says = |zero_checksum| {
        let data = VxlanData {
            zero_checksum,
            ..VxlanData::new(1, MAC)
        };
        LeaseAttrs::vxlan(OTHER, 1, MAC).with_ipv6("fd00::2".parse().unwrap(), Some(data.encode()))
    };
    // flanneld writes the record of its node at each of its starts.
    for zero_checksum in [true, false, true] {
        let record = key("10.3.1.0-24&fd00:1::-64");
        let ttl = Some(RENEWAL.ttl);
        sim.store.force(record, says(zero_checksum), ttl);
        sim.deliver();
        let peer = sim
            .peer("10.3.1.0/24")
            .unwrap()
            .usable::<V6>(&backend)
            .unwrap();
        assert_eq!(peer.vxlan.unwrap().zero_checksum, zero_checksum);
    }
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

#[test]
fn a_network_config_changed_while_nobody_watched_is_read_with_the_list() {
    let mut sim = Sim::new();
    sim.disconnect();
    sim.store.set_config(Some("{ }"));
    sim.store.compact();
    sim.reconnect();
    assert_eq!(sim.alarms, [Alarm::ConfigChanged]);
    sim.disconnect();
    sim.store.set_config(None);
    sim.store.compact();
    sim.reconnect();
    assert_eq!(sim.alarms, [Alarm::ConfigMissing]);
}

#[test]
fn a_store_without_its_data_has_lost_the_network_config_with_it() {
    let mut sim = Sim::new();
    sim.disconnect();
    sim.store.set_config(None);
    sim.store.wipe();
    sim.reconnect();
    assert_eq!(sim.alarms, [Alarm::ConfigMissing]);
}

#[test]
fn a_list_knows_the_network_config_less_well_than_a_later_event() {
    let mut sim = Sim::new();
    let list = sim.ask_for_a_list();
    sim.store.set_config(Some("{ }"));
    sim.deliver();
    sim.give(Input::Listed(list));
    assert_eq!(sim.alarms, [Alarm::ConfigChanged]);
}

#[test]
fn a_network_config_changed_during_the_start_is_noticed() {
    let sim = Sim::with(|store| store.set_config(Some("{ }")));
    assert_eq!(sim.alarms, [Alarm::ConfigChanged]);
}
