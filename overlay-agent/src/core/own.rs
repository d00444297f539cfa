//! The own lease after it was acquired: renewed in time, put right when somebody changes it,
//! written again when it is gone, given up when another node has taken it.
//!
//! One request is under way at a time. What is observed meanwhile waits, because only the
//! request's revision tells which of the two came first.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use rand::RngCore;

use super::record::{Entry, Expect, Put, PutOutcome, RecordState};
use crate::{
    backend::share_device,
    backoff::Backoff,
    model::{Alarm, LeaseAttrs, LeaseKey, OwnLease, OwnState, StoreError},
};

/// When leases run out and are renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Life of a lease; flannel's is 24 hours.
    pub ttl: Duration,
    /// How long before its end a lease is renewed.
    pub margin: Duration,
}

/// The record as it was when acquired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub key: LeaseKey,
    pub attrs: LeaseAttrs,
    pub create_revision: i64,
    pub mod_revision: i64,
    /// Id and end of the etcd lease; `None` for a reservation.
    pub lease: Option<(i64, Instant)>,
}

/// A request to the store about the own record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    Put(Put),
    Get(LeaseKey),
    TimeToLive(i64),
}

/// Renewals are never closer together, whatever the margin.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(10);

/// Foreign changes of the own record within this time of each other count as a fight.
const QUIET: Duration = Duration::from_mins(10);

/// Two clocks may disagree so much about the end of a lease.
const CLOCK_SLACK: Duration = Duration::from_mins(1);

/// Foreign changes before the fight is reported.
const FIGHT: u32 = 3;

/// The own record.
#[derive(Debug)]
pub struct Own {
    key: LeaseKey,
    wanted: LeaseAttrs,
    /// What the record said before the public IP changed.
    former: Option<LeaseAttrs>,
    /// Revision of the last write.
    written: i64,
    renewal: Renewal,
    claim: Claim,
    /// Another node, whose record overlaps this one and is older.
    rival: Option<IpAddr>,
    /// Revision of the newest observation.
    seen: i64,
    under_way: Option<(StoreRequest, Instant)>,
    waiting: Option<RecordState>,
    /// The record must be read before it is trusted again.
    doubtful: bool,
    /// The end of the etcd lease must be asked for.
    unsure_of_end: bool,
    pause: Option<Instant>,
    /// The last write failed, and the store has not answered since.
    failing: bool,
    retry: Backoff,
    fight: Fight,
}

#[derive(Clone, Debug)]
enum Claim {
    Held {
        create_revision: i64,
        mod_revision: i64,
        /// `None` for a value that is no lease.
        stored: Option<LeaseAttrs>,
        life: Life,
    },
    Lost,
    Taken {
        by: IpAddr,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Reservation,
    /// On a lease whose end is not known yet.
    Unasked {
        id: i64,
    },
    Until {
        id: i64,
        renew: Instant,
        end: Instant,
    },
}

#[derive(Debug)]
struct Fight {
    changes: u32,
    last: Option<Instant>,
    pause: Backoff,
}

impl Own {
    pub fn new(held: Held, wanted: LeaseAttrs, renewal: Renewal, now: Instant) -> Self {
        let life = match held.lease {
            None => Life::Reservation,
            Some((id, end)) => renewal.life(id, now, end),
        };
        Self {
            key: held.key,
            wanted,
            former: None,
            written: held.mod_revision,
            renewal,
            seen: held.mod_revision,
            claim: Claim::Held {
                create_revision: held.create_revision,
                mod_revision: held.mod_revision,
                stored: Some(held.attrs),
                life,
            },
            rival: None,
            under_way: None,
            waiting: None,
            doubtful: false,
            unsure_of_end: false,
            pause: None,
            failing: false,
            retry: Backoff::new(Duration::from_secs(1), Duration::from_mins(1)),
            fight: Fight {
                changes: 0,
                last: None,
                pause: Backoff::new(Duration::from_secs(1), Duration::from_mins(5)),
            },
        }
    }

    pub fn key(&self) -> LeaseKey {
        self.key
    }

