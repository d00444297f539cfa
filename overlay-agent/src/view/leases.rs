//! What the leases say, as metrics.

use std::{fmt, time::Instant};

use tokio::sync::watch;

use super::metrics::count;
use crate::{
    metrics::{Sheet, Source, UNLABELLED},
    model::{Alarm, LeaseView},
};

/// The leases as the agent knows them.
#[derive(Debug)]
pub struct LeaseMetrics(watch::Receiver<LeaseView>);

impl LeaseMetrics {
    pub fn new(leases: watch::Receiver<LeaseView>) -> Self {
        Self(leases)
    }
}

impl Source for LeaseMetrics {
    fn tell(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let view = self.0.borrow();
        let peers = count(view.peers.len());
        sheet.gauge("leases", "Leases of other nodes", [(UNLABELLED, peers)])?;
        let left = view.own.expires.map(|end| {
            let left = end.saturating_duration_since(Instant::now());
            (UNLABELLED, left.as_secs_f64())
        });
        sheet.gauge(
            "lease_left_seconds",
            "Time until the store lets this node's lease go, if it is not renewed",
            left,
        )?;
        sheet.gauge(
            "lease_alarm",
            "1 while something is wrong with the leases that the agent cannot put right",
            NAMES.map(|name| {
                let holds = view.alarms.iter().any(|alarm| name_of(alarm) == name);
                ([("alarm", name)], u32::from(holds))
            }),
        )
    }
}

const NAMES: [&str; 8] = [
    "taken",
    "contended",
    "overdue",
    "overlap",
    "second record",
    "store reset",
    "config changed",
    "config missing",
];

const fn name_of(alarm: &Alarm) -> &'static str {
    let [
        taken,
        contended,
        overdue,
        overlap,
        second_record,
        store_reset,
        config_changed,
        config_missing,
    ] = NAMES;
    match alarm {
        Alarm::Taken { .. } => taken,
        Alarm::Contended { .. } => contended,
        Alarm::Overdue { .. } => overdue,
        Alarm::Overlap { .. } => overlap,
        Alarm::SecondRecord { .. } => second_record,
        Alarm::StoreReset { .. } => store_reset,
        Alarm::ConfigChanged => config_changed,
        Alarm::ConfigMissing => config_missing,
    }
}
