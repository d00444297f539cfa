//! Hears of the Nodes: a list, then a watch that goes on where it ended, and a list again when the API
//! server no longer knows that place.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tracing::info;

use super::api::{ApiError, Change, Listing, NodeApi};
use crate::backoff::Backoff;

/// Bookmarks come about once a minute: a connection that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that ends sooner counts as a failure.
const SHORT: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Listed(Listing),
    /// Changes arrive from now on as they happen.
    Watching,
    Changed(Change),
    /// Nothing is heard for a while, and why.
    Lost(String),
}

/// What the feed is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The connection may be dead: watch by another one.
    Reconnect,
    List,
}

/// What hears of the Nodes for one node.
pub struct Feed<A> {
    api: Arc<A>,
    version: Option<String>,
    heard: mpsc::Sender<Heard>,
    asks: mpsc::UnboundedReceiver<Ask>,
    backoff: Backoff,
    rng: StdRng,
}

/// Why the watch is over.
enum End {
    /// Go on where it ended.
    Resume,
    /// Nobody listens any longer.
    Closed,
}

impl<A: NodeApi> Feed<A> {
    /// Tells `heard` of what happens after `version`.
    pub fn new(
        api: Arc<A>,
        version: String,
        heard: mpsc::Sender<Heard>,
        asks: mpsc::UnboundedReceiver<Ask>,
    ) -> Self {
        Self {
            api,
            version: Some(version),
            heard,
            asks,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            rng: StdRng::from_rng(&mut rand::rng()),
        }
    }

    /// Runs until nobody listens.
    pub async fn run(mut self) {
        loop {
            let began = Instant::now();
            let failed = match self.follow().await {
                Ok(End::Closed) => return,
                Ok(End::Resume) => began.elapsed() < SHORT,
                // The list that follows is no failure; that the place is lost at once again would be one.
                Err(ApiError::Gone(reason)) => {
                    info!(
                        reason,
                        "the API server no longer knows what came last; the Nodes are listed again"
                    );
                    self.version = None;
                    began.elapsed() < SHORT
                }
                Err(error) => {
                    if self
                        .heard
                        .send(Heard::Lost(error.to_string()))
                        .await
                        .is_err()
                    {
                        return;
                    }
                    true
                }
            };
            if failed {
                self.pause().await;
            } else {
                self.backoff.succeeded();
            }
        }
    }

    async fn pause(&mut self) {
        let pause = self.backoff.failed(&mut self.rng);
        tokio::select! {
            () = sleep(pause) => {}
            Some(ask) = self.asks.recv() => self.take(ask),
        }
    }

    fn take(&mut self, ask: Ask) {
        if ask == Ask::List {
            self.version = None;
        }
    }

    async fn follow(&mut self) -> Result<End, ApiError> {
        let version = if let Some(version) = &self.version {
            version.clone()
        } else {
            let listing = Listing::read(&*self.api).await?;
            let version = listing.version.clone();
            self.version = Some(version.clone());
            if self.heard.send(Heard::Listed(listing)).await.is_err() {
                return Ok(End::Closed);
            }
            version
        };
        let mut changes = self.api.watch(&version).await?;
        if self.heard.send(Heard::Watching).await.is_err() {
            return Ok(End::Closed);
        }
        loop {
            let next = tokio::select! {
                next = timeout(SILENCE, changes.next()) => next,
                ask = self.asks.recv() => {
                    let Some(ask) = ask else { return Ok(End::Closed) };
                    self.take(ask);
                    return Ok(End::Resume);
                }
            };
            let Ok(Some(change)) = next else {
                return Ok(End::Resume);
            };
            let change = change?;
            let version = match &change {
                Change::Put(node) | Change::Deleted(node) => &node.version,
                Change::Reached(version) => version,
            };
            self.version = Some(version.clone());
            self.backoff.succeeded();
            if self.heard.send(Heard::Changed(change)).await.is_err() {
                return Ok(End::Closed);
            }
        }
    }
}
