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

/// The first network config that can be read and understood; `None` when cancelled. `waits` is told
/// why there is none yet.
pub async fn await_config<T, E: fmt::Display>(
    store: &dyn Membership,
    cancel: &CancellationToken,
    parse: impl Fn(&str) -> Result<T, E>,
    waits: impl Fn(&str),
) -> Option<(T, ConfigText)> {
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
            Ok(None) => store.config_missing(),
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

/// What the nodes say of themselves; `None` when cancelled. `waits` as above.
pub async fn await_known(
    store: &dyn Membership,
    cancel: &CancellationToken,
    waits: impl Fn(&str),
) -> Option<Vec<LeaseAttrs>> {
    let mut reported = None;
    loop {
        let problem = match cancel.run_until_cancelled(store.known()).await? {
            Ok(known) => return Some(known),
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
