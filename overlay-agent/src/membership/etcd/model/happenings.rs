//! What happens to a cluster: each thing begins now, and ends by itself.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::time::sleep;

use super::world::{Actor, Cut, Weather, World, WorldState, now};
use crate::model::{LeaseAttrs, LeaseKey};

const SECOND: Duration = Duration::from_secs(1);

/// Lets something happen, and time pass.
pub async fn happen(world: &Arc<World>) {
    let what = world.see(|state| state.rng.random_range(0..100));
    match what {
        0..=9 => weather(world),
        10..=15 => etcd_goes_away(world),
        16..=21 => node_is_cut_off(world),
        22..=29 => agent_is_killed(world),
        30..=37 => agent_will_be_killed(world),
        38..=43 => node_sleeps(world),
        44..=47 => compaction(world),
        48..=51 => data_is_lost(world),
        52..=61 => operator_changes_a_record(world),
        62..=66 => operator_writes_elsewhere(world),
        67..=70 => config_is_written(world),
        71..=75 => node_is_readdressed(world),
        76..=77 => node_borrows_an_address(world),
        // An agent that runs writes it again.
        78..=80 => world.act(Actor::Operator, |state, _| {
            let node = state.any();
            state.happens_to(node, "restarted without its subnet file");
            state.seats[node].life.cancel();
            state.seats[node].file = None;
        }),
        _ => {}
    }
    let pause = world.see(|state| match state.rng.random_range(0..10) {
        0..=4 => state.pick(30 * SECOND),
        5..=8 => state.while_(),
        _ => {
            let ttl = state.renewal.ttl;
            state.pick(2 * ttl)
        }
    });
    sleep(pause).await;
}

impl WorldState {
    fn any(&mut self) -> usize {
        self.rng.random_range(0..self.seats.len())
    }

    fn happens(&mut self, what: &'static str) {
        self.count(what);
        self.note(|| format!("HAPPENS {what}"));
    }

    fn happens_to(&mut self, node: usize, what: &'static str) {
        self.count(what);
        self.note(|| format!("HAPPENS to n{node}: {what}"));
        self.disturbed(node);
    }

    fn any_cut(&mut self) -> Cut {
        if self.chance(50) {
            Cut::Refused
        } else {
            Cut::Silent
        }
    }
}

/// Undoes something after a while.
fn later(world: &Arc<World>, after: Duration, undo: impl FnOnce(&mut WorldState) + Send + 'static) {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        sleep(after).await;
        world.act(Actor::Operator, |state, _| undo(state));
    });
}

fn weather(world: &Arc<World>) {
    world.act(Actor::Operator, |state, _| {
        let (latency, trouble, lag, what) = match state.rng.random_range(0..5) {
            0 => (5, 30, 0, "requests go wrong"),
            1 => (3000, 0, 0, "requests are slow"),
            2 => (
                6000,
                40,
                30_000,
                "requests are slow and go wrong, members lag",
            ),
            3 => (5, 0, 30_000, "members lag"),
            _ => (5, 0, 0, "the network is fine"),
        };
        state.weather = Weather {
            latency: Duration::from_millis(latency),
            trouble,
            lag: Duration::from_millis(lag),
        };
        state.happens(what);
        state.all_disturbed();
    });
}

fn etcd_goes_away(world: &Arc<World>) {
    let (pause, restarted) = world.act(Actor::Operator, |state, _| {
        let cut = state.any_cut();
        state.away = Some(cut);
        state.happens("etcd goes away");
        state.all_disturbed();
        (state.while_(), state.chance(50))
    });
    later(world, pause, move |state| {
        state.away = None;
        if restarted {
            state.count("etcd restarted");
            state.server.life += 1;
            state.server.prolong_all(now());
        }
        state.note(|| "etcd is back".to_owned());
        state.all_disturbed();
    });
}

fn node_is_cut_off(world: &Arc<World>) {
    let (node, pause) = world.act(Actor::Operator, |state, _| {
        let (node, cut) = (state.any(), state.any_cut());
        state.seats[node].cut = Some(cut);
        state.happens_to(node, "cut off from etcd");
        (node, state.while_())
    });
    later(world, pause, move |state| {
        state.seats[node].cut = None;
        state.note(|| format!("n{node} reaches etcd again"));
        state.disturbed(node);
    });
}

