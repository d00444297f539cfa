//! What the daemon counts about its own work.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::events::{EventKind, Events};

/// One label and its value.
type One = [(&'static str, &'static str); 1];
type Two = [(&'static str, &'static str); 2];

/// Counters of the daemon's work. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Daemon {
    pub store: Store,
    reconciliations: Family<Two, Counter>,
    reconciliation_seconds: Times,
    kernel_changes: Family<[(&'static str, &'static str); 4], Counter>,
    flushes: Family<One, Counter>,
    pub events: Events,
}

/// Counters of what is asked of the lease store.
#[derive(Clone, Debug, Default)]
pub struct Store {
    requests: Family<Two, Counter>,
    request_seconds: Times,
    watch_messages: Counter,
    watch_message_at: Gauge<f64, AtomicU64>,
    revisions: Family<One, Gauge>,
}

/// Why flows have to earn their permits again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushCause {
    /// Packet filter rules changed.
    Rules,
    /// An interface changed or went.
    Interface,
    /// A gateway of pods has another MAC address, or went.
    Gateway,
    /// A route changed.
    Route,
    /// A neighbour changed.
    Neighbour,
    /// A policy routing rule changed.
    PolicyRule,
    /// IPsec's policies or states changed.
    Ipsec,
    /// The kernel's notifications were lost or interrupted.
    Lost,
    /// What somebody had changed of the kernel path was put right.
    Repair,
    /// The operator asked for a reload.
    Reload,
    /// The machine slept.
    Sleep,
}

/// How long things of one label took.
#[derive(Clone, Debug)]
struct Times(Family<One, Histogram, fn() -> Histogram>);

impl Default for Times {
    /// Buckets from 0.1 ms to 13 s, doubling.
    fn default() -> Self {
        let new = || Histogram::new(exponential_buckets(0.0001, 2.0, 18));
        Self(Family::new_with_constructor(new))
    }
}

impl Times {
    fn took(&self, label: &'static str, value: &'static str, time: Duration) {
        let times = self.0.get_or_create(&[(label, value)]);
        times.observe(time.as_secs_f64());
    }
}

impl FlushCause {
    const fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Interface => "interface",
            Self::Gateway => "gateway",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::PolicyRule => "policy rule",
            Self::Ipsec => "ipsec",
            Self::Lost => "lost notifications",
            Self::Repair => "repair",
            Self::Reload => "reload",
            Self::Sleep => "sleep",
        }
    }

    /// For people.
    const fn describe(self) -> &'static str {
        match self {
            Self::Rules => "Packet filter rules changed.",
            Self::Interface => "An interface or an address changed or went.",
            Self::Gateway => "A gateway of pods has another MAC address, or went.",
            Self::Route => "A route changed.",
            Self::Neighbour => "A neighbour changed.",
            Self::PolicyRule => "A policy routing rule changed.",
            Self::Ipsec => "IPsec's policies or states changed.",
            Self::Lost => "The kernel's notifications were lost or interrupted.",
            Self::Repair => "What somebody had changed of the kernel path was put right.",
            Self::Reload => "The operator asked for a reload.",
            Self::Sleep => "The machine slept.",
        }
    }
}

const fn result(done: bool) -> &'static str {
    if done { "ok" } else { "failed" }
}

impl Daemon {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "reconciliations",
            "Times the node was brought to what the leases say, by how much was looked at",
            self.reconciliations.clone(),
        );
        registry.register(
            "reconciliation_duration_seconds",
            "Time that took",
            self.reconciliation_seconds.0.clone(),
        );
        registry.register(
            "kernel_changes",
            "Objects added to the kernel and removed from it, by what they are. reason=repair: no lease changed",
            self.kernel_changes.clone(),
        );
        registry.register(
            "flushes_requested",
            "Times flows were to earn their permits again, by cause",
            self.flushes.clone(),
        );
        self.store
            .register(registry.sub_registry_with_prefix("store"));
    }

    /// A reconciliation that looked at so much has ended.
    pub fn reconciled(&self, look: &'static str, took: Duration, in_sync: bool) {
        let labels = [("look", look), ("result", result(in_sync))];
        self.reconciliations.get_or_create(&labels).inc();
        self.reconciliation_seconds.took("look", look, took);
    }

    /// The kernel's objects of a family were changed: so many of each kind added and removed. A repair, if no
    /// lease asked for it.
    pub fn changed(
        &self,
        family: &'static str,
        repair: bool,
        kinds: impl Iterator<Item = (&'static str, usize, usize)>,
    ) {
        let reason = if repair { "repair" } else { "lease" };
        for (objects, added, removed) in kinds {
            if repair {
                let why = "No lease asked for it: somebody else had changed them.";
                let what = format!("{family} {objects}: {added} added, {removed} removed");
                self.events.happened(EventKind::Repair, why, what);
            }
            for (change, count) in [("added", added), ("removed", removed)] {
                if let (Ok(count), true) = (u64::try_from(count), count > 0) {
                    let labels = [
                        ("family", family),
                        ("objects", objects),
                        ("change", change),
                        ("reason", reason),
                    ];
                    self.kernel_changes.get_or_create(&labels).inc_by(count);
                }
            }
        }
    }

    /// Flows have to earn their permits again.
    pub fn flushed(&self, cause: FlushCause) {
        self.flushes.get_or_create(&[("cause", cause.name())]).inc();
        let why = cause.describe();
        self.events.happened(EventKind::Flush, why, String::new());
    }
}

impl Store {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests to the lease store, by what was asked and whether any endpoint did it",
            self.requests.clone(),
        );
        registry.register(
            "request_duration_seconds",
            "Time until the answer, over all endpoints tried",
            self.request_seconds.0.clone(),
        );
        registry.register(
            "watch_messages",
            "Messages of the watch on the leases, notes of progress among them",
            self.watch_messages.clone(),
        );
        registry.register(
            "watch_last_message_timestamp_seconds",
            "Time of the last one, in seconds since 1970",
            self.watch_message_at.clone(),
        );
        registry.register(
            "revision",
            "Revision of the store seen last, by the watch and in answers to requests. The watch lags by the difference",
            self.revisions.clone(),
        );
    }

    /// A request has ended.
    pub fn requested(&self, operation: &'static str, took: Duration, done: bool) {
        let labels = [("operation", operation), ("result", result(done))];
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.took("operation", operation, took);
    }

    /// An answer came with this revision.
    pub fn answered(&self, revision: i64) {
        self.saw("requests", revision);
    }

    /// A message of the watch came, sent when the store had this revision.
    pub fn watched(&self, revision: Option<i64>) {
        self.watch_messages.inc();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.watch_message_at
            .set(now.unwrap_or_default().as_secs_f64());
        if let Some(revision) = revision {
            self.saw("watch", revision);
        }
    }

    fn saw(&self, by: &'static str, revision: i64) {
        self.revisions
            .get_or_create(&[("seen_by", by)])
            .set(revision);
    }
}
