//! A watcher that does nothing but note when etcd tells it of each lease: what of the time to a route is etcd's.

use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use etcd_client::{Client, WatchOptions, WatchStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::cluster::Ghost;
use crate::{
    lab::{
        Node,
        store::{PREFIX, Store},
    },
    netns::Namespace,
};

/// A key, and when etcd told of it.
type Told = (Vec<u8>, Instant);

/// Follows the leases from where the agent does, until it is dropped.
pub struct Watcher {
    told: Receiver<Told>,
    stop: CancellationToken,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Watcher {
    /// Returns once the watch stands.
    pub fn start(node: &Node, store: &Store) -> Result<Self> {
        let namespace = &node.namespace;
        let (runtime, events) = open(namespace, store.endpoints()).context("watch the leases")?;
        let (sender, told) = mpsc::channel();
        let stop = CancellationToken::new();
        let thread = namespace.spawn({
            let stop = stop.clone();
            move || runtime.block_on(follow(events, &sender, &stop))
        });
        Ok(Self {
            told,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until etcd has told of a lease. Returns when it did.
    pub fn wait(&self, ghost: Ghost, within: Duration) -> Result<Instant> {
        let (key, start) = (ghost.key(), Instant::now());
        loop {
            let left = within.saturating_sub(start.elapsed());
            let told = self.told.recv_timeout(left);
            let (told, at) = told.with_context(|| format!("the watcher was not told of {key}"))?;
            if told == key.as_bytes() {
                return Ok(at);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.cancel();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("watching the leases: {error:#}"),
            Some(Err(_)) => eprintln!("watching the leases ended with a panic"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

fn open(namespace: &Namespace, endpoints: String) -> Result<(Runtime, WatchStream)> {
    namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let events = runtime.block_on(async {
            let mut client = Client::connect([endpoints], None).await?;
            let options = WatchOptions::new().with_prefix();
            let mut events = client.watch(PREFIX, Some(options)).await?;
            // It says that the watch stands.
            events.message().await?;
            anyhow::Ok(events)
        })?;
        Ok((runtime, events))
    })
}

async fn follow(
    mut events: WatchStream,
    told: &Sender<Told>,
    stop: &CancellationToken,
) -> Result<()> {
    while let Some(message) = stop.run_until_cancelled(events.message()).await {
        let at = Instant::now();
        let message = message?.context("etcd has ended the watch")?;
        for kv in message.events().iter().filter_map(|event| event.kv()) {
            // Nobody waits once the watcher is being dropped.
            let _ = told.send((kv.key().to_vec(), at));
        }
    }
    Ok(())
}
