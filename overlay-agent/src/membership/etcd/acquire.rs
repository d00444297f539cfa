//! Acquiring the own lease: list, decide, write, look back, and again when somebody was faster.

use std::time::Duration;

use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    decide::{Decision, Origin, decide, rival},
    error::EtcdError,
    lease_store::LeaseStore,
    machine::Machine,
};
use crate::{
    backoff::Backoff,
    core::{Expect, Held, Put, PutOutcome, Renewal, Snapshot},
    membership::{allocation::Allocation, member::Wish},
    model::LeaseAttrs,
};

/// Lost races in a row before giving up, as flannel.
const RACES: usize = 10;

/// Why no lease could be acquired.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AcquireError {
    #[error(
        "out of subnets: every subnet {} is leased; delete keys of nodes that are gone, or enlarge \
         the network",
        ranges(allocation)
    )]
    OutOfSubnets { allocation: Allocation },
    #[error(
        "max retries reached trying to acquire a subnet: lost {RACES} races against other nodes"
    )]
    TooManyRaces,
    #[error("stopped before a subnet was acquired")]
    Cancelled,
}

/// The subnets of the families of the network, in words.
fn ranges(allocation: &Allocation) -> String {
    let ipv4 = allocation.ipv4.map(|pool| {
        let (min, max, len) = (pool.subnet_min, pool.subnet_max, pool.subnet_len);
        format!("from {min} to {max} with length {len}")
    });
    let ipv6 = allocation.ipv6.map(|pool| {
        let (min, max, len) = (pool.subnet_min, pool.subnet_max, pool.subnet_len);
        format!("from {min} to {max} with length {len}")
    });
    let ranges: Vec<_> = ipv4.into_iter().chain(ipv6).collect();
    ranges.join(", or every one ")
}

/// The own lease, and all leases as they were when it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquired {
    pub held: Held,
    pub snapshot: Snapshot,
}

/// Acquires the lease this node keeps. While the store does not answer, tries on. `known` is what was
/// listed shortly before, if anything was.
pub async fn acquire<S: LeaseStore>(
    store: &S,
    mut known: Option<Snapshot>,
    wish: &Wish,
    renewal: Renewal,
    machine: &mut Machine,
    cancel: &CancellationToken,
) -> Result<Acquired, AcquireError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut races = 0;
    let mut reported = None;
    while races < RACES {
        let attempt =
            cancel.run_until_cancelled(attempt(store, known.take(), wish, renewal, machine));
        match attempt.await.ok_or(AcquireError::Cancelled)? {
            Ok(Attempt::Acquired(acquired)) => return Ok(*acquired),
            Ok(Attempt::Lost) => races += 1,
            Ok(Attempt::Cleared | Attempt::Outdated) => {}
            Ok(Attempt::OutOfSubnets) => {
                let allocation = wish.allocation;
                return Err(AcquireError::OutOfSubnets { allocation });
            }
            Err(error) => {
                let problem = error.to_string();
                if reported.as_ref() != Some(&problem) {
                    warn!("cannot acquire a lease, trying on: {problem}");
                    reported = Some(problem);
                }
                let pause = backoff.failed(&mut machine.rng);
                let paused = cancel.run_until_cancelled(machine.time.sleep(pause)).await;
                paused.ok_or(AcquireError::Cancelled)?;
            }
        }
    }
    Err(AcquireError::TooManyRaces)
}

enum Attempt {
    Acquired(Box<Acquired>),
    /// Another node wrote the record, or one that overlaps it, first.
    Lost,
    /// A record in the way was deleted.
    Cleared,
    OutOfSubnets,
    /// What was known before does not do.
    Outdated,
}

async fn attempt<S: LeaseStore>(
    store: &S,
    known: Option<Snapshot>,
    wish: &Wish,
    renewal: Renewal,
    machine: &mut Machine,
) -> Result<Attempt, EtcdError> {
    let is_fresh = known.is_none();
    // Whatever has changed since, the write finds out, and the watch goes on from there.
    let mut snapshot = match known {
        Some(known) => known,
        None => store.list().await?,
    };
    let (key, expect, reservation, origin) = match decide(wish, &snapshot.entries, &mut machine.rng)
    {
        Decision::OutOfSubnets if is_fresh => return Ok(Attempt::OutOfSubnets),
        Decision::OutOfSubnets => return Ok(Attempt::Outdated),
        Decision::Delete { key, mod_revision } => {
            warn!(lease = %key, "the lease of this node does not fit the network config, or an earlier one; deleting it");
            store.delete(&key, mod_revision).await?;
            return Ok(Attempt::Cleared);
        }
        Decision::Write {
            key,
            expect,
            reservation,
            origin,
        } => (key, expect, reservation, origin),
    };
    let replaced = snapshot.entries.iter().find(|entry| entry.key == key);
    let created = replaced.map(|entry| entry.create_revision);
    let put = Put {
        key,
        attrs: wish.attrs.clone(),
        expect,
        ttl: (!reservation).then_some(renewal.ttl),
    };
    let sent = machine.time.now();
    Ok(match store.put(&put).await? {
        PutOutcome::Written {
            mod_revision,
            lease_id,
            ttl,
        } => {
            if expect == Expect::Absent {
                // What was there before was heeded in the choice.
                let newer = store.list_after(snapshot.revision).await?;
                let node_ip = put.attrs.node_ip();
                if let Some(rival) = rival(&key, node_ip, mod_revision, &newer) {
                    info!(lease = %key, %rival, "another node wrote an overlapping lease first; choosing again");
                    store.delete(&key, mod_revision).await?;
                    return Ok(Attempt::Lost);
                }
                snapshot.add(newer);
            }
            report(&put.attrs, origin, expect);
            info!(lease = %key, %origin, reservation, "lease acquired");
            let held = Held {
                key,
                attrs: put.attrs,
                create_revision: created.unwrap_or(mod_revision),
                mod_revision,
                lease: lease_id.zip(ttl).map(|(id, ttl)| (id, sent + ttl)),
            };
            Attempt::Acquired(Box::new(Acquired { held, snapshot }))
        }
        PutOutcome::Conflict(_) => {
            info!(lease = %key, "another node wrote this lease first; choosing again");
            Attempt::Lost
        }
    })
}

/// flannel's own words, which people search logs for.
fn report(attrs: &LeaseAttrs, origin: Origin, expect: Expect) {
    if let (Origin::Recorded, Expect::Unchanged { .. }) = (origin, expect) {
        info!("Found lease for current IP ({}), reusing", attrs.node_ip());
    }
}
