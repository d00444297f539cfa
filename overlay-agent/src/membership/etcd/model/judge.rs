//! What must never be, whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;

use super::{
    super::{keys::Keys, kv::Kv},
    server::Record,
    world::{Actor, Weather, WorldState, before},
};
use crate::{
    backend,
    model::{LeaseAttrs, LeaseKey, OwnState, PeerLease},
};

/// A node that nothing keeps from it notices within this time what became of its record.
const NOTICE: Duration = Duration::from_mins(6);

/// A record that is gone is known to be after this time: members lag, and peers stay for a while.
const SETTLES: Duration = Duration::from_mins(1);

fn words(peers: &BTreeMap<IpNetwork, PeerLease>) -> String {
    let words = peers.values().map(|peer| {
        let (key, ip) = (peer.key, peer.attrs.public_ip);
        let data = peer.attrs.backend_data.as_deref().unwrap_or_default();
        format!("{key} at {ip} {data}")
    });
    words.collect::<Vec<_>>().join(", ")
}

fn attrs(kv: &Kv) -> Option<LeaseAttrs> {
    LeaseAttrs::decode(&kv.value).ok()
}

impl WorldState {
    /// How long nothing has kept a node from renewing.
    fn well_for(&self, node: usize, now: Instant) -> Duration {
        let seat = &self.seats[node];
        let kept = seat.cut.is_some()
            || seat.asleep.is_some()
            || self.away.is_some()
            || self.weather != Weather::FINE
            || self.is_shared(node);
        if kept {
            Duration::ZERO
        } else {
            now.saturating_duration_since(seat.well)
        }
    }

    /// Another node has its address.
    fn is_shared(&self, node: usize) -> bool {
        let ip = self.seats[node].ip;
        self.seats.iter().filter(|seat| seat.ip == ip).count() > 1
    }

    /// Nobody but its owner writes a record, and a reservation stays one.
    pub fn judge_write(&mut self, keys: &Keys, actor: Actor, record: &Record) {
        let (kv, before) = (&record.event.kv, record.before.as_ref());
        self.note(|| {
            let name = String::from_utf8_lossy(&kv.key);
            let value = String::from_utf8_lossy(&kv.value);
            let (lease, revision) = (kv.lease, kv.mod_revision);
            if record.event.deleted {
                format!("    r{revision} {actor:?}: {name} is gone")
            } else {
                format!("    r{revision} {actor:?}: {name} lease {lease}: {value}")
            }
        });
        let Some(key) = keys.parse(kv) else { return };
        if let (Actor::Node(node), Some(before)) = (actor, before) {
            self.count("records written or deleted by nodes that had one");
            let seat = &self.seats[node];
            let is_own = attrs(before).is_none_or(|attrs| {
                attrs.public_ip.is_unspecified()
                    || seat.ips.contains(&attrs.public_ip)
                    || backend::share_device(&attrs, &seat.wanted)
            });
            if !is_own {
                let text = format!("n{node} changed another node's record {key}");
                self.violate(text);
            }
            if before.lease == 0 && (record.event.deleted || kv.lease != 0) {
                let text = format!("n{node} did away with the reservation {key}");
                self.violate(text);
            } else if before.lease == 0 {
                self.count("reservations written by their nodes");
            }
        }
        for node in 0..self.seats.len() {
            let seat = &self.seats[node];
            if seat.held != Some(key) || actor == Actor::Node(node) || seat.is_named_by(kv) {
                continue;
            }
            let reason = match actor {
                Actor::Operator => "an operator changed the record",
                Actor::Stock(_) => "a stock node wrote the record",
                Actor::Node(other) if self.seats[other].ips.intersection(&seat.ips).count() > 0 => {
                    "another node has the same address"
                }
                // Whoever made the key free has been noted.
                Actor::Node(_) => continue,
                Actor::Time => {
                    let well = self.well_for(node, record.at);
                    let renews = seat.own().is_some_and(|own| own.state == OwnState::Held);
                    if renews && well > NOTICE {
                        let text = format!("the lease {key} of n{node} ran out without a reason");
                        self.violate(text);
                        continue;
                    }
                    "the lease ran out"
                }
            };
            self.count(reason);
            self.seats[node].reasons.insert(reason);
            self.seats[node].well = record.at;
        }
    }

    /// Two nodes never hold one subnet, and nobody believes for long what is not so.
    pub fn check(&mut self, keys: &Keys, now: Instant) {
        let mut beliefs: Vec<(usize, LeaseKey, bool)> = Vec::new();
        for node in 0..self.seats.len() {
            let seat = &self.seats[node];
            let Some(own) = seat.own().filter(|_| seat.asleep.is_none()) else {
                continue;
            };
            let key = own.key;
            let held = own.state == OwnState::Held;
            let end = own.expires;
            let is_valid = end.is_none_or(|end| end > before(now, seat.slept_before));
            let stored = self.server.get(keys.lease(&key).as_bytes());
            let is_backed = stored.is_some_and(|kv| seat.is_named_by(kv));
            if held && is_valid {
                let well = self.well_for(node, now);
                if !is_backed && well > NOTICE {
                    let text = format!("n{node} still believes to hold {key}");
                    self.violate(text);
                }
                beliefs.push((node, key, is_backed));
            }
            let seat = &self.seats[node];
            if seat.reasons.is_empty() || !held || !is_backed || seat.held != Some(key) {
                continue;
            }
            let overlaps = |other: LeaseKey| other != key && other.overlaps(&key);
            let mut others = self.server.kvs().filter_map(|kv| keys.parse(kv));
            if !self.dual || !others.any(overlaps) {
                self.seats[node].reasons.clear();
            }
        }
        for (at, (one, key, is_backed)) in beliefs.iter().enumerate() {
            for (other, other_key, other_is_backed) in &beliefs[at + 1..] {
                self.count("pairs of holders compared");
                if !key.overlaps(other_key) {
                    continue;
                }
                // A node that writes its lost record again learns from its watch what it overlaps.
                let learns = |node| self.well_for(node, now) < NOTICE;
                let is_excused = |node: usize, is_backed: bool| {
                    (!is_backed || learns(node)) && !self.seats[node].reasons.is_empty()
                };
                let excused = is_excused(*one, *is_backed) || is_excused(*other, *other_is_backed);
                let (first, second) = (&self.seats[*one], &self.seats[*other]);
                if first.ips.intersection(&second.ips).count() > 0 {
                    continue;
                }
                if !excused {
                    let text = format!("n{one} holds {key} and n{other} holds {other_key}");
                    self.violate(text);
                }
                self.count("subnets that two nodes believed to hold, with a reason");
            }
        }
    }

