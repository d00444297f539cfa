//! Waiting for what a start reads from the store, once a second and for ever. The network config as
//! flannel: on a new cluster the nodes are often up before it is written. Each cause is logged once.
//! Unlike flannel for every config that cannot be used: it may be mended while the node waits.

use std::{fmt, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::member::Membership;
use crate::model::{ConfigText, LeaseAttrs};

const PAUSE: Duration = Duration::from_secs(1);

/// What the first attempt that succeeds brings; `None` when cancelled. `report` is told why there is nothing
/// yet, once for each cause.
pub(super) async fn until_done<T, A: Future<Output = Result<T, String>>>(
    cancel: &CancellationToken,
    attempt: impl Fn() -> A,
    report: impl Fn(&str),
) -> Option<T> {
    let mut reported = None;
    loop {
        let problem = match cancel.run_until_cancelled(attempt()).await? {
            Ok(done) => return Some(done),
            Err(problem) => problem,
        };
        if reported.as_ref() != Some(&problem) {
            report(&problem);
            reported = Some(problem);
        }
        cancel.run_until_cancelled(sleep(PAUSE)).await?;
    }
}

/// The first network config that can be read and understood; `None` when cancelled. `waits` is told
/// why there is none yet.
pub async fn await_config<T, E: fmt::Display>(
    store: &dyn Membership,
    cancel: &CancellationToken,
    parse: impl Fn(&str) -> Result<T, E>,
    waits: impl Fn(&str),
) -> Option<(T, ConfigText)> {
    let parse = &parse;
    let attempt = || async move {
        let config = store.config().await.map_err(|error| error.to_string())?;
        let Some(config) = config else {
            return Err(store.config_missing().await);
        };
        match parse(&config.text) {
            Ok(parsed) => {
                info!(revision = config.mod_revision, "network config read");
                Ok((parsed, config))
            }
            Err(problem) => Err(format!(
                "{problem}; the config is at {}, revision {}",
                store.config_place(),
                config.mod_revision
            )),
        }
    };
    until_done(cancel, attempt, |problem| {
        error!("Couldn't fetch network config: {problem}");
        waits(problem);
    })
    .await
}

/// What the nodes say of themselves; `None` when cancelled. `waits` as above.
pub async fn await_known(
    store: &dyn Membership,
    cancel: &CancellationToken,
    waits: impl Fn(&str),
) -> Option<Vec<LeaseAttrs>> {
    let attempt = || async { store.known().await.map_err(|error| error.to_string()) };
    until_done(cancel, attempt, |problem| {
        error!("cannot read the leases, trying on: {problem}");
        waits(problem);
    })
    .await
}