    /// Whether the own record cannot be written.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    pub fn lease(&self) -> OwnLease {
        let (state, life) = match &self.claim {
            Claim::Held { life, .. } => (OwnState::Held, Some(*life)),
            Claim::Lost => (OwnState::Lost, None),
            Claim::Taken { by } => (OwnState::Taken { by: *by }, None),
        };
        let state = match self.rival {
            Some(by) if life != Some(Life::Reservation) => OwnState::Taken { by },
            _ => state,
        };
        OwnLease {
            key: self.key,
            expires: match life {
                Some(Life::Until { end, .. }) => Some(end),
                _ => None,
            },
            reservation: life == Some(Life::Reservation),
            state,
        }
    }

    pub fn alarms(&self, now: Instant) -> Vec<Alarm> {
        let subnet = self.key.subnet();
        let mut alarms = Vec::new();
        if let OwnState::Taken { by } = self.lease().state {
            alarms.push(Alarm::Taken { subnet, by });
        }
        match self.claim {
            Claim::Held {
                life: Life::Until { end, .. },
                ..
            } if end <= now => alarms.push(Alarm::Overdue { subnet }),
            _ => {}
        }
        if self.fight.changes >= FIGHT {
            alarms.push(Alarm::Contended { subnet });
        }
        alarms
    }

    /// When the record was made; `None` while there is none.
    pub fn create_revision(&self) -> Option<i64> {
        match self.claim {
            Claim::Held {
                create_revision, ..
            } => Some(create_revision),
            _ => None,
        }
    }

    /// Has this node give way to another one, whose record overlaps and is older, or to nobody.
    pub fn give_way(&mut self, rival: Option<IpAddr>) {
        self.rival = rival;
    }

    /// Sets what the record is to say.
    pub fn publish(&mut self, attrs: LeaseAttrs) {
        let before = std::mem::replace(&mut self.wanted, attrs);
        if before.node_ip() != self.wanted.node_ip() {
            self.former = Some(before);
        }
        self.pause = None;
    }

    /// The store answers again: read the record, and repeat at once what failed.
    pub fn reconnected(&mut self) {
        self.doubtful = true;
        // The clock may have stood still with the machine.
        self.unsure_of_end = true;
        self.pause = None;
    }

    /// The store went back in time: revisions seen before mean nothing.
    pub fn store_reset(&mut self) {
        self.seen = 0;
        self.waiting = None;
    }

    /// The record, or its absence, as the store had it.
    pub fn observe(&mut self, now: Instant, observed: RecordState, rng: &mut dyn RngCore) {
        if self.under_way.is_some() {
            let newer = |waiting: &RecordState| waiting.revision <= observed.revision;
            if self.waiting.as_ref().is_none_or(newer) {
                self.waiting = Some(observed);
            }
            return;
        }
        if observed.revision < self.seen {
            return;
        }
        self.seen = observed.revision;
        match observed.entry {
            None => self.claim = Claim::Lost,
            Some(entry) => self.adopt(now, entry, rng),
        }
    }

    /// The record as an answer has it. Answers come from the leader and never lag, so one that is
    /// older than what was seen before it was asked for is from a store that went back in time.
    fn read(&mut self, now: Instant, observed: RecordState, rng: &mut dyn RngCore) {
        self.seen = self.seen.min(observed.revision);
        self.observe(now, observed, rng);
    }

    fn adopt(&mut self, now: Instant, entry: Entry, rng: &mut dyn RngCore) {
        let stored = entry.value.ok();
        let known = match &self.claim {
            Claim::Held {
                mod_revision,
                stored: known,
                life,
                ..
            } => {
                let same = (*mod_revision, known, life.id())
                    == (entry.mod_revision, &stored, entry.lease_id);
                if same {
                    return;
                }
                Some(*life)
            }
            _ => None,
        };
        if let Some(attrs) = &stored
            && !self.is_own(attrs, entry.mod_revision)
        {
            self.claim = Claim::Taken {
                by: attrs.node_ip(),
            };
            return;
        }
        if stored.as_ref() != Some(&self.wanted) {
            self.contested(now, rng);
        } else if entry.lease_id.is_none() {
            // A write that seemed to fail was carried out. Of a lease the next request tells, and this has none.
            self.failing = false;
        }
        let life = match (entry.lease_id, known) {
            (None, _) => Life::Reservation,
            (Some(id), Some(life)) if life.id() == Some(id) => life,
            (Some(id), _) => Life::Unasked { id },
        };
        self.claim = Claim::Held {
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
            stored,
            life,
        };
    }

