//! Flushes of the flow table, by a task that waits for nothing else: what a rule drops must end for
//! established flows within a second, whatever the rest of the agent is about.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    backoff::Backoff,
    datapath::{DatapathError, Flushed, Flusher},
    health::{Condition, Readiness},
    lifecycle::Supervisor,
};

/// The pause before a failed flush is tried again is up to this; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where flushes are asked for. Clones ask the same task.
#[derive(Clone, Debug)]
pub struct Flushes(watch::Sender<()>);

impl Flushes {
    /// Starts the task. Without a flusher, on a node without the eBPF tier, there is nothing to flush.
    pub fn spawn(flusher: Option<Flusher>, supervisor: &Supervisor, readiness: &Readiness) -> Self {
        let (sender, requests) = watch::channel(());
        readiness.satisfy(Condition::FlowsFlushed);
        if let Some(flusher) = flusher {
            let flusher = Arc::new(Mutex::new(flusher));
            let readiness = readiness.clone();
            supervisor.spawn("flushes", move |stop| {
                let flush = {
                    let flusher = Arc::clone(&flusher);
                    move || {
                        let flusher = Arc::clone(&flusher);
                        spawn_blocking(move || {
                            let mut flusher =
                                flusher.lock().unwrap_or_else(PoisonError::into_inner);
                            flusher.flush()
                        })
                    }
                };
                serve(requests.clone(), flush, readiness.clone(), stop)
            });
        }
        Self(sender)
    }

    /// Makes every flow earn its permit again, at once.
    pub fn request(&self) {
        self.0.send_replace(());
    }
}

/// Flushes once for all requests that came meanwhile, and until it succeeds.
async fn serve<F, T>(
    mut requests: watch::Receiver<()>,
    flush: F,
    readiness: Readiness,
    stop: CancellationToken,
) -> Result<(), Infallible>
where
    F: Fn() -> T,
    T: Future<Output = Result<Result<Flushed, DatapathError>, JoinError>>,
{
    let work = async {
        while requests.changed().await.is_ok() {
            requests.mark_unchanged();
            until_done(&flush, &readiness).await;
        }
    };
    stop.run_until_cancelled(work).await;
    Ok(())
}

async fn until_done<F, T>(flush: &F, readiness: &Readiness)
where
    F: Fn() -> T,
    T: Future<Output = Result<Result<Flushed, DatapathError>, JoinError>>,
{
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut complaint = None;
    loop {
        let problem = match flush().await {
            Ok(Ok(Flushed {
                contested: None, ..
            })) => break,
            Ok(Ok(Flushed {
                contested: Some(error),
                ..
            })) => format!("flows were flushed, but that may be undone: {error}"),
            Ok(Err(error)) => format!(
                "cannot flush the flow table: {error}; what the packet filter drops from now on \
                 may pass in flows that are fast, until their permits end"
            ),
            Err(panic) => format!("cannot flush the flow table: {panic}"),
        };
        readiness.fail(Condition::FlowsFlushed, problem.clone());
        if complaint.as_ref() != Some(&problem) {
            warn!("{problem}; trying on");
            complaint = Some(problem);
        }
        let pause = backoff.failed(&mut rand::rng());
        sleep(pause).await;
    }
    readiness.satisfy(Condition::FlowsFlushed);
    if complaint.is_some() {
        info!("the flow table is flushed");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::datapath::Generations;

    fn failure() -> DatapathError {
        DatapathError::ConfigLocked {
            dir: "/sys/fs/bpf/overlay/v1".into(),
            holder: "process 7".to_owned(),
        }
    }

    fn done(contested: Option<DatapathError>) -> Flushed {
        Flushed {
            generations: Generations { ipv4: 1, ipv6: 1 },
            contested,
        }
    }

    fn is_not_ready(readiness: &Readiness) -> bool {
        let mut unmet = readiness.unmet().into_iter();
        unmet.any(|unmet| unmet.condition == Condition::FlowsFlushed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_flush_is_tried_until_it_succeeds_and_the_node_is_not_ready_meanwhile() {
        let readiness = Readiness::default();
        readiness.satisfy(Condition::FlowsFlushed);
        let attempts = AtomicU32::new(0);
        let flush = || {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            assert_eq!(is_not_ready(&readiness), attempt > 0);
            async move {
                Ok(match attempt {
                    0..8 => Err(failure()),
                    8 => Ok(done(Some(failure()))),
                    _ => Ok(done(None)),
                })
            }
        };
        until_done(&flush, &readiness).await;
        assert_eq!(attempts.load(Ordering::Relaxed), 10);
        assert!(!is_not_ready(&readiness));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_during_a_flush_are_one_flush_after_it() {
        let (sender, requests) = watch::channel(());
        let flushes = Flushes(sender);
        let count = Arc::new(AtomicU32::new(0));
        let stop = CancellationToken::new();
        let flush = {
            let count = Arc::clone(&count);
            move || {
                let count = Arc::clone(&count);
                async move {
                    sleep(Duration::from_millis(100)).await;
                    count.fetch_add(1, Ordering::Relaxed);
                    Ok(Ok(done(None)))
                }
            }
        };
        let task = tokio::spawn(serve(requests, flush, Readiness::default(), stop.clone()));
        flushes.request();
        sleep(Duration::from_millis(50)).await;
        for _ in 0..100 {
            flushes.request();
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(count.load(Ordering::Relaxed), 2);
        stop.cancel();
        task.await.unwrap().unwrap();
    }
}
