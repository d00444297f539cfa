//! Removes every rule this agent may have installed, whatever its settings were then.

use std::fmt;

use super::{
    absent_chains,
    error::FilterError,
    exec::Executor,
    family::RuleFamily,
    iptables::{Installed, diff::ChainSpec},
    nftables::{Nft, OWN_TABLES, TableId},
    rules::{POD_SOURCE_TABLE, pod_source_chain},
};

/// One thing that was, or with `dry_run` would be, removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// `nft`, `iptables-nft`, `ip6tables-legacy`, …
    pub tool: String,
    /// `table ip flannel-ipv4`, `chain FLANNEL-FWD`, …
    pub object: String,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.tool, self.object)
    }
}

/// Removes our tables from nftables and our chains, with the jumps to them, from every variant of
/// iptables, in both families. Tools that are not installed are passed over; a tool that fails
/// does not keep the others from being cleaned, and is returned beside what was done.
pub async fn cleanup(executor: &Executor, dry_run: bool) -> (Vec<Removal>, Vec<FilterError>) {
    remove(executor, &OWN_TABLES, &absent_chains(), dry_run).await
}

/// [`cleanup`] on a host where flanneld runs: what has one of flannel's names is flannel's.
pub async fn cleanup_beside_flannel(
    executor: &Executor,
    dry_run: bool,
) -> (Vec<Removal>, Vec<FilterError>) {
    let tables = RuleFamily::ALL.map(|family| (family, POD_SOURCE_TABLE));
    remove(executor, &tables, &[pod_source_chain(None)], dry_run).await
}

async fn remove(
    executor: &Executor,
    tables: &[TableId],
    chains: &[ChainSpec],
    dry_run: bool,
) -> (Vec<Removal>, Vec<FilterError>) {
    let mut removals = Vec::new();
    let mut errors = Vec::new();
    if let Some(nft) = Nft::discover(executor).await {
        for &id in tables {
            match nft.remove(id, dry_run).await {
                Ok(true) => removals.push(Removal {
                    tool: "nft".into(),
                    object: format!("table {} {}", id.0.nft(), id.1),
                }),
                Ok(false) => {}
                Err(error) => errors.push(error),
            }
        }
    }
    for family in RuleFamily::ALL {
        for iptables in Installed::discover(family, executor).await.iter_mut() {
            match iptables.ensure(chains, dry_run).await {
                Ok(changes) => removals.extend(changes.into_iter().map(|change| Removal {
                    tool: iptables.name(),
                    object: format!("chain {}", change.chain),
                })),
                Err(error) => errors.push(error),
            }
        }
    }
    (removals, errors)
}