    /// A node has got a subnet, or another one than before.
    pub fn judge_lease(&mut self, keys: &Keys, node: usize, key: LeaseKey) {
        let seat = &self.seats[node];
        let Some(before) = seat.held.filter(|before| *before != key) else {
            self.seats[node].held = Some(key);
            return;
        };
        let own = self.server.kvs().filter(|kv| {
            keys.parse(kv).is_some() && attrs(kv).is_some_and(|said| said.public_ip == seat.ip)
        });
        let several = own.count() > 1;
        let stored = self.server.get(keys.lease(&key).as_bytes());
        let is_reserved = stored.is_some_and(|kv| kv.lease == 0);
        let fits = before
            .ipv4()
            .is_some_and(|subnet| (self.pool.0..=self.pool.1).contains(&subnet.ip().octets()[2]));
        // It has the address of an earlier record again, and what it held since shows another.
        let shows_other = |kv: &Kv| attrs(kv).is_some_and(|said| said.public_ip != seat.ip);
        let held_since = self.server.get(keys.lease(&before).as_bytes());
        let is_back = stored.is_some_and(|kv| kv.create_revision < kv.mod_revision)
            && held_since.is_some_and(shows_other);
        if seat.reasons.is_empty() && fits && !several && !is_reserved && !is_back {
            let text = format!("n{node} has lost {before} for {key} without a reason");
            self.violate(text);
        }
        self.count("subnets lost with a reason");
        let seat = &mut self.seats[node];
        seat.held = Some(key);
        seat.reasons.clear();
    }

    /// A node sees that another one has its subnet.
    pub fn judge_taken(&mut self, node: usize) {
        if self.seats[node].reasons.is_empty() {
            let text = format!("n{node}'s subnet was taken without a reason");
            self.violate(text);
        }
    }

    /// Each node has its subnet, and says so.
    pub fn check_holders(&mut self, keys: &Keys) {
        for node in 0..self.seats.len() {
            let Some(view) = self.seats[node].view() else {
                self.violate(format!("n{node} has no lease in the end"));
                continue;
            };
            let key = view.own.key;
            let stored = self.server.get(keys.lease(&key).as_bytes()).and_then(attrs);
            if view.own.state != OwnState::Held || stored.as_ref() != Some(&self.seats[node].wanted)
            {
                let state = view.own.state;
                self.violate(format!(
                    "n{node} has no lease in the end: {key} {state:?} {stored:?}"
                ));
            }
            self.count("nodes with a lease in the end");
        }
    }

    /// What each node knows is what the store has.
    pub fn check_views(&mut self, keys: &Keys, now: Instant) {
        let history = self.server.history.iter().rev();
        let news = history.take_while(|record| record.at > before(now, SETTLES));
        let news: BTreeSet<_> = news
            .filter_map(|record| keys.parse(&record.event.kv))
            .collect();
        for node in 0..self.seats.len() {
            let Some(view) = self.seats[node].view() else {
                continue;
            };
            let own = view.own.key;
            let mut expected = BTreeMap::<IpNetwork, (i64, PeerLease)>::new();
            for kv in self.server.kvs() {
                let Some((key, attrs)) = keys.parse(kv).zip(attrs(kv)) else {
                    continue;
                };
                let is_own = attrs.public_ip == self.seats[node].ip || key.overlaps(&own);
                if is_own || attrs.public_ip.is_unspecified() {
                    continue;
                }
                let subnet = key.subnet();
                let attrs = Arc::new(attrs);
                let found = (kv.mod_revision, PeerLease { key, attrs });
                let newer = |known: &(i64, PeerLease)| known.0 < found.0;
                if expected.get(&subnet).is_none_or(newer) {
                    expected.insert(subnet, found);
                }
            }
            let config = self.server.get(keys.config.as_bytes());
            let config = config.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
            if view.config.as_ref().map(|config| &config.text) != config.as_ref() {
                let known = &view.config;
                self.violate(format!("n{node} has the config {known:?}, not {config:?}"));
            }
            let expected = expected.into_iter();
            let mut expected: BTreeMap<_, _> = expected
                .map(|(subnet, (_, lease))| (subnet, lease))
                .collect();
            expected.retain(|_, peer| !news.contains(&peer.key));
            // A value that cannot be read leaves in force what is known of the node.
            let is_readable = |key: &LeaseKey| {
                let kv = self.server.get(keys.lease(key).as_bytes());
                kv.is_none_or(|kv| attrs(kv).is_some())
            };
            let mut known = BTreeMap::clone(&view.peers);
            known.retain(|_, peer| is_readable(&peer.key) && !news.contains(&peer.key));
            if known != expected {
                let (known, there) = (words(&known), words(&expected));
                self.violate(format!("n{node} knows {known}, the store has {there}"));
            }
            self.count("views compared with the store in the end");
        }
    }
}