    /// Whether this node, or nobody, wrote the record. One without an address was overwritten by hand. One of
    /// this node's device that is older than the last write is of a former time, from a backup of the
    /// store.
    fn is_own(&self, said: &LeaseAttrs, mod_revision: i64) -> bool {
        let node_ip = said.node_ip();
        let is_former =
            |former: &LeaseAttrs| node_ip == former.node_ip() && !are_two_devices(former, said);
        node_ip == self.wanted.node_ip()
            || node_ip.is_unspecified()
            || self.former.as_ref().is_some_and(is_former)
            || mod_revision < self.written && share_device(&self.wanted, said)
    }

    fn contested(&mut self, now: Instant, rng: &mut dyn RngCore) {
        let fight = &mut self.fight;
        if fight.last.is_none_or(|last| now >= last + QUIET) {
            fight.changes = 0;
            fight.pause.succeeded();
        }
        fight.last = Some(now);
        fight.changes = fight.changes.saturating_add(1);
        if fight.changes > 1 {
            self.pause = Some(now + fight.pause.failed(rng));
        }
    }

    /// The next request, if one is due and none is under way.
    pub fn poll(&mut self, now: Instant) -> Option<StoreRequest> {
        if self.fight.last.is_some_and(|last| now >= last + QUIET) {
            self.fight.last = None;
            self.fight.changes = 0;
        }
        if self.under_way.is_some() || self.pause.is_some_and(|until| now < until) {
            return None;
        }
        let request = self.due(now)?;
        self.pause = None;
        self.under_way = Some((request.clone(), now));
        Some(request)
    }

    fn due(&self, now: Instant) -> Option<StoreRequest> {
        if let Claim::Held {
            life: Life::Until { id, .. },
            ..
        } = self.claim
            && self.unsure_of_end
        {
            return Some(StoreRequest::TimeToLive(id));
        }
        if self.doubtful {
            return Some(StoreRequest::Get(self.key));
        }
        match &self.claim {
            Claim::Taken { .. } => None,
            Claim::Lost if self.rival.is_some() => None,
            Claim::Lost => Some(self.put(Expect::Absent, Some(self.renewal.ttl))),
            Claim::Held {
                mod_revision,
                stored,
                life,
                ..
            } => {
                let expect = Expect::Unchanged {
                    mod_revision: *mod_revision,
                    lease_id: life.id(),
                };
                let stale = stored.as_ref() != Some(&self.wanted);
                match life {
                    Life::Reservation if stale => Some(self.put(expect, None)),
                    Life::Reservation => None,
                    _ if self.rival.is_some() => None,
                    Life::Unasked { id } if !stale => Some(StoreRequest::TimeToLive(*id)),
                    Life::Until { renew, .. } if !stale && now < *renew => None,
                    _ => Some(self.put(expect, Some(self.renewal.ttl))),
                }
            }
        }
    }

    fn put(&self, expect: Expect, ttl: Option<Duration>) -> StoreRequest {
        StoreRequest::Put(Put {
            key: self.key,
            attrs: self.wanted.clone(),
            expect,
            ttl,
        })
    }

