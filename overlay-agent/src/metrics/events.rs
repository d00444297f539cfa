//! What the daemon did lately that packets may have noticed, and why, for people.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// How many are remembered.
const ROOM: usize = 64;
/// The same thing again within so many seconds of the last time is one entry.
const TOGETHER: f64 = 10.0;

/// Something that happened once, or several times within a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The last time, in seconds since 1970.
    pub at: f64,
    pub kind: EventKind,
    pub why: String,
    /// What was done of it. For a flush nothing: it is always the same.
    pub what: String,
    pub times: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The kernel's objects were put right.
    Repair,
    /// Flows have to earn their permits again.
    Flush,
}

impl EventKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Flush => "flush",
        }
    }
}

/// The last events, the newest at the end. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Mutex<VecDeque<Event>>>);

impl Events {
    pub(super) fn happened(&self, kind: EventKind, why: &str, what: String) {
        self.note(unix_time(), kind, why, what);
    }

    fn note(&self, at: f64, kind: EventKind, why: &str, what: String) {
        let mut events = self.lock();
        if let Some(last) = events.back_mut()
            && (last.kind, &*last.why, &last.what) == (kind, why, &what)
            && at - last.at < TOGETHER
        {
            last.at = at;
            last.times = last.times.saturating_add(1);
            return;
        }
        if events.len() >= ROOM {
            events.pop_front();
        }
        events.push_back(Event {
            at,
            kind,
            why: why.to_owned(),
            what,
            times: 1,
        });
    }

    /// Those that are remembered, the newest first.
    pub fn newest_first(&self) -> Vec<Event> {
        self.lock().iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
pub fn unix_time() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_thing_within_a_while_is_one_entry_and_the_oldest_ones_go() {
        let events = Events::default();
        let flush = |at, why: &str| events.note(at, EventKind::Flush, why, String::new());
        flush(1.0, "rules");
        flush(9.0, "rules");
        flush(9.5, "route");
        flush(10.0, "rules");
        flush(25.0, "rules");
        let told = events.newest_first().into_iter();
        let told: Vec<_> = told
            .map(|event| (event.at, event.why, event.times))
            .collect();
        let expected = [
            (25.0, "rules", 1),
            (10.0, "rules", 1),
            (9.5, "route", 1),
            (9.0, "rules", 2),
        ];
        assert_eq!(
            told,
            expected.map(|(at, why, times)| (at, why.to_owned(), times))
        );
        for number in 0..1_000 {
            flush(f64::from(number) * 60.0, "rules");
        }
        let told = events.newest_first();
        assert_eq!(told.len(), ROOM);
        assert!((told[0].at - 59_940.0).abs() < 1.0, "{:?}", told[0]);
    }
}