fn agent_is_killed(world: &Arc<World>) {
    let (node, pause) = world.act(Actor::Operator, |state, _| {
        let node = state.any();
        state.happens_to(node, "agent killed");
        state.seats[node].life.cancel();
        let stays_down = state.chance(30);
        state.seats[node].down = stays_down;
        (node, stays_down.then(|| state.while_()))
    });
    if let Some(pause) = pause {
        later(world, pause, move |state| state.seats[node].down = false);
    }
}

fn agent_will_be_killed(world: &Arc<World>) {
    world.act(Actor::Operator, |state, _| {
        let node = state.any();
        state.seats[node].dies_in = Some(state.rng.random_range(0..12));
        // Most requests are those of a start.
        if state.chance(60) {
            state.happens_to(node, "agent restarted");
            state.seats[node].life.cancel();
        }
    });
}

fn node_sleeps(world: &Arc<World>) {
    let (node, pause) = world.act(Actor::Operator, |state, _| {
        let node = state.any();
        if state.seats[node].asleep.is_some() {
            return (node, None);
        }
        state.happens_to(node, "machine sleeps");
        state.seats[node].asleep = Some(now());
        let ttl = state.renewal.ttl;
        let long = state.chance(30);
        let pause = if long {
            state.pick(2 * ttl)
        } else {
            state.while_()
        };
        (node, Some(pause))
    });
    if let Some(pause) = pause {
        later(world, pause, move |state| state.wake(node));
    }
}

impl WorldState {
    pub fn wake(&mut self, node: usize) {
        let Some(since) = self.seats[node].asleep.take() else {
            return;
        };
        let slept = now().saturating_duration_since(since);
        self.note(|| format!("n{node} wakes up after {slept:?}"));
        let seat = &mut self.seats[node];
        seat.slept += slept;
        seat.untold += slept;
        self.disturbed(node);
    }
}

fn compaction(world: &Arc<World>) {
    world.act(Actor::Operator, |state, _| {
        state.happens("compaction");
        state.server.compact();
    });
}

fn data_is_lost(world: &Arc<World>) {
    world.act(Actor::Operator, |state, now| {
        if state.chance(40) {
            state.happens("backup made");
            state.backup = Some(state.server.clone());
            return;
        }
        let backup = state.backup.clone().filter(|_| state.rng.random());
        state.happens(match &backup {
            Some(_) => "etcd goes back to a backup",
            None => "etcd loses its data",
        });
        state.server.lose_data(now, backup.as_ref());
        if backup.is_none() {
            let config = state.config();
            let _ = state
                .server
                .put(now, b"/net/config", config.as_bytes(), None);
        }
        state.all_disturbed();
        for seat in &mut state.seats {
            seat.reasons.insert("etcd lost its data");
        }
    });
}

/// The record of a node, by hand.
fn operator_changes_a_record(world: &Arc<World>) {
    world.act(Actor::Operator, |state, now| {
        let node = state.any();
        let Some(key) = state.seats[node].held else {
            return;
        };
        let name = world.keys.lease(&key).into_bytes();
        let value = state.seats[node].attrs().encode();
        let ttl = state.renewal.ttl;
        match state.rng.random_range(0..5) {
            0 | 1 => {
                state.happens_to(node, "its record is deleted");
                state.server.delete(now, &name, None);
            }
            2 => {
                state.happens_to(node, "its record becomes a reservation");
                let _ = state.server.put(now, &name, value.as_bytes(), None);
            }
            3 => {
                state.happens_to(node, "its record becomes junk");
                let lease = state.chance(50).then(|| state.server.grant(now, ttl));
                let _ = state.server.put(now, &name, b"junk", lease);
            }
            _ => {
                state.happens_to(node, "its record is of no address");
                let lease = Some(state.server.grant(now, ttl));
                let _ = state.server.put(now, &name, b"{}", lease);
            }
        }
    });
}

