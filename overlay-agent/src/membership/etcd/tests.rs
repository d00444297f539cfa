//! Waiting for the config, acquiring and keeping a lease, on a store in memory and a clock that
//! runs as fast as it can.

use std::{net::Ipv4Addr, sync::Mutex, time::Duration};

use overlay_common::addr::MacAddr;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Etcd,
    acquire::{AcquireError, Acquired, acquire},
    fake::FakeStore,
    machine::Machine,
};
use crate::{
    config::network::Pool,
    core::{Renewal, Snapshot},
    logging::capture::Log,
    membership::{Allocation, Member, Membership, Wish, await_config, await_known},
    model::{ConfigText, LeaseAttrs, LeaseKey, LeaseView, OwnState},
};

const RENEWAL: Renewal = Renewal {
    ttl: Renewal::TTL,
    margin: Duration::from_hours(1),
};

fn wish(last: u8) -> Wish {
    let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
    Wish {
        attrs: LeaseAttrs::vxlan(Ipv4Addr::new(192, 168, 0, 1), 1, mac),
        allocation: Allocation {
            ipv4: Some(Pool {
                network: "10.3.0.0/16".parse().unwrap(),
                subnet_min: Ipv4Addr::new(10, 3, 1, 0),
                subnet_max: Ipv4Addr::new(10, 3, last, 0),
                subnet_len: 24,
            }),
            ipv6: None,
        },
        previous: None,
        previous6: None,
    }
}

async fn try_acquire(store: &FakeStore, wish: &Wish) -> Result<Acquired, AcquireError> {
    acquire_knowing(store, None, wish).await
}

async fn acquire_knowing(
    store: &FakeStore,
    known: Option<Snapshot>,
    wish: &Wish,
) -> Result<Acquired, AcquireError> {
    let (mut machine, cancel) = (Machine::real(), CancellationToken::new());
    acquire(store, known, wish, RENEWAL, &mut machine, &cancel).await
}

fn config(text: &str) -> ConfigText {
    ConfigText {
        text: text.to_owned(),
        mod_revision: 1,
    }
}

fn etcd(store: &FakeStore) -> Etcd<FakeStore> {
    Etcd::new(store.clone(), RENEWAL)
}

async fn started(store: &FakeStore) -> (Member, CancellationToken) {
    store.with(|state| state.config = Some(config("{}")));
    let cancel = CancellationToken::new();
    let etcd = etcd(store);
    let joined = etcd.join(wish(255), config("{}"), cancel.clone()).await;
    (joined.unwrap().unwrap(), cancel)
}

async fn until(handle: &Member, condition: impl FnMut(&LeaseView) -> bool) -> LeaseView {
    let mut view = handle.view.clone();
    let found = timeout(Duration::from_mins(10), view.wait_for(condition)).await;
    found.expect("in time").expect("the task runs").clone()
}

