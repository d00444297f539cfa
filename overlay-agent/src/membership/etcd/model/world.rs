//! Everything there is in a run: the servers, the network to them, the nodes as the outside sees
//! them, chance, and what has been seen.

use std::{
    collections::BTreeSet,
    fmt::Display,
    net::Ipv4Addr,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ipnetwork::{Ipv4Network, Ipv6Network};
use overlay_common::addr::MacAddr;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::Notify;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::{
    super::{keys::Keys, kv::Kv},
    server::Server,
    tally::Tally,
};
use crate::{
    core::Renewal,
    membership::Member,
    model::{LeaseAttrs, LeaseKey, LeaseView, OwnLease},
};

/// Last IPv6 subnet of the pool, which is small: nodes that start together choose the same one.
pub const LAST_IPV6: u8 = 12;

/// Who changed the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    Node(usize),
    Stock(usize),
    Operator,
    /// A lease ran out.
    Time,
}

/// How requests fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// Longest way of a request or an answer.
    pub latency: Duration,
    /// Of a hundred requests so many go wrong.
    pub trouble: u32,
    /// Members that serve watches are behind by up to so much.
    pub lag: Duration,
}

impl Weather {
    pub const FINE: Self = Self {
        latency: Duration::from_millis(5),
        trouble: 0,
        lag: Duration::ZERO,
    };
}

/// What a connection attempt meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Refused,
    Silent,
}

/// A node as the outside sees it.
pub struct Seat {
    pub ip: Ipv4Addr,
    /// All addresses it has ever had.
    pub ips: BTreeSet<Ipv4Addr>,
    pub mac: MacAddr,
    /// The same in words, by which its records are known.
    pub name: String,
    pub dual: bool,
    /// The subnet file.
    pub file: Option<LeaseKey>,
    pub cut: Option<Cut>,
    pub asleep: Option<Instant>,
    /// How long it slept, all in all.
    pub slept: Duration,
    /// So much of it the agent has not been told.
    pub untold: Duration,
    /// How long it had slept when the agent was started.
    pub slept_before: Duration,
    /// Ends the agent's life.
    pub life: CancellationToken,
    /// The agent dies after so many more steps of requests.
    pub dies_in: Option<u32>,
    pub member: Option<Arc<Member>>,
    /// Stays down while set.
    pub down: bool,
    /// The subnet it held last.
    pub held: Option<LeaseKey>,
    /// What it said of itself then.
    pub wanted: LeaseAttrs,
    /// Outside reasons for losing that subnet.
    pub reasons: BTreeSet<&'static str>,
    /// Since when nothing keeps it from renewing.
    pub well: Instant,
}

pub struct WorldState {
    pub server: Server,
    pub backup: Option<Server>,
    pub weather: Weather,
    pub away: Option<Cut>,
    pub seats: Vec<Seat>,
    pub stock: Vec<Ipv4Addr>,
    pub rng: StdRng,
    pub tally: Tally,
    pub trace: Option<Vec<String>>,
    /// The first thing that must not be.
    pub violation: Option<String>,
    pub renewal: Renewal,
    pub dual: bool,
    /// Nothing is to happen any more.
    pub calm: bool,
    /// First and last subnet of the pool.
    pub pool: (u8, u8),
    /// So many keys fit on a page of a list.
    pub page: usize,
    origin: Instant,
    /// So many writes of the history have been judged.
    judged: usize,
}

pub struct World {
    state: Mutex<WorldState>,
    pub keys: Keys,
    /// Wakes watches and sleepers.
    pub changed: Notify,
}

pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

pub fn before(at: Instant, time: Duration) -> Instant {
    at.checked_sub(time).unwrap()
}

impl World {
    pub fn new(seed: u64, traced: bool) -> Self {
        let state = WorldState {
            server: Server::new(),
            backup: None,
            weather: Weather::FINE,
            away: None,
            seats: Vec::new(),
            stock: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            tally: Tally::default(),
            trace: traced.then(Vec::new),
            violation: None,
            renewal: Renewal {
                ttl: Renewal::TTL,
                margin: Duration::from_hours(1),
            },
            dual: false,
            calm: false,
            pool: (1, 1),
            page: 1000,
            origin: now(),
            judged: 0,
        };
        Self {
            state: Mutex::new(state),
            keys: Keys {
                config: "/net/config".to_owned(),
                subnets: "/net/subnets/".to_owned(),
            },
            changed: Notify::new(),
        }
    }

