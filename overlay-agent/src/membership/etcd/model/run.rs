//! One run: a cluster starts, things happen to it, it calms down, and is looked at.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc, time::Duration};

use overlay_common::addr::MacAddr;
use rand::Rng as _;
use tokio::{runtime::Builder, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    happenings, node, stock,
    tally::Tally,
    world::{Actor, Seat, Weather, World, WorldState, now},
};
use crate::{
    core::Renewal,
    model::{LeaseAttrs, OwnState},
};

/// What came of a run.
pub struct Outcome {
    pub tally: Tally,
    pub violation: Option<String>,
    pub trace: Vec<String>,
}

pub fn run(seed: u64, traced: bool) -> Outcome {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let world = runtime.block_on(async {
        let world = Arc::new(World::new(seed, traced));
        scenario(&world).await;
        world
    });
    world.see(|state| Outcome {
        tally: std::mem::take(&mut state.tally),
        violation: state.violation.take(),
        trace: state.trace.take().unwrap_or_default(),
    })
}

impl WorldState {
    fn populate(&mut self) {
        let (ttl, margin) = [
            (600, 60),
            (600, 60),
            (600, 120),
            (1800, 180),
            (3600, 300),
            (86_400, 3600),
        ][self.rng.random_range(0..6)];
        self.renewal = Renewal {
            ttl: Duration::from_secs(ttl),
            margin: Duration::from_secs(margin),
        };
        self.page = if self.chance(20) { 2 } else { 1000 };
        self.dual = self.chance(25);
        self.pool = (1, self.rng.random_range(16..=30));
        let nodes = self.rng.random_range(2..=4_u8);
        self.seats = (0..nodes).map(|number| seat(number, self.dual)).collect();
        let stock = [0, 0, 1, 2_u8][self.rng.random_range(0..4)];
        self.stock = (0..stock)
            .map(|number| Ipv4Addr::new(192, 168, 1, 1 + number))
            .collect();
        let config = self.config();
        let _ = self
            .server
            .put(now(), b"/net/config", config.as_bytes(), None);
    }
}

fn seat(number: u8, dual: bool) -> Seat {
    let ip = Ipv4Addr::new(192, 168, 0, 10 + number);
    let mac = MacAddr::new([2, 0, 0, 0, 0, number]);
    Seat {
        ip,
        ips: BTreeSet::from([ip]),
        name: mac.to_string(),
        mac,
        dual,
        file: None,
        cut: None,
        asleep: None,
        slept: Duration::ZERO,
        untold: Duration::ZERO,
        slept_before: Duration::ZERO,
        life: CancellationToken::new(),
        dies_in: None,
        member: None,
        down: false,
        held: None,
        wanted: LeaseAttrs::alloc(ip),
        reasons: BTreeSet::new(),
        well: now(),
    }
}

async fn scenario(world: &Arc<World>) {
    world.act(Actor::Operator, |state, _| state.populate());
    tokio::spawn(Arc::clone(world).reap());
    let (nodes, stock) = world.see(|state| (state.seats.len(), state.stock.clone()));
    for node in 0..nodes {
        tokio::spawn(node::run(Arc::clone(world), node));
    }
    for (index, ip) in stock.into_iter().enumerate() {
        tokio::spawn(stock::run(Arc::clone(world), index, ip));
    }
    let happenings = world.see(|state| state.rng.random_range(4..24));
    for _ in 0..happenings {
        happenings::happen(world).await;
        if world.see(|state| state.violation.is_some()) {
            return;
        }
    }
    calm(world).await;
}

/// From here on nothing happens any more.
async fn calm(world: &Arc<World>) {
    // What has begun comes to its end.
    let ttl = world.see(|state| state.renewal.ttl);
    sleep(2 * ttl.max(Duration::from_mins(25))).await;
    world.act(Actor::Operator, |state, now| {
        state.note(|| "CALM".to_owned());
        state.weather = Weather::FINE;
        state.calm = true;
        state.all_disturbed();
        for node in 0..state.seats.len() {
            let seat = &mut state.seats[node];
            (seat.cut, seat.dies_in, seat.down) = (None, None, false);
            state.wake(node);
            state.give_back(node);
        }
        let config = state.config();
        let _ = state
            .server
            .put(now, b"/net/config", config.as_bytes(), None);
    });
    sleep(Duration::from_mins(12)).await;
    restart(world, |state, node| {
        let view = state.seats[node].view();
        view.is_some_and(|view| matches!(view.own.state, OwnState::Taken { .. }))
    });
    sleep(Duration::from_mins(10)).await;
    world.see(|state| state.check_holders(&world.keys));
    // Records that nobody has use for run out, and peers that a reset store has lost are let go.
    sleep(ttl + ttl / 2 + Duration::from_mins(10)).await;
    world.see(|state| {
        state.check_holders(&world.keys);
        state.check_views(&world.keys, now());
    });
    restart(world, |_, _| true);
    sleep(Duration::from_mins(2)).await;
    world.see(|state| state.check_holders(&world.keys));
}

fn restart(world: &World, which: impl Fn(&WorldState, usize) -> bool) {
    world.act(Actor::Operator, |state, _| {
        for node in 0..state.seats.len() {
            if which(state, node) {
                state.note(|| format!("n{node} is restarted"));
                state.disturbed(node);
                state.seats[node].life.cancel();
            }
        }
    });
}
