//! Waiting for what a start reads from the store, once a second and for ever. The network config as
//! flannel: on a new cluster the nodes are often up before it is written. Each cause is logged once.
//! Unlike flannel for every config that cannot be used: it may be mended while the node waits.

use std::{fmt, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::store::{ConfigText, LeaseStore, Snapshot};

const PAUSE: Duration = Duration::from_secs(1);

/// The first network config that can be read and understood; `None` when cancelled. `waits` is told
/// why there is none yet.
pub async fn await_config<S, T, E>(
    store: &S,
    cancel: &CancellationToken,
    parse: impl Fn(&str) -> Result<T, E>,
    waits: impl Fn(&str),
) -> Option<(T, ConfigText)>
where
    S: LeaseStore,
    E: fmt::Display,
{
    let mut reported = None;
    loop {
        let attempt = cancel.run_until_cancelled(store.config()).await?;
        let problem = match attempt {
            Ok(Some(config)) => match parse(&config.text) {
                Ok(parsed) => {
                    info!(revision = config.mod_revision, "network config read");
                    return Some((parsed, config));
                }
                Err(problem) => format!(
                    "{problem}; the config is at {}, revision {}",
                    store.config_place(),
                    config.mod_revision
                ),
            },
            Ok(None) => format!(
                "flannel config not found in etcd store. Did you create your config using etcdv3 \
                 API? Looked for {}; create it with: {}",
                store.config_place(),
                store.config_hint()
            ),
            Err(problem) => problem.to_string(),
        };
        if reported.as_ref() != Some(&problem) {
            error!("Couldn't fetch network config: {problem}");
            waits(&problem);
            reported = Some(problem);
        }
        cancel.run_until_cancelled(sleep(PAUSE)).await?;
    }
}

/// The leases there are; `None` when cancelled. `waits` as above.
pub async fn await_leases<S: LeaseStore>(
    store: &S,
    cancel: &CancellationToken,
    waits: impl Fn(&str),
) -> Option<Snapshot> {
    let mut reported = None;
    loop {
        let problem = match cancel.run_until_cancelled(store.list()).await? {
            Ok(snapshot) => return Some(snapshot),
            Err(problem) => problem.to_string(),
        };
        if reported.as_ref() != Some(&problem) {
            error!("cannot read the leases, trying on: {problem}");
            waits(&problem);
            reported = Some(problem);
        }
        cancel.run_until_cancelled(sleep(PAUSE)).await?;
    }
}
