//! Keeps the rules in place while the daemon runs.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Filter, RulesetVersion, error::FilterError, iptables::diff::ChangeKind, rules::Settings,
};
use crate::health::{Condition, Readiness};

/// Others change rules in bursts; one look at the end of each is enough.
const SETTLE: Duration = Duration::from_millis(50);

/// More repairs than this within [`FEUD_WINDOW`] mean that another program insists on the
/// opposite. From then on only the periodic check repairs, so that neither side spins.
const FEUD_REPAIRS: usize = 10;
const FEUD_WINDOW: Duration = Duration::from_mins(1);

/// Repairs the rules whenever somebody else changes the rule set, whenever `settings` change, and
/// every `resync` in any case. Tells the readiness model each time. Ends with `stop`.
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
    };
    // A period of 0, which flannel takes for "without pause", would only burn time here.
    let mut period = interval(resync.max(Duration::from_secs(1)));
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = ruleset.borrow_and_update().foreign;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => keeper.check().await,
            Ok(()) = settings.changed() => {
                let wanted = settings.borrow_and_update().clone();
                keeper.replace_settings(wanted).await;
            }
            Ok(()) = ruleset.changed() => {
                let foreign = ruleset.borrow_and_update().foreign;
                if foreign == seen || keeper.feuding() {
                    continue;
                }
                sleep(SETTLE).await;
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
}

impl Keeper<'_> {
    async fn check(&mut self) {
        let result = self.filter.ensure().await;
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
