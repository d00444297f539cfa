//! Keeps the daemon's tasks running: a task that fails or panics is started again after a pause
//! that grows and varies.

use std::{
    collections::BTreeSet,
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{info, warn};

use crate::backoff::Backoff;

/// The pause after the first failure is up to this; it doubles from there, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(400);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// A task that ran this long before it failed starts over with the first pause.
const STABLE_AFTER: Duration = Duration::from_mins(1);

/// The tasks of the daemon. Clones share them.
#[derive(Clone, Debug)]
pub struct Supervisor {
    stop: CancellationToken,
    tracker: TaskTracker,
    /// The names of those that have not ended.
    unfinished: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Supervisor {
    /// Tasks get child tokens of `stop`.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            tracker: TaskTracker::new(),
            unfinished: Arc::default(),
        }
    }

    /// Runs the future that `make` returns, and another one each time it fails or panics, until it
    /// ends well or the token it was given is cancelled.
    pub fn spawn<F, T, E>(&self, name: &'static str, mut make: F)
    where
        F: FnMut(CancellationToken) -> T + Send + 'static,
        T: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let this = self.clone();
        this.lock().insert(name);
        self.tracker.spawn(async move {
            let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            loop {
                let started = Instant::now();
                let run = AbortOnDropHandle::new(tokio::spawn(make(this.stop.child_token())));
                let error = match run.await {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => error.to_string(),
                    Err(panic) => panic.to_string(),
                };
                if this.stop.is_cancelled() {
                    break;
                }
                if started.elapsed() >= STABLE_AFTER {
                    backoff.succeeded();
                }
                let pause = backoff.failed(&mut rand::rng());
                warn!(
                    task = name,
                    error,
                    ?pause,
                    "task failed, it will be started again"
                );
                tokio::select! {
                    () = sleep(pause) => {}
                    () = this.stop.cancelled() => break,
                }
                info!(task = name, "task started again");
            }
            this.lock().remove(name);
        });
    }

    /// Tells every task to stop and waits for `grace`. Returns the tasks that had not ended then;
    /// they are gone with the process.
    pub async fn stop(&self, grace: Duration) -> Vec<&'static str> {
        self.stop.cancel();
        self.tracker.close();
        if timeout(grace, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::logging::capture::Log;

    #[tokio::test(start_paused = true)]
    async fn a_failing_task_is_started_again_with_growing_pauses() {
        let supervisor = Supervisor::new(CancellationToken::new());
        let runs = Arc::new(AtomicU32::new(0));
        let began = Instant::now();
        supervisor.spawn("task", {
            let runs = Arc::clone(&runs);
            move |_| {
                let run = runs.fetch_add(1, Ordering::Relaxed);
                async move {
                    if run < 5 {
                        Err(format!("run {run}"))
                    } else {
                        Ok(())
                    }
                }
            }
        });
        assert_eq!(*supervisor.lock(), ["task"].into());
        while !supervisor.lock().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(runs.load(Ordering::Relaxed), 6);
        let took = began.elapsed();
        let most = FIRST_PAUSE * (1 + 2 + 4 + 8 + 16);
        assert!(took >= most / 2 && took < most * 3 / 2, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_of_a_failed_task_is_logged_while_it_waits() {
        let log = Log::default();
        let _guard = log.capture();
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("task", |_| async { Err("etcd is away") });
        sleep(Duration::from_millis(1)).await;
        let lines = log.lines();
        let [line] = lines.as_slice() else {
            panic!("{lines:#?}")
        };
        assert!(
            line.contains("task=\"task\"") && line.contains("etcd is away"),
            "{line}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_failure_like_any_other() {
        let supervisor = Supervisor::new(CancellationToken::new());
        let runs = Arc::new(AtomicU32::new(0));
        supervisor.spawn("task", {
            let runs = Arc::clone(&runs);
            move |stop| {
                let run = runs.fetch_add(1, Ordering::Relaxed);
                async move {
                    assert!(run > 0, "on the first run");
                    stop.cancelled().await;
                    Ok::<_, &str>(())
                }
            }
        });
        sleep(Duration::from_secs(2)).await;
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        assert_eq!(*supervisor.lock(), ["task"].into());
        assert!(supervisor.stop(Duration::from_secs(1)).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_names_the_tasks_that_do_not_listen() {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("good", |stop| async move {
            stop.cancelled().await;
            Ok::<_, &str>(())
        });
        supervisor.spawn("deaf", |_| std::future::pending::<Result<(), &str>>());
        assert_eq!(supervisor.stop(Duration::from_millis(700)).await, ["deaf"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_waiting_to_start_again_stops_at_once() {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("task", |_| async { Err("down") });
        sleep(Duration::from_mins(2)).await;
        let began = Instant::now();
        assert!(supervisor.stop(Duration::from_mins(1)).await.is_empty());
        assert!(
            began.elapsed() < Duration::from_millis(10),
            "{:?}",
            began.elapsed()
        );
    }
}
