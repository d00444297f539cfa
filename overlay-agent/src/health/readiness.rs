//! The readiness model.

use std::{collections::BTreeMap, fmt, sync::Arc};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::metrics::{Sheet, Source, UNLABELLED};

/// Something that must hold for the node to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// This node holds the lease of its subnet.
    LeaseHeld,
    /// Packet filter rules are installed as configured.
    RulesInstalled,
    /// The eBPF programs are attached, or the kernel tier is declared to be all there is.
    DatapathAttached,
    /// Routes, neighbours and maps agree with the leases.
    PeersInSync,
    /// The interface and the address that tunnel packets leave by are there.
    UnderlayFound,
    /// The subnet file is written.
    SubnetFileWritten,
    /// Every flush of the flow table that was asked for was done, or is about to be.
    FlowsFlushed,
}

/// A condition that does not hold, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    pub condition: Condition,
    pub reason: String,
}

/// The conditions of this node. Clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<Condition, String>>>);

impl Condition {
    pub const ALL: [Self; 7] = [
        Self::LeaseHeld,
        Self::RulesInstalled,
        Self::DatapathAttached,
        Self::PeersInSync,
        Self::UnderlayFound,
        Self::SubnetFileWritten,
        Self::FlowsFlushed,
    ];
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaseHeld => "lease",
            Self::RulesInstalled => "packet filter rules",
            Self::DatapathAttached => "datapath",
            Self::PeersInSync => "peers",
            Self::UnderlayFound => "underlay",
            Self::SubnetFileWritten => "subnet file",
            Self::FlowsFlushed => "flushes",
        })
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.condition, self.reason)
    }
}

impl Default for Readiness {
    /// Nothing holds.
    fn default() -> Self {
        let unmet = Condition::ALL.map(|condition| (condition, "starting".to_owned()));
        Self(Arc::new(watch::Sender::new(BTreeMap::from(unmet))))
    }
}

impl Readiness {
    /// The condition holds.
    pub fn satisfy(&self, condition: Condition) {
        self.set(condition, None);
    }

    /// The condition does not hold. Says whether that is news.
    pub fn fail(&self, condition: Condition, reason: impl Into<String>) -> bool {
        self.set(condition, Some(reason.into()))
    }

    /// Only a change wakes watchers, and only a change of the whole is logged.
    fn set(&self, condition: Condition, reason: Option<String>) -> bool {
        self.0.send_if_modified(|unmet| {
            let was_ready = unmet.is_empty();
            if unmet.get(&condition) == reason.as_ref() {
                return false;
            }
            match reason {
                None => {
                    unmet.remove(&condition);
                    if unmet.is_empty() {
                        info!("ready");
                    }
                }
                Some(reason) => {
                    if was_ready {
                        warn!(%condition, reason, "not ready");
                    }
                    unmet.insert(condition, reason);
                }
            }
            true
        })
    }

    /// What does not hold, in the order of [`Condition`].
    pub fn unmet(&self) -> Vec<Unmet> {
        self.0
            .borrow()
            .iter()
            .map(|(condition, reason)| Unmet {
                condition: *condition,
                reason: reason.clone(),
            })
            .collect()
    }

    /// Wakes at every change of any condition.
    pub fn changes(&self) -> watch::Receiver<BTreeMap<Condition, String>> {
        self.0.subscribe()
    }
}

impl Source for Readiness {
    fn tell(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let unmet = self.0.borrow().clone();
        sheet.gauge(
            "ready",
            "Whether every condition holds",
            [(UNLABELLED, u32::from(unmet.is_empty()))],
        )?;
        let conditions = Condition::ALL.map(|condition| {
            let holds = !unmet.contains_key(&condition);
            ([("condition", condition.to_string())], u32::from(holds))
        });
        sheet.gauge(
            "condition",
            "Whether a condition of readiness holds",
            conditions,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold_all(readiness: &Readiness) {
        for condition in Condition::ALL {
            readiness.satisfy(condition);
        }
    }

    #[test]
    fn nothing_holds_at_first() {
        let readiness = Readiness::default();
        assert_eq!(readiness.unmet().len(), Condition::ALL.len());
    }

    #[test]
    fn ready_when_every_condition_holds_and_not_after_one_fails() {
        let readiness = Readiness::default();
        hold_all(&readiness);
        assert_eq!(readiness.unmet(), []);
        readiness.fail(Condition::LeaseHeld, "etcd says it is gone");
        let unmet: Vec<String> = readiness.unmet().iter().map(Unmet::to_string).collect();
        assert_eq!(unmet, ["lease: etcd says it is gone"]);
        readiness.satisfy(Condition::LeaseHeld);
        assert_eq!(readiness.unmet(), []);
    }

    #[tokio::test]
    async fn waiting_for_ready_ends_with_the_last_condition() {
        let readiness = Readiness::default();
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move {
                readiness
                    .changes()
                    .wait_for(BTreeMap::is_empty)
                    .await
                    .map(drop)
            }
        });
        hold_all(&readiness);
        waiting.await.unwrap().unwrap();
    }
}
