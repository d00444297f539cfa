//! A watch, as one member of the servers tells it: late, in pieces, and until the connection breaks.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt, stream, stream::BoxStream};
use rand::RngCore as _;
use tokio::time::{sleep, timeout_at};

use super::{
    super::{
        error::EtcdError,
        wire::{Event, Message},
    },
    network::{Network, unreachable},
    server::Server,
    world::{Cut, before, now},
};

/// A silent connection is noticed then.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A watch that one member serves.
pub struct Watch {
    network: Network,
    /// Everything before this has been told.
    next: i64,
    stage: Stage,
    /// The member is behind the others by so much.
    lag: Duration,
}

#[derive(Clone, Copy)]
enum Stage {
    Unopened,
    Open {
        life: u32,
        /// The newest revision this member may show, at least.
        at: i64,
    },
    Ended,
}

/// How often a member that has nothing to tell says so.
const PROGRESS: Duration = Duration::from_hours(1);

impl Watch {
    pub fn open(network: Network, revision: i64) -> BoxStream<'static, Result<Message, EtcdError>> {
        let watch = Self {
            network,
            next: revision,
            stage: Stage::Unopened,
            lag: Duration::ZERO,
        };
        stream::unfold(watch, |mut watch| async move {
            let message = watch.message().await?;
            if message.is_err() {
                watch.stage = Stage::Ended;
            }
            Some((message, watch))
        })
        .boxed()
    }

    async fn message(&mut self) -> Option<Result<Message, EtcdError>> {
        match self.stage {
            Stage::Ended => None,
            Stage::Unopened => Some(self.create().await),
            Stage::Open { life, at } => Some(self.follow(life, at).await),
        }
    }

    async fn create(&mut self) -> Result<Message, EtcdError> {
        self.lag = self.network.world.see(|state| {
            let lag = state.weather.lag;
            state.pick(lag)
        });
        let lag = self.lag;
        let next = self.next;
        let details = move || format!("from {next}");
        let (life, revision) = self
            .network
            .request("watch", details, move |server, now| {
                (server.life, server.shown(before(now, lag)))
            })
            .await?;
        self.stage = Stage::Open { life, at: revision };
        Ok(Message {
            revision: Some(revision),
            of_leases: true,
            created: true,
            ..Message::default()
        })
    }

    async fn follow(&mut self, life: u32, at: i64) -> Result<Message, EtcdError> {
        let world = Arc::clone(&self.network.world);
        let mut idle = tokio::time::Instant::now() + PROGRESS;
        loop {
            let node = self.network.node;
            world
                .until(|state| state.seats[node].asleep.is_none())
                .await;
            let mut changed = pin!(world.changed.notified());
            changed.as_mut().enable();
            if let Some(cut) = self.network.cut() {
                if cut == Cut::Silent {
                    sleep(KEEP_ALIVE).await;
                }
                if self.network.cut().is_some() || cut == Cut::Refused {
                    return Err(unreachable("the stream broke").error);
                }
                continue;
            }
            let (messages, wait) = world.see(|state| {
                if state.server.life != life {
                    return (Err(unreachable("the server stopped").error), None);
                }
                let until = before(now(), self.lag);
                (
                    Ok(state.server.told(self.next, at, until)),
                    state.server.later_than(until),
                )
            });
            match messages? {
                Told::Compacted(revision) => {
                    world.see(|state| state.count("watches behind a compaction"));
                    return Ok(Message {
                        compacted: Some(revision),
                        of_leases: true,
                        ..Message::default()
                    });
                }
                Told::Events(events) if !events.is_empty() => {
                    let (count, latency) = world.see(|state| {
                        let latency = state.weather.latency;
                        let count = state.rng.next_u32() as usize % events.len() + 1;
                        (count, state.pick(latency))
                    });
                    sleep(latency).await;
                    if self.network.cut().is_some() {
                        continue;
                    }
                    // Never half a revision.
                    let last = events[count - 1].kv.mod_revision;
                    self.next = last + 1;
                    let events: Vec<_> = events
                        .into_iter()
                        .take_while(|event| event.kv.mod_revision <= last)
                        .collect();
                    return world.see(|state| {
                        state.note(|| format!("n{node} is told: {events:?}"));
                        Ok(Message {
                            revision: Some(state.server.revision),
                            of_leases: true,
                            events,
                            ..Message::default()
                        })
                    });
                }
                Told::Events(_) if tokio::time::Instant::now() >= idle => {
                    let until = before(now(), self.lag);
                    let shown = world.see(|state| {
                        state.count("watches that told of progress");
                        state.server.shown(until)
                    });
                    idle += PROGRESS;
                    if shown + 1 >= self.next {
                        return Ok(Message {
                            revision: Some(shown),
                            of_leases: true,
                            ..Message::default()
                        });
                    }
                }
                Told::Events(_) => {
                    let wake = wait.map_or(idle, |at| (at + self.lag).into()).min(idle);
                    let _ = timeout_at(wake, changed).await;
                }
            }
        }
    }
}

/// What a member has to tell a watch.
enum Told {
    Events(Vec<Event>),
    Compacted(i64),
}

impl Server {
    /// The revision of that moment.
    fn shown(&self, until: std::time::Instant) -> i64 {
        let later = self.history.iter().find(|record| record.at > until);
        later.map_or(self.revision, |record| record.event.kv.mod_revision - 1)
    }

    /// When the first write after that moment was made.
    fn later_than(&self, until: std::time::Instant) -> Option<std::time::Instant> {
        let later = self.history.iter().find(|record| record.at > until);
        later.map(|record| record.at)
    }

    fn told(&self, from: i64, at: i64, until: std::time::Instant) -> Told {
        // A watch from a revision that is yet to come waits for it.
        if from <= self.compacted && from <= at {
            return Told::Compacted(self.compacted);
        }
        let new = self.history.iter().filter(|record| {
            let revision = record.event.kv.mod_revision;
            revision >= from && (record.at <= until || revision <= at)
        });
        Told::Events(new.map(|record| record.event.clone()).collect())
    }
}
