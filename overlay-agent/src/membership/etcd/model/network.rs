//! The way from a node to the servers: requests take their time, get lost, are carried out without
//! an answer, late, or twice, or are refused.

use std::{sync::Arc, time::Duration};

use futures::stream::BoxStream;
use rand::RngCore as _;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    super::{
        error::EtcdError,
        keys::Keys,
        wire::{Ended, Failed, Message, Page, Range, Wire, Write},
    },
    server::{Compacted, NoSuchLease, Server},
    watch::Watch,
    world::{Actor, Cut, World, WorldState},
};

/// A client gives up on a request then.
const DEADLINE: Duration = Duration::from_secs(8);

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    /// It does not reach the servers.
    LostOnItsWay,
    /// It is carried out, and nobody hears of it.
    Unanswered,
    /// It is carried out when the client has long given up.
    TooLate,
    /// Given to two members, and carried out by both.
    Twice,
    Refused,
}

/// A node's way to the servers.
#[derive(Clone)]
pub struct Network {
    pub world: Arc<World>,
    pub node: usize,
}

type Operation<T> = Arc<dyn Fn(&mut Server, std::time::Instant) -> T + Send + Sync>;

pub fn unreachable(text: &str) -> Failed {
    let failures = text.to_owned();
    Failed {
        error: EtcdError::Unreachable { failures },
        in_doubt: true,
    }
}

fn rejected(operation: &'static str, reason: &str) -> EtcdError {
    let reason = reason.to_owned();
    EtcdError::Rejected { operation, reason }
}

impl Network {
    async fn ask<T: std::fmt::Debug + Send + 'static>(
        &self,
        what: &'static str,
        details: impl Fn() -> String + Send,
        operation: impl Fn(&mut Server, std::time::Instant) -> T + Send + Sync + 'static,
    ) -> Result<T, Failed> {
        self.step().await;
        let operation: Operation<T> = Arc::new(operation);
        let node = self.node;
        let (fate, there, back) = self.world.see(|state| {
            let fate = state.fate(node);
            state.count("requests");
            state.note(|| format!("n{node} asks: {what} {} ({fate:?})", details()));
            let latency = state.weather.latency;
            (fate, state.pick(latency), state.pick(latency))
        });
        let attempt = async {
            match fate {
                Fate::Answered => {}
                Fate::LostOnItsWay => {
                    sleep(self.patience()).await;
                    return Err(unreachable("no answer"));
                }
                Fate::Unanswered => {
                    drop(self.deliver(what, there, &operation));
                    sleep(there + self.patience()).await;
                    return Err(unreachable("no answer"));
                }
                Fate::TooLate => {
                    let late = self.world.see(|state| state.pick(Duration::from_mins(1)));
                    drop(self.deliver(what, DEADLINE + late, &operation));
                    return std::future::pending().await;
                }
                Fate::Twice => {
                    let other = self.world.see(|state| state.pick(Duration::from_secs(4)));
                    drop(self.deliver(what, other, &operation));
                }
                Fate::Refused => {
                    sleep(there).await;
                    return Err(Failed {
                        error: rejected(what, "database space exceeded"),
                        in_doubt: false,
                    });
                }
            }
            let answer = self.deliver(what, there, &operation).await;
            let answer = answer.map_err(|_| unreachable("connection reset"))?;
            sleep(back).await;
            Ok(answer)
        };
        let answer = timeout(DEADLINE, attempt).await;
        let answer = answer.unwrap_or_else(|_| Err(unreachable("no answer within 8 s")));
        self.step().await;
        self.world.see(|state| {
            if answer.is_err() {
                state.count("requests failed");
            }
            state.note(|| match &answer {
                Ok(answer) => format!("n{node} hears: {what} -> {answer:?}"),
                Err(failed) => format!("n{node} hears: {what} -> {}", failed.error),
            });
        });
        answer
    }

    /// Has the servers carry out an operation later, whatever becomes of who asked.
    fn deliver<T: Send + 'static>(
        &self,
        what: &'static str,
        after: Duration,
        operation: &Operation<T>,
    ) -> oneshot::Receiver<T> {
        let (answer, receiver) = oneshot::channel();
        let (network, operation) = (self.clone(), Arc::clone(operation));
        tokio::spawn(async move {
            sleep(after).await;
            if network.cut().is_some() {
                return;
            }
            let node = network.node;
            let result = network.world.act(Actor::Node(node), |state, now| {
                state.note(|| format!("n{node}'s request is carried out: {what}"));
                operation(&mut state.server, now)
            });
            drop(answer.send(result));
        });
        receiver
    }

    /// One step of a request: the agent may be killed between any two, and a machine that sleeps
    /// makes none.
    async fn step(&self) {
        let node = self.node;
        self.world
            .until(|state| state.seats[node].asleep.is_none())
            .await;
        let dead = self.world.see(|state| {
            let seat = &mut state.seats[node];
            seat.dies_in = seat.dies_in.and_then(|steps| {
                if steps == 0 {
                    seat.life.cancel();
                }
                steps.checked_sub(1)
            });
            let dead = seat.life.is_cancelled();
            if dead {
                state.count("agents killed in the middle of a request");
                state.note(|| format!("n{node} is killed"));
            }
            dead
        });
        if dead {
            std::future::pending::<()>().await;
        }
    }

    /// How long it takes until a failure is noticed: at once, or by a deadline.
    fn patience(&self) -> Duration {
        self.world.see(|state| {
            let silent = state.chance(50);
            if silent { DEADLINE } else { Duration::ZERO }
        })
    }

    pub fn cut(&self) -> Option<Cut> {
        self.world
            .see(|state| state.seats[self.node].cut.or(state.away))
    }

    /// Fails at once, or by the deadline, while there is no way to the servers.
    async fn reach(&self) -> Result<(), Failed> {
        match self.cut() {
            None => Ok(()),
            Some(Cut::Refused) => Err(unreachable("connection refused")),
            Some(Cut::Silent) => {
                sleep(DEADLINE).await;
                Err(unreachable("no answer within 8 s"))
            }
        }
    }

    pub async fn request<T: std::fmt::Debug + Send + 'static>(
        &self,
        what: &'static str,
        details: impl Fn() -> String + Send,
        operation: impl Fn(&mut Server, std::time::Instant) -> T + Send + Sync + 'static,
    ) -> Result<T, Failed> {
        if let Err(failed) = self.reach().await {
            let node = self.node;
            self.step().await;
            self.world.see(|state| {
                state.count("requests while there is no way to etcd");
                state.note(|| format!("n{node} asks in vain: {what}"));
            });
            return Err(failed);
        }
        self.ask(what, details, operation).await
    }
}

