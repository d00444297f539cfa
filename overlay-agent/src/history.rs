//! The last hour of this node, for whoever looks only when something is wrong: packets between pods by who
//! carried them, packets dropped, and what the daemon put right.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use overlay_common::outcome::{Counter, Hook, Kind, Outcome};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    datapath::{FastShare, PinDir, Stats},
    inquiry::{Served, Subject},
    metrics::{Event, Events, unix_time},
    ticks,
};

const SUBJECT: Subject = Subject("overlay-agent/history");
const INTERVAL: Duration = Duration::from_secs(10);
/// An hour.
const ROOM: usize = 360;

/// What a running agent tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Time between two samples.
    pub interval_seconds: f64,
    /// The oldest first.
    pub samples: Vec<Sample>,
    /// The newest first.
    pub events: Vec<Event>,
}

/// Packets since the sample before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The end of that time, in seconds since 1970.
    pub at: f64,
    /// Between pods of different nodes, by who carried them.
    pub from_pods: FastShare,
    pub to_pods: FastShare,
    pub dropped: u64,
}

/// The samples of this agent. Clones share them.
#[derive(Clone, Debug)]
pub struct History {
    pins: PinDir,
    events: Events,
    ring: Arc<Mutex<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    samples: VecDeque<Sample>,
    before: Option<Totals>,
}

/// Sums of the counters since the maps were made.
#[derive(Clone, Copy, Debug)]
struct Totals {
    from_pods: FastShare,
    to_pods: FastShare,
    dropped: u64,
}

/// What the agent of this network namespace says; `None` without one.
pub fn ask() -> io::Result<Option<Told>> {
    SUBJECT.ask()
}

impl History {
    pub fn new(pins: PinDir, events: Events) -> Self {
        Self {
            pins,
            events,
            ring: Arc::default(),
        }
    }

    /// Has the commands ask, as long as the result is kept.
    pub fn serve(&self) -> Option<Served> {
        let this = self.clone();
        let served = SUBJECT.serve(move || this.told());
        if let Err(error) = &served {
            warn!(%error, "`overlay-agent ui` and `top` cannot ask this agent for its last hour");
        }
        served.ok()
    }

    /// Takes a sample now and then until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut ticks = ticks::together(INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let pins = self.pins.clone();
            // Without maps there is nothing to count.
            let read = move || Stats::open(&pins).and_then(|stats| stats.read()).ok();
            let counters = spawn_blocking(read).await.ok().flatten();
            let totals = counters.map(|counters| Totals::of(&counters));
            self.ring().take(totals, unix_time());
        }
    }

    fn told(&self) -> Told {
        Told {
            interval_seconds: INTERVAL.as_secs_f64(),
            samples: self.ring().samples.iter().copied().collect(),
            events: self.events.newest_first(),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn take(&mut self, totals: Option<Totals>, at: f64) {
        let before = std::mem::replace(&mut self.before, totals);
        let (Some(before), Some(now)) = (before, totals) else {
            return;
        };
        if self.samples.len() >= ROOM {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            at,
            from_pods: now.from_pods.since(before.from_pods),
            to_pods: now.to_pods.since(before.to_pods),
            dropped: { now.dropped }
                .checked_sub(before.dropped)
                .unwrap_or(now.dropped),
        });
    }
}

impl Totals {
    fn of(counters: &[(Hook, Outcome, Counter)]) -> Self {
        let drops = counters
            .iter()
            .filter(|(_, outcome, _)| outcome.kind() == Kind::Drop);
        Self {
            from_pods: FastShare::at(Hook::Egress, counters),
            to_pods: FastShare::at(Hook::Ingress, counters),
            dropped: drops.map(|(.., counter)| counter.packets).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(fast: u64, dropped: u64) -> Totals {
        let counter = |packets| Counter { packets, bytes: 0 };
        Totals::of(&[
            (Hook::Egress, Outcome::FastTunnel, counter(fast)),
            (Hook::Egress, Outcome::NoPermit, counter(5)),
            (Hook::Ingress, Outcome::PodTunnel, counter(dropped)),
        ])
    }

    #[test]
    fn samples_are_what_came_since_the_one_before_for_an_hour() {
        let mut ring = Ring::default();
        ring.take(Some(totals(100, 1)), 0.0);
        assert_eq!(ring.samples, []);
        ring.take(Some(totals(130, 3)), 10.0);
        let share = |fast, kernel| FastShare { fast, kernel };
        let sample = Sample {
            at: 10.0,
            from_pods: share(30, 0),
            to_pods: share(0, 0),
            dropped: 2,
        };
        assert_eq!(ring.samples, [sample]);
        for number in 0..1_000 {
            ring.take(Some(totals(number, 0)), 20.0);
        }
        assert_eq!(ring.samples.len(), ROOM);
    }

    #[test]
    fn maps_that_went_and_counters_that_began_anew_make_no_nonsense() {
        let mut ring = Ring::default();
        ring.take(Some(totals(100, 1)), 0.0);
        ring.take(None, 10.0);
        ring.take(Some(totals(500, 1)), 20.0);
        assert_eq!(ring.samples, []);
        ring.take(Some(totals(7, 0)), 30.0);
        assert_eq!(ring.samples[0].from_pods.fast, 7);
        assert_eq!(ring.samples[0].dropped, 0);
    }
}
