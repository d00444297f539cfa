//! Change detection for the old ip_tables, which notifies nobody: a fingerprint of every table,
//! compared from time to time.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use super::{
    error::FilterError,
    exec::Executor,
    iptables::{Installed, Iptables, Variant},
    rules::Family,
};

/// The legacy tables of this network namespace.
#[derive(Debug)]
pub struct LegacyTables {
    tools: Vec<Iptables>,
    fingerprint: Option<u64>,
}

impl LegacyTables {
    pub async fn open(executor: &Executor) -> Self {
        let mut tools = Vec::new();
        for family in Family::ALL {
            let mut installed = Installed::discover(family, executor).await;
            tools.extend(
                installed
                    .iter_mut()
                    .filter(|tool| tool.variant() == Variant::Legacy)
                    .map(|tool| tool.clone()),
            );
        }
        Self {
            tools,
            fingerprint: None,
        }
    }

    /// Whether the rules differ from those of the call before. The first call only looks.
    pub async fn changed(&mut self) -> Result<bool, FilterError> {
        let mut hasher = DefaultHasher::new();
        for tool in &self.tools {
            for table in Iptables::legacy_tables(tool.family()) {
                table.hash(&mut hasher);
                tool.rules_text(&table).await?.hash(&mut hasher);
            }
        }
        let fingerprint = hasher.finish();
        let before = self.fingerprint.replace(fingerprint);
        Ok(before.is_some_and(|before| before != fingerprint))
    }

    /// How often to look when asked for `period`: each look runs a command per table.
    pub fn period(period: Duration) -> Duration {
        period.max(Duration::from_millis(250))
    }
}