impl WorldState {
    fn fate(&mut self, node: usize) -> Fate {
        let trouble = self.weather.trouble;
        if !self.chance(trouble) {
            return Fate::Answered;
        }
        let fates = [
            (Fate::LostOnItsWay, "requests lost on their way"),
            (Fate::Unanswered, "requests carried out without an answer"),
            (
                Fate::TooLate,
                "requests carried out after the client gave up",
            ),
            (Fate::Twice, "requests carried out by two members"),
            (Fate::Refused, "requests refused"),
        ];
        let at = usize::try_from(self.rng.next_u32() % 5).unwrap_or_default();
        let (fate, what) = fates[at];
        self.count(what);
        self.disturbed(node);
        fate
    }
}

impl Wire for Network {
    async fn range(&self, operation: &'static str, range: Range) -> Result<Page, EtcdError> {
        let most = match range.limit {
            1.. => self.world.see(|state| state.page),
            _ => usize::MAX,
        };
        let details = {
            let range = range.clone();
            move || format!("at {}", range.revision)
        };
        let page = self.request(operation, details, move |server, _| {
            server.range(&range, most)
        });
        page.await?.map_err(|Compacted| {
            rejected(
                operation,
                "etcdserver: mvcc: required revision has been compacted",
            )
        })
    }

    async fn grant(&self, ttl: Duration) -> Result<(i64, Duration), EtcdError> {
        let granted = self.request(
            "grant",
            move || format!("{ttl:?}"),
            move |server, now| (server.grant(now, ttl), ttl),
        );
        Ok(granted.await?)
    }

    async fn revoke(&self, id: i64) -> Result<(), EtcdError> {
        let revoked = self.request(
            "revoke",
            move || id.to_string(),
            move |server, now| {
                server.revoke(now, id);
            },
        );
        Ok(revoked.await?)
    }

    async fn time_to_live(&self, id: i64) -> Result<Option<Duration>, EtcdError> {
        let left = self.request(
            "time to live",
            move || id.to_string(),
            move |server, now| server.time_to_live(now, id),
        );
        Ok(left.await?)
    }

    async fn write(&self, write: Write) -> Result<Ended, Failed> {
        let asked = write.clone();
        let details = move || format!("{} if {:?}: {}", asked.key, asked.expect, asked.value);
        let ended = self.request("write", details, move |server, now| {
            server.write(now, &write)
        });
        ended.await?.map_err(|NoSuchLease| Failed {
            error: rejected("write the lease", "etcdserver: requested lease not found"),
            in_doubt: false,
        })
    }

    async fn delete(&self, key: String, mod_revision: i64) -> Result<bool, EtcdError> {
        let name = key.clone();
        let details = move || format!("{name} at {mod_revision}");
        let deleted = self.request("delete", details, move |server, now| {
            server.delete(now, key.as_bytes(), Some(mod_revision))
        });
        Ok(deleted.await?)
    }

    fn watch(
        wire: Arc<Self>,
        _: Keys,
        revision: i64,
    ) -> BoxStream<'static, Result<Message, EtcdError>> {
        Watch::open(wire.as_ref().clone(), revision)
    }

    async fn old_value(&self, _key: &str) -> Option<String> {
        None
    }

    fn urls(&self) -> String {
        "the model".to_owned()
    }

    fn etcdctl(&self) -> String {
        "etcdctl".to_owned()
    }
}