/// Records of nodes that are not there, reservations, and what is no record.
fn operator_writes_elsewhere(world: &Arc<World>) {
    world.act(Actor::Operator, |state, now| {
        let (min, max) = state.pool;
        let n = state.rng.random_range(min..=max);
        let key = state.key(n, n);
        let is_free = |key: &LeaseKey| {
            let taken = state.server.kvs().filter_map(|kv| world.keys.parse(kv));
            !taken.into_iter().any(|taken| taken.overlaps(key))
        };
        if !is_free(&key) {
            return;
        }
        let name = world.keys.lease(&key).into_bytes();
        let stranger = Ipv4Addr::new(192, 168, 9, state.rng.random_range(1..4));
        let ttl = state.renewal.ttl;
        match state.rng.random_range(0..4) {
            0 => {
                state.happens("junk keys and values");
                let _ = state.server.put(now, b"/net/subnets/junk", b"junk", None);
                let lease = Some(state.server.grant(now, ttl));
                let _ = state.server.put(now, &name, b"[]", lease);
            }
            1 => {
                state.happens("a stranger's lease");
                let value = LeaseAttrs::alloc(stranger).encode();
                let lease = Some(state.server.grant(now, ttl));
                let _ = state.server.put(now, &name, value.as_bytes(), lease);
            }
            2 => {
                state.happens("a stranger's reservation");
                let reserved = state.server.kvs().filter(|kv| kv.lease == 0).count();
                let value = LeaseAttrs::alloc(stranger).encode();
                if reserved < 6 {
                    let _ = state.server.put(now, &name, value.as_bytes(), None);
                }
            }
            _ => {
                let node = state.any();
                state.happens_to(node, "another subnet is reserved for it");
                let value = LeaseAttrs::alloc(state.seats[node].ip).encode();
                let reserved = state.server.kvs().filter(|kv| kv.lease == 0).count();
                if reserved < 6 {
                    let _ = state.server.put(now, &name, value.as_bytes(), None);
                }
            }
        }
    });
}

fn config_is_written(world: &Arc<World>) {
    world.act(Actor::Operator, |state, now| {
        match state.rng.random_range(0..4) {
            0 => {
                state.happens("the network config is deleted");
                state.server.delete(now, b"/net/config", None);
                let pause = state.pick(20 * SECOND);
                later(world, pause, |state| {
                    let config = state.config();
                    let _ = state.server.put(
                        super::world::now(),
                        b"/net/config",
                        config.as_bytes(),
                        None,
                    );
                });
                return;
            }
            1 => {
                state.happens("the pool of subnets is changed");
                let (min, max) = state.pool;
                state.pool = if min == 1 { (4, max + 3) } else { (1, max - 3) };
            }
            _ => state.happens("the network config is written again"),
        }
        let config = state.config();
        let _ = state
            .server
            .put(now, b"/net/config", config.as_bytes(), None);
    });
}

fn node_is_readdressed(world: &Arc<World>) {
    world.act(Actor::Operator, |state, _| {
        let node = state.any();
        let last = state.seats[node].ip.octets()[3];
        let number = u8::try_from(node).unwrap_or_default();
        let last = if last < 50 { 50 + number } else { 10 + number };
        state.happens_to(node, "it gets another address");
        state.readdress(node, Ipv4Addr::new(192, 168, 0, last));
    });
}

impl WorldState {
    /// The agent follows, if it runs.
    pub fn readdress(&mut self, node: usize, ip: Ipv4Addr) {
        let seat = &mut self.seats[node];
        seat.ip = ip;
        seat.ips.insert(ip);
        if let Some(member) = &seat.member {
            seat.wanted = seat.attrs();
            member.publish(seat.wanted.clone());
        }
    }
}

/// Two nodes have one address, for a while.
fn node_borrows_an_address(world: &Arc<World>) {
    let (node, pause) = world.act(Actor::Operator, |state, _| {
        let (node, other) = (state.any(), state.any());
        let ip = state.seats[other].ip;
        state.happens_to(node, "it has another node's address");
        state.disturbed(other);
        state.seats[node].life.cancel();
        state.seats[node].ip = ip;
        state.seats[node].ips.insert(ip);
        for node in [node, other] {
            let reasons = &mut state.seats[node].reasons;
            reasons.insert("another node has the same address");
        }
        (node, state.while_())
    });
    later(world, pause, move |state| state.give_back(node));
}

impl WorldState {
    /// The node gets an address of its own again.
    pub fn give_back(&mut self, node: usize) {
        let number = u8::try_from(node).unwrap_or_default();
        let own = [10 + number, 50 + number].map(|last| Ipv4Addr::new(192, 168, 0, last));
        if !own.contains(&self.seats[node].ip) {
            self.note(|| format!("n{node} has an address of its own again"));
            self.readdress(node, own[0]);
            self.all_disturbed();
        }
    }
}