    /// The next time after `now` at which [`Own::poll`] has something to do or an alarm changes.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let quiet = self.fight.last.map(|last| last + QUIET);
        let ends = match &self.claim {
            Claim::Held {
                life: Life::Until { renew, end, .. },
                ..
            } => [Some(*renew), Some(*end)],
            _ => [None, None],
        };
        let times = ends.into_iter().chain([quiet, self.pause]).flatten();
        times.filter(|time| *time > now).min()
    }

    /// The answer to a `Put`.
    pub fn written(
        &mut self,
        now: Instant,
        answer: Result<PutOutcome, StoreError>,
        rng: &mut dyn RngCore,
    ) {
        let Some((StoreRequest::Put(put), sent)) = self.under_way.take() else {
            return;
        };
        self.failing = answer.is_err();
        match answer {
            Ok(PutOutcome::Written {
                mod_revision,
                lease_id,
                ttl,
            }) => {
                self.retry.succeeded();
                self.unsure_of_end = false;
                self.seen = self.seen.max(mod_revision);
                self.written = mod_revision;
                let life = match lease_id.zip(ttl) {
                    Some((id, ttl)) => self.renewal.life(id, sent, sent + ttl),
                    None => Life::Reservation,
                };
                // A write that replaces a record finds it as it is known.
                let known = self.create_revision();
                let known = known.filter(|_| put.expect != Expect::Absent);
                self.claim = Claim::Held {
                    create_revision: known.unwrap_or(mod_revision),
                    mod_revision,
                    stored: Some(put.attrs),
                    life,
                };
            }
            Ok(PutOutcome::Conflict(observed)) => {
                self.read(now, observed, rng);
                // What the conflict taught must change the next write.
                if self.due(now) == Some(StoreRequest::Put(put)) {
                    self.pause = Some(now + self.retry.failed(rng));
                }
            }
            Err(_) => self.pause = Some(now + self.retry.failed(rng)),
        }
        self.release_waiting(now, rng);
    }

    /// Whether the answer to the `TimeToLive` under way tells that the store has lost a lease that
    /// should still be alive.
    pub fn is_lost_too_early(&self, now: Instant, answer: Option<Duration>) -> bool {
        let asked = matches!(self.under_way, Some((StoreRequest::TimeToLive(_), _)));
        let alive = |end: Instant| end > now + CLOCK_SLACK;
        asked && answer.is_none() && self.lease().expires.is_some_and(alive)
    }

    /// The answer to a `TimeToLive`.
    pub fn time_to_live(
        &mut self,
        now: Instant,
        answer: &Result<Option<Duration>, StoreError>,
        rng: &mut dyn RngCore,
    ) {
        let Some((StoreRequest::TimeToLive(asked), sent)) = self.under_way.take() else {
            return;
        };
        self.failing &= answer.is_err();
        match answer {
            Ok(left) => {
                self.retry.succeeded();
                let end = sent + left.unwrap_or_default();
                self.unsure_of_end = false;
                if let Claim::Held { life, .. } = &mut self.claim
                    && life.id() == Some(asked)
                {
                    *life = self.renewal.life(asked, sent, end);
                }
            }
            Err(_) => self.pause = Some(now + self.retry.failed(rng)),
        }
        self.release_waiting(now, rng);
    }

    /// The answer to a `Get`.
    pub fn got(
        &mut self,
        now: Instant,
        answer: Result<RecordState, StoreError>,
        rng: &mut dyn RngCore,
    ) {
        self.under_way = None;
        self.failing &= answer.is_err();
        match answer {
            Ok(observed) => {
                self.retry.succeeded();
                self.doubtful = false;
                self.read(now, observed, rng);
            }
            Err(_) => self.pause = Some(now + self.retry.failed(rng)),
        }
        self.release_waiting(now, rng);
    }

    fn release_waiting(&mut self, now: Instant, rng: &mut dyn RngCore) {
        if let Some(observed) = self.waiting.take() {
            self.observe(now, observed, rng);
        }
    }
}

/// Whether both name their device, and not the same one.
fn are_two_devices(one: &LeaseAttrs, other: &LeaseAttrs) -> bool {
    let is_named = |attrs| share_device(attrs, attrs);
    is_named(one) && is_named(other) && !share_device(one, other)
}

impl Life {
    fn id(self) -> Option<i64> {
        match self {
            Self::Reservation => None,
            Self::Unasked { id } | Self::Until { id, .. } => Some(id),
        }
    }
}

impl Renewal {
    pub const TTL: Duration = Duration::from_hours(24);

    fn life(&self, id: i64, from: Instant, end: Instant) -> Life {
        let left = end.saturating_duration_since(from);
        let shortest = SHORTEST_RENEWAL.min(left / 3);
        let wait = left.saturating_sub(self.margin).max(shortest);
        Life::Until {
            id,
            renew: from + wait,
            end,
        }
    }
}