#[tokio::test(start_paused = true)]
async fn a_missing_config_is_waited_for_and_each_cause_is_logged_once() {
    let store = FakeStore::new();
    let log = Log::default();
    let _guard = log.capture();
    let parse = |text: &str| text.parse::<u32>().map_err(|_| "not a number");
    let cancel = CancellationToken::new();
    let script = async {
        sleep(Duration::from_secs(30)).await;
        store.set_away(true);
        sleep(Duration::from_secs(30)).await;
        store.set_away(false);
        store.with(|state| state.set_config(Some("junk")));
        sleep(Duration::from_secs(30)).await;
        store.with(|state| state.set_config(Some("7")));
    };
    let waited_for = Mutex::new(Vec::new());
    let waits = |problem: &str| waited_for.lock().unwrap().push(problem.to_owned());
    let etcd = etcd(&store);
    let (found, ()) = tokio::join!(await_config(&etcd, &cancel, parse, waits), script);
    let (number, text) = found.unwrap();
    assert_eq!((number, text.text.as_str()), (7, "7"));
    let errors: Vec<_> = log
        .lines()
        .into_iter()
        .filter(|line| line.contains("ERROR"))
        .collect();
    assert_eq!(errors.len(), 3, "{errors:#?}");
    let waited_for = waited_for.into_inner().unwrap();
    assert_eq!(waited_for.len(), 3, "{waited_for:#?}");
    for (error, problem) in errors.iter().zip(&waited_for) {
        assert!(error.ends_with(problem), "{error} {problem}");
    }
    assert!(
        errors[0].contains(
            "flannel config not found in etcd store. Did you create your config using etcdv3 API? \
             Looked for /test/config of the fake store; create it with: put /test/config"
        ),
        "{}",
        errors[0]
    );
    assert!(
        errors[1].contains("no etcd endpoint answered"),
        "{}",
        errors[1]
    );
    assert!(
        errors[2].contains("not a number; the config is at /test/config"),
        "{}",
        errors[2]
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_config_ends_at_once_when_cancelled() {
    let store = FakeStore::new();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let parse = |_: &str| Ok::<_, String>(());
    assert_eq!(
        await_config(&etcd(&store), &cancel, parse, |_| ()).await,
        None
    );
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_leases_that_cannot_be_read() {
    let log = Log::default();
    let _guard = log.capture();
    let store = FakeStore::new();
    let cancel = CancellationToken::new();
    store.with(|state| {
        state.force(
            LeaseKey::parse("10.3.4.0-24").unwrap(),
            wish(255).attrs,
            None,
        )
    });
    store.set_away(true);
    let script = async {
        sleep(Duration::from_mins(1)).await;
        store.set_away(false);
    };
    let etcd = etcd(&store);
    let (found, ()) = tokio::join!(await_known(&etcd, &cancel, |_| {}), script);
    assert_eq!(found, Some(vec![wish(255).attrs]));
    let errors = log.lines();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(
        errors[0].contains("cannot read the leases, trying on: "),
        "{errors:#?}"
    );

    store.set_away(true);
    cancel.cancel();
    assert_eq!(await_known(&etcd, &cancel, |_| {}).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_lost_race_is_run_again_with_another_subnet() {
    let store = FakeStore::new();
    store.with(|state| state.races = 5);
    let acquired = try_acquire(&store, &wish(255)).await.unwrap();
    assert_eq!(store.with(|state| state.list()).entries.len(), 6);
    let entry = store.with(|state| state.entry(&acquired.held.key).cloned());
    assert_eq!(entry.unwrap().value, Ok(wish(255).attrs));
}

#[tokio::test(start_paused = true)]
async fn a_choice_among_leases_listed_before_holds_only_if_they_are_still_so() {
    let store = FakeStore::new();
    let ttl = Some(Duration::from_hours(24));
    let other = LeaseAttrs::alloc(Ipv4Addr::new(192, 168, 0, 2));
    // The only subnet there is was leased, and is free again; then the other way round.
    let subnet = LeaseKey::parse("10.3.1.0-24").unwrap();
    store.with(|state| state.force(subnet, other.clone(), ttl));
    let full = store.with(|state| state.list());
    store.with(|state| state.remove(&subnet));
    let empty = store.with(|state| state.list());
    let acquired = acquire_knowing(&store, Some(full), &wish(1)).await.unwrap();
    assert_eq!(acquired.held.key, subnet);
    store.with(|state| state.force(subnet, other, ttl));
    let refused = acquire_knowing(&store, Some(empty), &wish(1)).await;
    assert!(matches!(refused, Err(AcquireError::OutOfSubnets { .. })));
}

#[tokio::test(start_paused = true)]
async fn of_two_nodes_that_wrote_overlapping_leases_at_once_the_later_one_gives_way() {
    let store = FakeStore::new();
    store.with(|state| state.overlaps = 3);
    let acquired = try_acquire(&store, &wish(255)).await.unwrap();
    let entries = store.with(|state| state.list()).entries;
    assert_eq!(entries.len(), 4, "{entries:#?}");
    let own = acquired.held.key;
    let others = entries.iter().filter(|entry| entry.key != own);
    assert_eq!(others.filter(|entry| entry.key.overlaps(&own)).count(), 0);
    let mut known = acquired.snapshot.entries;
    known.sort_by_key(|entry| entry.key);
    assert_eq!(known, entries, "peers of that moment are known");
}

#[tokio::test(start_paused = true)]
async fn a_record_written_by_an_agent_that_died_before_it_looked_back_gives_way_to_an_older_one() {
    let store = FakeStore::new();
    let (older, younger) = (
        LeaseKey::parse("10.3.4.0-23"),
        LeaseKey::parse("10.3.5.0-24"),
    );
    let other = LeaseAttrs::alloc(Ipv4Addr::new(192, 168, 0, 2));
    let ttl = Some(Duration::from_hours(24));
    store.with(|state| {
        state.force(older.unwrap(), other.clone(), ttl);
        state.force(younger.unwrap(), wish(255).attrs, ttl);
        // The other one is renewed.
        state.force(older.unwrap(), other, ttl);
    });
    let acquired = try_acquire(&store, &wish(255)).await.unwrap();
    assert!(!acquired.held.key.overlaps(&older.unwrap()));
    let entries = store.with(|state| state.list()).entries;
    assert_eq!(entries.len(), 2, "{entries:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_record_is_kept_beside_a_younger_one_that_overlaps_it() {
    let store = FakeStore::new();
    let (younger, older) = (
        LeaseKey::parse("10.3.4.0-23"),
        LeaseKey::parse("10.3.5.0-24"),
    );
    let other = LeaseAttrs::alloc(Ipv4Addr::new(192, 168, 0, 2));
    let ttl = Some(Duration::from_hours(24));
    store.with(|state| {
        state.force(older.unwrap(), wish(255).attrs, ttl);
        state.force(younger.unwrap(), other, ttl);
    });
    let acquired = try_acquire(&store, &wish(255)).await.unwrap();
    assert_eq!(Some(acquired.held.key), older);
}

#[tokio::test(start_paused = true)]
async fn ten_lost_races_end_the_attempt() {
    let store = FakeStore::new();
    store.with(|state| state.races = 200);
    let result = try_acquire(&store, &wish(255)).await;
    assert_eq!(result, Err(AcquireError::TooManyRaces));
}

#[tokio::test(start_paused = true)]
async fn a_full_network_is_an_error_that_names_the_range() {
    let store = FakeStore::new();
    let whole = LeaseKey::parse("10.3.0.0-16").unwrap();
    let other = LeaseAttrs::alloc(Ipv4Addr::new(192, 168, 0, 2));
    store.with(|state| state.force(whole, other, None));
    let error = try_acquire(&store, &wish(9)).await.unwrap_err().to_string();
    assert!(
        error.starts_with("out of subnets: every subnet from 10.3.1.0 to 10.3.9.0 with length 24"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_no_longer_fits_is_replaced() {
    let store = FakeStore::new();
    let misfit = LeaseKey::parse("10.4.1.0-24").unwrap();
    let ttl = Some(Duration::from_hours(24));
    store.with(|state| state.force(misfit, wish(9).attrs, ttl));
    let acquired = try_acquire(&store, &wish(9)).await.unwrap();
    assert_ne!(acquired.held.key, misfit);
    assert_eq!(store.with(|state| state.list()).entries.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn acquiring_waits_for_a_store_that_is_away() {
    let store = FakeStore::new();
    store.set_away(true);
    let wish = wish(255);
    let (acquired, ()) = tokio::join!(try_acquire(&store, &wish), async {
        sleep(Duration::from_hours(1)).await;
        store.set_away(false);
    });
    assert!(acquired.is_ok());
}

#[tokio::test(start_paused = true)]
async fn acquiring_ends_at_once_when_cancelled() {
    let store = FakeStore::new();
    store.set_away(true);
    let cancel = CancellationToken::new();
    let mut machine = Machine::real();
    let wish = wish(255);
    let start = Instant::now();
    let acquiring = acquire(&store, None, &wish, RENEWAL, &mut machine, &cancel);
    let (result, ()) = tokio::join!(acquiring, async {
        sleep(Duration::from_secs(10)).await;
        cancel.cancel();
    });
    assert_eq!(result, Err(AcquireError::Cancelled));
    assert_eq!(start.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_over_days_and_its_end_is_shown() {
    let store = FakeStore::new();
    let (handle, _cancel) = started(&store).await;
    sleep(Duration::from_hours(100)).await;
    let own = handle.view.borrow().own.clone();
    assert_eq!(own.state, OwnState::Held);
    let left = own.expires.unwrap() - Instant::now().into_std();
    assert!(left >= Duration::from_hours(1), "{left:?}");
    assert!(store.with(|state| state.entry(&own.key).is_some()));
}

#[tokio::test(start_paused = true)]
async fn the_view_survives_an_outage_and_is_brought_up_to_date_afterwards() {
    let store = FakeStore::new();
    let first = LeaseKey::parse("10.3.200.0-24").unwrap();
    let second = LeaseKey::parse("10.3.201.0-24").unwrap();
    let peer = |n| LeaseAttrs::alloc(Ipv4Addr::new(192, 168, 0, n));
    store.with(|state| state.force(first, peer(2), None));
    let (handle, _cancel) = started(&store).await;
    let view = until(&handle, |view| view.store.connected).await;
    assert!(view.peers.contains_key(&first.subnet()));

    store.set_away(true);
    let view = until(&handle, |view| !view.store.connected).await;
    assert!(view.store.last_error.is_some());
    store.with(|state| {
        state.remove(&first);
        state.force(second, peer(3), None);
        state.compact();
    });
    sleep(Duration::from_hours(30)).await;
    let view = handle.view.borrow().clone();
    assert!(view.peers.contains_key(&first.subnet()), "peers are kept");
    assert_eq!(view.own.state, OwnState::Held);

    store.set_away(false);
    until(&handle, |view| {
        view.store.connected && view.peers.contains_key(&second.subnet())
    })
    .await;
    let view = until(&handle, |view| !view.peers.contains_key(&first.subnet())).await;
    assert_eq!(view.store.last_error, None);
    until(&handle, |view| view.alarms.is_empty()).await;
    assert!(store.with(|state| state.entry(&view.own.key).is_some()));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_once_and_so_is_its_end() {
    let log = Log::default();
    let _guard = log.capture();
    let store = FakeStore::new();
    let (handle, _cancel) = started(&store).await;
    until(&handle, |view| view.store.connected).await;
    store.set_away(true);
    sleep(Duration::from_hours(1)).await;
    store.set_away(false);
    until(&handle, |view| view.store.connected).await;
    let count = |text: &str| {
        let lines = log.lines();
        lines.iter().filter(|line| line.contains(text)).count()
    };
    assert_eq!(count("etcd is away"), 1, "{:#?}", log.lines());
    assert_eq!(count("connected to etcd"), 2, "{:#?}", log.lines());
}

#[tokio::test(start_paused = true)]
async fn new_attributes_are_published_under_the_same_key() {
    let store = FakeStore::new();
    let (handle, _cancel) = started(&store).await;
    let moved = LeaseAttrs::host_gw(Ipv4Addr::new(192, 168, 0, 77));
    handle.publish(moved.clone());
    sleep(Duration::from_secs(1)).await;
    let key = handle.view.borrow().own.key;
    let entry = store.with(|state| state.entry(&key).cloned()).unwrap();
    assert_eq!(entry.value, Ok(moved));
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_at_once_and_leaves_the_lease() {
    for away in [false, true] {
        let store = FakeStore::new();
        let (mut handle, cancel) = started(&store).await;
        store.set_away(away);
        sleep(Duration::from_secs(10)).await;
        let start = Instant::now();
        let key = handle.view.borrow().own.key;
        cancel.cancel();
        while handle.view.changed().await.is_ok() {}
        assert!(start.elapsed() < Duration::from_millis(100));
        assert!(store.with(|state| state.entry(&key).is_some()));
    }
}
