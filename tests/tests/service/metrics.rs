//! `/metrics` of a running node: read by a real Prometheus, as documented, and enough for the alert rules and the
//! dashboard that ship with the project.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, process::Command};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    document::{document, rows},
    lab::{Lab, Node, scenario},
    prometheus::Prometheus,
    traffic::ping,
    wait::wait_for,
};
use serde_json::Value;

use crate::support::{HEALTH, PATIENCE, deploy, get};

/// What a panel or rule reads is written in terms of these.
const FILLERS: [(&str, &str); 1] = [("$instance", ".*")];

fn scrape(node: &Node) -> Result<String> {
    let (status, text) = get(node, "/metrics")?;
    ensure!(status == 200, "{status}: {text}");
    ensure!(text.ends_with("# EOF\n"), "cut off: {text}");
    Ok(text)
}

/// The names of the metrics in a scrape, counters with their `_total`.
fn names(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            _ => name.to_owned(),
        })
        .collect()
}

/// The names in the tables of the document.
fn documented() -> Result<BTreeSet<String>> {
    let text = document("metrics.md")?;
    let names = rows(&text)
        .into_iter()
        .map(|cells| cells[0].trim().trim_matches('`').to_owned());
    Ok(names.collect())
}

/// The expressions of the dashboard, as Grafana would send them.
fn expressions(dashboard: &Value) -> Result<Vec<String>> {
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let mut expressions = Vec::new();
    for target in targets.flatten() {
        let mut expression = target["expr"].as_str().context("no expression")?.to_owned();
        for (filler, value) in FILLERS {
            expression = expression.replace(filler, value);
        }
        ensure!(!expression.contains('$'), "{expression}");
        expressions.push(expression);
    }
    Ok(expressions)
}

/// The names of this project's metrics in an expression, without what histograms put behind them.
fn mentioned(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("overlay_") || word.starts_with("process_"))
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word))
}

#[test]
fn a_real_prometheus_reads_what_is_documented_and_alerts_nobody() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&[&HEALTH[..], &["--peer-probe-port=8473"]].concat())?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.wait_attached()?;
        // Somebody takes a route away: the agent notices, and everything happened at least once.
        let node = lab.node(0);
        let gateway = lab.node(1).subnet_env()?.gateway;
        let route = format!("{}/{}", gateway.network(), gateway.prefix());
        node.cmd("ip", ["route", "del", &route])?;
        wait_for("the repair to be counted", PATIENCE, || {
            let text = scrape(node)?;
            let repair = "overlay_kernel_changes_total{family=\"IPv4\",objects=\"routes\",change=\"added\",reason=\"repair\"} 1";
            ensure!(text.contains(repair), "{text}");
            Ok(())
        })?;

        // That made flows earn their permits again.
        let pods = lab.pods();
        let (_, from) = pods.first().context("no pod")?;
        let (_, to) = pods.last().context("no pod")?;
        ping::all(&from.endpoint(), to.address, 20)?;

        wait_for("a peer to answer", PATIENCE, || {
            let text = scrape(node)?;
            ensure!(text.contains("overlay_peer_round_trip_seconds{"), "{text}");
            Ok(())
        })?;

        let text = scrape(node)?;
        let documented = documented()?;
        assert_eq!(names(&text), documented, "docs/metrics.md");

        let rules = deploy("prometheus/alerts.yml").canonicalize()?;
        let address = Ipv4Addr::LOCALHOST;
        let agents = [(address, 2401).into()];
        let dir = lab.dir().join("prometheus");
        let server = Prometheus::start(&node.namespace, address, &agents, &rules, &dir)?;
        wait_for("Prometheus to have read the node", PATIENCE, || {
            server.check_running()?;
            let ready = server.query("overlay_ready")?;
            ensure!(
                ready.first().is_some_and(|value| value["value"][1] == "1"),
                "{ready:?}"
            );
            Ok(())
        })?;
        let fast =
            server.query("overlay_pod_packets_total{direction=\"from_pods\",path=\"fast\"} > 0")?;
        ensure!(!fast.is_empty(), "no packet was fast: {text}");

        let dashboard = fs::read_to_string(deploy("grafana/overlay-agent.json"))?;
        for expression in expressions(&serde_json::from_str(&dashboard)?)? {
            server.query(&expression)?;
            for name in mentioned(&expression) {
                ensure!(
                    documented.contains(name),
                    "{name} of the dashboard is no metric"
                );
            }
        }
        let rules = fs::read_to_string(deploy("prometheus/alerts.yml"))?;
        let of_rules = rules
            .lines()
            .filter(|line| !line.trim_start().starts_with("description"));
        for name in of_rules.flat_map(mentioned) {
            ensure!(
                documented.contains(name),
                "{name} of the alert rules is no metric"
            );
        }
        let alerts = server.query("ALERTS")?;
        ensure!(alerts.is_empty(), "{alerts:#?}");
        Ok(())
    });
}

#[test]
fn alert_rules_come_when_they_should_and_not_before() -> Result<()> {
    for words in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let mut promtool = Command::new("promtool");
        let output = promtool
            .args(words)
            .current_dir(deploy("prometheus"))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "promtool {words:?}: {text}{errors}"
        );
    }
    Ok(())
}