    /// Looks at the world, or changes something of it that wakes nobody.
    pub fn see<T>(&self, look: impl FnOnce(&mut WorldState) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Changes something, judges what came of it, and wakes all who wait.
    pub fn act<T>(&self, actor: Actor, change: impl FnOnce(&mut WorldState, Instant) -> T) -> T {
        let now = now();
        let mut state = self.state.lock().unwrap();
        let life = state.server.life;
        let written = state.server.history.len();
        state.server.advance(now);
        state.judge(&self.keys, Actor::Time);
        let result = change(&mut state, now);
        if state.server.life != life {
            // What a backup has was judged when it was written.
            state.judged = state.server.history.len();
        }
        // Nodes mostly read.
        let is_read = matches!(actor, Actor::Node(_)) && state.server.history.len() == written;
        if !is_read {
            state.judge(&self.keys, actor);
            state.check(&self.keys, now);
            drop(state);
            self.changed.notify_waiters();
        }
        result
    }

    /// Has leases run out when it is their time.
    pub async fn reap(self: Arc<Self>) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.see(|state| state.server.next_end()) {
                None => changed.await,
                Some(end) if timeout_at(end.into(), changed).await.is_ok() => {}
                Some(_) => self.act(Actor::Time, |_, _| {}),
            }
        }
    }

    /// Waits until a condition holds.
    pub async fn until(&self, mut condition: impl FnMut(&mut WorldState) -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.see(&mut condition) {
                return;
            }
            changed.await;
        }
    }
}

impl WorldState {
    /// Judges what has been written since, by whom it was.
    fn judge(&mut self, keys: &Keys, actor: Actor) {
        let new = self.server.history.split_off(self.judged);
        for record in &new {
            self.judge_write(keys, actor, record);
        }
        self.server.history.extend(new);
        self.judged = self.server.history.len();
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let at = now().saturating_duration_since(self.origin);
            trace.push(format!("{:>14.3}  {}", at.as_secs_f64(), text()));
        }
    }

    pub fn count(&mut self, what: &'static str) {
        self.tally.count(what);
    }

    pub fn violate(&mut self, text: impl Display) {
        self.note(|| format!("VIOLATION {text}"));
        self.violation.get_or_insert_with(|| text.to_string());
    }

    /// True for so many of a hundred.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    pub fn pick(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.random_range(0..=micros))
    }

    /// From seconds to hours.
    pub fn while_(&mut self) -> Duration {
        let most = [1, 10, 60, 300, 1500][self.rng.random_range(0..5)];
        self.pick(Duration::from_secs(most))
    }

    /// The key of the pool's subnet `n`, and of an IPv6 subnet if there is IPv6.
    pub fn key(&self, n: u8, n6: u8) -> LeaseKey {
        let ipv4 = Ipv4Network::new(Ipv4Addr::new(10, 3, n, 0), 24).ok();
        let ipv6 = Ipv6Network::new([0xfd00, 3, 0, n6.into(), 0, 0, 0, 0].into(), 64);
        LeaseKey::new(ipv4, ipv6.ok().filter(|_| self.dual)).unwrap()
    }

    /// A node was kept from something until now.
    pub fn disturbed(&mut self, node: usize) {
        self.seats[node].well = now();
    }

    pub fn all_disturbed(&mut self) {
        let now = now();
        self.seats.iter_mut().for_each(|seat| seat.well = now);
    }
}

impl Seat {
    /// What the agent knows of the leases, if it runs and has one.
    pub fn view(&self) -> Option<LeaseView> {
        Some(self.running()?.view.borrow().clone())
    }

    /// What it knows of its own lease.
    pub fn own(&self) -> Option<OwnLease> {
        Some(self.running()?.view.borrow().own.clone())
    }

    fn running(&self) -> Option<&Member> {
        self.member.as_deref().filter(|_| !self.life.is_cancelled())
    }

    /// What it says of itself.
    pub fn attrs(&self) -> LeaseAttrs {
        let last = self.ip.octets()[3];
        let attrs = LeaseAttrs::vxlan(self.ip, 1, self.mac);
        if self.dual {
            attrs.with_ipv6([0xfd00, 9, 0, 0, 0, 0, 0, last.into()].into(), None)
        } else {
            attrs
        }
    }

    /// By its MAC address, which no other node has.
    pub fn is_named_by(&self, kv: &Kv) -> bool {
        let value = String::from_utf8_lossy(&kv.value);
        value.contains(&self.name)
    }

    /// The clock of the machine, which stands still while it sleeps.
    pub fn clock(&self) -> Instant {
        before(self.asleep.unwrap_or_else(now), self.slept)
    }
}
