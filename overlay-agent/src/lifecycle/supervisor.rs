//! Keeps the daemon's tasks running: a task that fails or panics is started again after a pause
//! that grows and varies, and what became of each task is visible.

use std::{
    collections::BTreeMap,
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{info, warn};

/// The pause after the first failure; it doubles from there, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A task that ran this long before it failed starts over with the first pause.
const STABLE_AFTER: Duration = Duration::from_mins(1);

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    Running,
    /// Failed; starts again after the pause.
    BackingOff {
        error: String,
        pause: Duration,
    },
    /// Came to its end, or was stopped.
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskStatus {
    pub name: &'static str,
    pub state: TaskState,
    /// How often it was started again.
    pub restarts: u64,
}

/// The tasks of the daemon. Clones share them.
#[derive(Clone, Debug)]
pub struct Supervisor {
    stop: CancellationToken,
    tracker: TaskTracker,
    tasks: Arc<Mutex<BTreeMap<&'static str, TaskStatus>>>,
}

impl Supervisor {
    /// Tasks get child tokens of `stop`.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            tracker: TaskTracker::new(),
            tasks: Arc::default(),
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
        this.set(name, TaskState::Running);
        self.tracker.spawn(async move {
            let mut pauses = pauses();
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
                    pauses = self::pauses();
                }
                let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                warn!(
                    task = name,
                    error,
                    ?pause,
                    "task failed, it will be started again"
                );
                this.set(name, TaskState::BackingOff { error, pause });
                tokio::select! {
                    () = sleep(pause) => {}
                    () = this.stop.cancelled() => break,
                }
                this.restart(name);
                info!(task = name, "task started again");
            }
            this.set(name, TaskState::Ended);
        });
    }

    /// All tasks, by name.
    pub fn tasks(&self) -> Vec<TaskStatus> {
        self.lock().values().cloned().collect()
    }

    /// Tells every task to stop and waits for `grace`. Returns the tasks that had not ended then;
    /// they are gone with the process.
    pub async fn stop(&self, grace: Duration) -> Vec<&'static str> {
        self.stop.cancel();
        self.tracker.close();
        if timeout(grace, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let unfinished = |task: &TaskStatus| task.state != TaskState::Ended;
        self.lock()
            .values()
            .filter(|task| unfinished(task))
            .map(|task| task.name)
            .collect()
    }

    fn set(&self, name: &'static str, state: TaskState) {
        self.lock()
            .entry(name)
            .or_insert_with(|| TaskStatus::new(name))
            .state = state;
    }

    fn restart(&self, name: &'static str) {
        let mut tasks = self.lock();
        let task = tasks.entry(name).or_insert_with(|| TaskStatus::new(name));
        task.restarts += 1;
        task.state = TaskState::Running;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, TaskStatus>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskStatus {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            state: TaskState::Running,
            restarts: 0,
        }
    }
}

fn pauses() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn status(supervisor: &Supervisor) -> TaskStatus {
        supervisor.tasks().remove(0)
    }

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
        assert!(supervisor.tasks()[0].state == TaskState::Running);
        while status(&supervisor).state != TaskState::Ended {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(status(&supervisor).restarts, 5);
        let took = began.elapsed();
        let least = FIRST_PAUSE * (1 + 2 + 4 + 8 + 16);
        assert!(took >= least && took < least * 3, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_task_tells_its_error_while_it_waits() {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.spawn("task", |_| async { Err("etcd is away") });
        sleep(Duration::from_millis(1)).await;
        let TaskState::BackingOff { error, .. } = status(&supervisor).state else {
            panic!("{:?}", supervisor.tasks())
        };
        assert_eq!(error, "etcd is away");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_failure_like_any_other() {
        let supervisor = Supervisor::new(CancellationToken::new());
        let mut first = true;
        supervisor.spawn("task", move |stop| {
            let panics = std::mem::take(&mut first);
            async move {
                assert!(!panics, "on the first run");
                stop.cancelled().await;
                Ok::<_, &str>(())
            }
        });
        sleep(Duration::from_secs(2)).await;
        assert_eq!(
            status(&supervisor),
            TaskStatus {
                name: "task",
                state: TaskState::Running,
                restarts: 1
            }
        );
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
