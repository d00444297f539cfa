//! The daemon's log on standard error: one line per event, as text or as JSON.

use std::{
    fmt,
    fs::File,
    io::{self, IsTerminal as _, stderr},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use crate::{
    config::options::{LogFormat, LogOptions},
    datapath::PACKETS,
};

/// Starts logging. `RUST_LOG` decides what is shown, else the verbosity does; of packets, all that the
/// programs tell up to the level `packets`.
pub fn init(options: LogOptions, packets: LevelFilter) {
    let rust_log = std::env::var("RUST_LOG").ok();
    let (filter, complaint) = filter(options.verbosity, rust_log, packets);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    match (options.format, is_journal()) {
        (LogFormat::Text, false) => builder.with_target(false).init(),
        (LogFormat::Text, true) => builder.with_target(false).map_event_format(Levelled).init(),
        (LogFormat::Json, false) => builder.json().flatten_event(true).init(),
        (LogFormat::Json, true) => {
            let builder = builder.json().flatten_event(true);
            builder.map_event_format(Levelled).init();
        }
    }
    if let Some(error) = complaint {
        tracing::warn!(
            error,
            "RUST_LOG is ignored: it is not a list of target=level"
        );
    }
}

/// Lines with the number of their level in front, by which the journal knows it (`sd-daemon(3)`).
struct Levelled<F>(F);

impl<S, N, F> FormatEvent<S, N> for Levelled<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let number = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{number}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// Whether standard error is the journal, which says so to what it listens to.
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    named.is_some_and(|named| stream_of_stderr().is_ok_and(|stream| stream == named))
}

/// Standard error as `JOURNAL_STREAM` names streams.
fn stream_of_stderr() -> io::Result<String> {
    let stream = File::from(stderr().as_fd().try_clone_to_owned()?).metadata()?;
    Ok(format!("{}:{}", stream.dev(), stream.ino()))
}

/// The filter, and what is wrong with `RUST_LOG`.
fn filter(
    verbosity: i64,
    rust_log: Option<String>,
    packets: LevelFilter,
) -> (EnvFilter, Option<String>) {
    let with_packets = |directives: &str| format!("{directives},{PACKETS}={packets}");
    let fallback = || EnvFilter::new(with_packets(directives(verbosity)));
    match rust_log.filter(|directives| !directives.is_empty()) {
        None => (fallback(), None),
        Some(directives) => match EnvFilter::try_new(with_packets(&directives)) {
            Ok(filter) => (filter, None),
            Err(error) => (fallback(), Some(error.to_string())),
        },
    }
}

/// klog's levels as Kubernetes uses them: up to 3 is what an operator wants to see, 4 is debug, 5
/// and above trace. Libraries stay at info: their traces may hold secrets. The client of Kubernetes logs each
/// failure, and whole answers with it; whoever asks it says it once.
fn directives(verbosity: i64) -> &'static str {
    match verbosity {
        ..=3 => "info,kube_client=off",
        4 => "info,kube_client=off,overlay_agent=debug",
        5.. => "info,kube_client=off,overlay_agent=trace",
    }
}

#[cfg(test)]
pub mod capture {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::fmt::MakeWriter;

    /// Collects what is logged on this thread.
    #[derive(Clone, Default)]
    pub struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        pub fn capture(&self) -> tracing::subscriber::DefaultGuard {
            let subscriber = tracing_subscriber::fmt()
                .with_writer(self.clone())
                .with_ansi(false)
                .without_time()
                .finish();
            tracing::subscriber::set_default(subscriber)
        }

        pub fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap();
            let text = String::from_utf8_lossy(&bytes);
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(verbosity: i64, rust_log: Option<&str>) -> String {
        let rust_log = rust_log.map(str::to_owned);
        filter(verbosity, rust_log, LevelFilter::OFF).0.to_string()
    }

    #[test]
    fn the_journal_is_told_the_level_of_each_line() {
        let log = capture::Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .map_event_format(Levelled);
        tracing::subscriber::with_default(subscriber.finish(), || {
            tracing::error!("a");
            tracing::warn!(key = 1, "b");
            tracing::info!("c");
        });
        let expected = ["<3>ERROR a", "<4> WARN b key=1", "<6> INFO c"];
        assert_eq!(log.lines(), expected);
    }

    #[test]
    fn verbosity_follows_the_scale_of_klog() {
        for (verbosity, expected) in [
            (-1, "overlay_packets=off,kube_client=off,info"),
            (0, "overlay_packets=off,kube_client=off,info"),
            (2, "overlay_packets=off,kube_client=off,info"),
            (
                4,
                "overlay_packets=off,overlay_agent=debug,kube_client=off,info",
            ),
            (
                10,
                "overlay_packets=off,overlay_agent=trace,kube_client=off,info",
            ),
        ] {
            assert_eq!(shown(verbosity, None), expected, "-v={verbosity}");
        }
    }

    #[test]
    fn rust_log_overrides_the_verbosity_unless_it_is_empty_or_wrong() {
        assert_eq!(shown(5, Some("warn")), "overlay_packets=off,warn");
        assert_eq!(
            shown(0, Some("")),
            "overlay_packets=off,kube_client=off,info"
        );
        let wrong = Some("overlay_agent=loud".to_owned());
        let (fallback, complaint) = filter(0, wrong, LevelFilter::OFF);
        assert_eq!(
            fallback.to_string(),
            "overlay_packets=off,kube_client=off,info"
        );
        assert!(complaint.is_some());
    }

    #[test]
    fn what_is_logged_of_packets_depends_on_nothing_else() {
        let wrong = Some("overlay_packets=error,loud=loud".to_owned());
        for (verbosity, rust_log) in [(0, None), (0, Some("error".to_owned())), (0, wrong)] {
            let (filter, _) = filter(verbosity, rust_log, LevelFilter::DEBUG);
            let filter = filter.to_string();
            assert!(filter.contains("overlay_packets=debug"), "{filter}");
        }
    }
}
