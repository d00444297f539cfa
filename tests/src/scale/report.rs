//! All measurements as JSON and as Markdown tables.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::{
    churn::Churn,
    event::{Events, Storm, quantile},
    idle::Idle,
    restart::Restart,
    start::Start,
};

/// What was measured of one program in a cluster of one size.
#[derive(Clone, Debug)]
pub struct Scale {
    pub program: String,
    pub size: u32,
    /// Several, of which the middle one counts.
    pub starts: Vec<Start>,
    pub events: Option<Events>,
    pub storm: Option<Storm>,
    pub churn: Option<Churn>,
    pub restart: Option<Restart>,
    pub idle: Option<Idle>,
}

impl Scale {
    pub fn to_json(&self) -> Value {
        let starts = self.starts.iter().map(|start| start.to_json());
        json!({
            "program": self.program,
            "leases": self.size,
            "starts": starts.collect::<Vec<_>>(),
            "events": self.events.as_ref().map(Events::to_json),
            "storm": self.storm.map(Storm::to_json),
            "churn": self.churn.as_ref().map(Churn::to_json),
            "restart": self.restart.map(Restart::to_json),
            "idle": self.idle.map(Idle::to_json),
        })
    }
}

/// One table for each measurement.
pub fn render(all: &[Scale]) -> String {
    let mut text = String::new();
    table(
        &mut text,
        "Start",
        &[
            "last route (ms)",
            "ready (ms)",
            "CPU to the last route (ms)",
            "CPU in all (ms)",
            "peak (MiB)",
            "then (MiB)",
            "then, without files (MiB)",
        ],
        all,
        |scale| {
            let middle = |of: &dyn Fn(&Start) -> f64| median(scale.starts.iter().map(of).collect());
            Some(vec![
                format!("{:.0}", middle(&|start| ms(start.routed))?),
                format!("{:.0}", middle(&|start| ms(start.ready))?),
                format!("{:.0}", middle(&|start| ms(start.at_last_route.cpu))?),
                format!("{:.0}", middle(&|start| ms(start.in_all.cpu))?),
                format!("{:.1}", middle(&|start| mib(start.in_all.peak))?),
                format!("{:.1}", middle(&|start| mib(start.in_all.rss))?),
                format!("{:.1}", middle(&|start| mib(start.in_all.anonymous))?),
            ])
        },
    );
    table(
        &mut text,
        "One lease, from the write to the route",
        &[
            "p50 (ms)",
            "p99 (ms)",
            "most (ms)",
            "etcd's answer to the writer: p50, p99",
            "a bare watcher: p50, p99",
            "from its event to the route: p50, p99",
        ],
        all,
        |scale| {
            let events = scale.events.as_ref()?;
            let at =
                |sorted: &[Duration], rank| Some(format!("{:.2}", ms(quantile(sorted, rank)?)));
            let both =
                |sorted: &[Duration]| Some(format!("{}, {}", at(sorted, 500)?, at(sorted, 990)?));
            Some(vec![
                at(&events.whole, 500)?,
                at(&events.whole, 990)?,
                at(&events.whole, 1000)?,
                both(&events.answer)?,
                both(&events.told)?,
                both(&events.own)?,
            ])
        },
    );
    table(
        &mut text,
        "A storm of leases",
        &[
            "leases written",
            "written within (ms)",
            "last route (ms)",
            "batches",
            "CPU (ms)",
        ],
        all,
        |scale| {
            let storm = scale.storm?;
            let batches = storm
                .batches
                .map_or("–".to_owned(), |count| count.to_string());
            Some(vec![
                storm.leases.to_string(),
                format!("{:.0}", ms(storm.written)),
                format!("{:.0}", ms(storm.routed)),
                batches,
                format!("{:.0}", ms(storm.cpu)),
            ])
        },
    );
    table(
        &mut text,
        "One of a hundred leases changes each second",
        &[
            "seconds",
            "changes",
            "CPU (% of a core)",
            "memory in the end (MiB)",
            "growth (KiB)",
            "lost updates",
        ],
        all,
        |scale| {
            let churn = scale.churn.as_ref()?;
            Some(vec![
                format!("{:.0}", churn.time.as_secs_f64()),
                churn.changes.to_string(),
                format!("{:.1}", 100.0 * churn.load()),
                format!("{:.1}", mib(churn.samples.last()?.rss)),
                churn.growth_kib().to_string(),
                churn.lost.len().to_string(),
            ])
        },
    );
    table(
        &mut text,
        "Restart under traffic",
        &["ready (ms)", "datagrams", "lost"],
        all,
        |scale| {
            let restart = scale.restart?;
            Some(vec![
                format!("{:.0}", ms(restart.ready)),
                restart.sent.to_string(),
                restart.lost.to_string(),
            ])
        },
    );
    table(
        &mut text,
        "Nothing happens (CPU, % of a core)",
        &[
            "seconds",
            "alone",
            "asking peers that are not there",
            "asking peers that answer",
            "and read by Prometheus",
        ],
        all,
        |scale| {
            let idle = scale.idle?;
            let percent = |load: f64| format!("{:.3}", 100.0 * load);
            Some(vec![
                format!("{:.0}", idle.time.as_secs_f64()),
                percent(idle.alone),
                percent(idle.unanswered),
                percent(idle.probing),
                percent(idle.scraped),
            ])
        },
    );
    text
}

/// Nothing, if there is no row.
fn table(
    text: &mut String,
    title: &str,
    columns: &[&str],
    all: &[Scale],
    cells: impl Fn(&Scale) -> Option<Vec<String>>,
) {
    let rows: Vec<_> = all
        .iter()
        .filter_map(|scale| Some((scale, cells(scale)?)))
        .collect();
    if rows.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "### {title}\n\n| program | leases | {} |",
        columns.join(" | ")
    );
    let _ = writeln!(text, "|---|---|{}", "---|".repeat(columns.len()));
    for (scale, cells) in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            scale.program,
            scale.size,
            cells.join(" | ")
        );
    }
    text.push('\n');
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "one digit is wanted")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_has_no_table() {
        let scale = Scale {
            program: "overlay-agent".to_owned(),
            size: 10,
            starts: Vec::new(),
            events: None,
            storm: None,
            churn: None,
            restart: Some(Restart {
                ready: Duration::from_millis(120),
                sent: 1000,
                lost: 0,
            }),
            idle: None,
        };
        let text = render(&[scale]);
        assert!(text.starts_with("### Restart under traffic"), "{text}");
        assert!(
            text.ends_with("| overlay-agent | 10 | 120 | 1000 | 0 |\n\n"),
            "{text}"
        );
    }
}
