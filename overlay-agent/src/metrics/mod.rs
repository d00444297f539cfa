//! Metrics in the OpenMetrics text format: what the daemon counts about itself, and what is read anew for each
//! scrape. Whoever has something to tell registers a [`Source`].

mod daemon;
mod events;
mod process;
mod source;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{encoding::text, registry::Registry};

pub use self::{
    daemon::{Daemon, FlushCause, Store},
    events::{Event, EventKind, Events, unix_time},
    source::{Sheet, Source, UNLABELLED},
};
use self::{process::Process, source::Scraped};

/// What a scrape is answered with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Prefix of all names but those of the process, which are the same for every program.
const PREFIX: &str = "overlay";

/// All metrics of this node. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    pub daemon: Daemon,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scraped(Process)));
        let daemon = Daemon::default();
        daemon.register(registry.sub_registry_with_prefix(PREFIX));
        Self {
            registry: Arc::new(Mutex::new(registry)),
            daemon,
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Has `source` asked at every scrape.
    pub fn register(&self, source: impl Source) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = registry.sub_registry_with_prefix(PREFIX);
        registry.register_collector(Box::new(Scraped(source)));
    }

    /// Asks all sources, which takes system calls, and writes everything out.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed;

    impl Source for Fixed {
        fn tell(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
            sheet.gauge("peers", "Other nodes", [([("family", "IPv4")], 2_u32)])?;
            sheet.counter("packets", "Packets", [([("hook", "egress")], 7)])
        }
    }

    #[test]
    fn names_have_the_prefix_and_the_text_ends_as_openmetrics_wants_it() {
        let metrics = Metrics::default();
        metrics.register(Fixed);
        let text = metrics.render().unwrap();
        for line in [
            "# TYPE overlay_peers gauge",
            "overlay_peers{family=\"IPv4\"} 2",
            "# TYPE overlay_packets counter",
            "overlay_packets_total{hook=\"egress\"} 7",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn what_was_counted_is_told() {
        let metrics = Metrics::default();
        metrics.daemon.flushed(FlushCause::Rules);
        metrics.daemon.flushed(FlushCause::Rules);
        let text = metrics.render().unwrap();
        let line = "overlay_flushes_requested_total{cause=\"rules\"} 2";
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}
