//! Keeps the rules in place while the daemon runs.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Filter, RulesetVersion, error::FilterError, iptables::diff::ChangeKind, rules::Settings,
};
use crate::health::{Condition, Readiness};

/// Others change rules in bursts; one look at the end of each is enough.
const SETTLE: Duration = Duration::from_millis(50);

/// A look takes long where others keep tens of thousands of rules. The next one waits this many
/// times as long, so that looking takes a tenth of one CPU at the most.
const COST_FACTOR: u32 = 9;

/// Period of the check where the kernel announces every change.
const ANNOUNCED_PERIOD: Duration = Duration::from_mins(1);

/// A period of 0, which flannel takes for "without pause", only burns time.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// More repairs than this within [`FEUD_WINDOW`] mean that another program insists on the
/// opposite. From then on only the periodic check repairs, so that neither side spins.
const FEUD_REPAIRS: usize = 10;
const FEUD_WINDOW: Duration = Duration::from_mins(1);

/// Repairs the rules whenever somebody else changes the rule set, whenever `settings` change, and
/// periodically: every `resync`, or [`ANNOUNCED_PERIOD`] where that is longer and every change is
/// announced. Tells the readiness model each time. Ends with `stop`.
pub async fn keep(
    filter: &mut Filter,
    mut settings: watch::Receiver<Settings>,
    mut ruleset: watch::Receiver<RulesetVersion>,
    resync: Duration,
    readiness: &Readiness,
    stop: CancellationToken,
) {
    let mut keeper = Keeper {
        filter,
        readiness,
        repairs: VecDeque::new(),
        failing: false,
        looked: Instant::now(),
        cost: Duration::ZERO,
    };
    let mut seen = ruleset.borrow_and_update().foreign;
    keeper.check().await;
    loop {
        let due = keeper.looked + keeper.period(resync);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(due) => keeper.check().await,
            Ok(()) = settings.changed() => {
                let wanted = settings.borrow_and_update().clone();
                keeper.replace_settings(wanted).await;
            }
            Ok(()) = ruleset.changed() => {
                let foreign = ruleset.borrow_and_update().foreign;
                if foreign == seen || keeper.feuding() {
                    continue;
                }
                sleep(SETTLE.max(keeper.cost * COST_FACTOR)).await;
                seen = ruleset.borrow_and_update().foreign;
                keeper.check().await;
            }
        }
    }
}

struct Keeper<'a> {
    filter: &'a mut Filter,
    readiness: &'a Readiness,
    repairs: VecDeque<Instant>,
    failing: bool,
    /// When the last look ended, and what it took.
    looked: Instant,
    cost: Duration,
}

impl Keeper<'_> {
    async fn check(&mut self) {
        let started = Instant::now();
        let result = self.filter.ensure().await;
        self.looked = Instant::now();
        self.cost = self.looked - started;
        if let Ok(changes) = &result {
            for change in changes {
                match change.kind {
                    ChangeKind::Repaired => warn!(%change, "somebody changed packet filter rules"),
                    ChangeKind::Installed | ChangeKind::Removed => info!(%change, "packet filter"),
                }
            }
            if !changes.is_empty() {
                self.note_repair();
            }
        }
        self.report(result.map(drop));
    }

    fn period(&self, resync: Duration) -> Duration {
        if self.filter.changes_are_announced() && !self.failing {
            resync.max(ANNOUNCED_PERIOD)
        } else {
            resync.max(SHORTEST_PERIOD)
        }
    }

    async fn replace_settings(&mut self, settings: Settings) {
        let previous = self.filter.settings().networks.clone();
        if let Err(error) = self.filter.update(settings) {
            self.report(Err(error));
            return;
        }
        self.check().await;
        self.filter.remove_strays(&previous).await;
    }

    fn report(&mut self, result: Result<(), FilterError>) {
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    info!("packet filter rules are in place again");
                }
                self.readiness.satisfy(Condition::RulesInstalled);
            }
            Err(error) => {
                // Once per outage: the check repeats every few seconds.
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(%error, "packet filter rules are not in place, retrying");
                }
                self.readiness
                    .fail(Condition::RulesInstalled, error.to_string());
            }
        }
    }

    fn note_repair(&mut self) {
        let was_feuding = self.feuding();
        self.repairs.push_back(Instant::now());
        if self.feuding() && !was_feuding {
            warn!(
                repairs = self.repairs.len(),
                "another program keeps undoing packet filter rules, repairing periodically only"
            );
        }
    }

    fn feuding(&mut self) -> bool {
        while self
            .repairs
            .front()
            .is_some_and(|repair| repair.elapsed() > FEUD_WINDOW)
        {
            self.repairs.pop_front();
        }
        self.repairs.len() > FEUD_REPAIRS
    }
}
