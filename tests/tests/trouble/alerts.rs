//! What Prometheus makes of the agents' metrics with the rules in `deploy/prometheus`: nothing of a healthy
//! cluster, and an alert of what goes wrong.

use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    http,
    lab::{Lab, Node, scenario, underlay::router_address},
    process::{Daemon, Lifetime},
    skip,
    wait::{scaled, wait_for},
};
use serde_json::Value;

use crate::support::judge;

const FLAGS: [&str; 3] = [
    "--peer-probe-port=8473",
    "--healthz-ip=0.0.0.0",
    "--healthz-port=2401",
];
/// Three questions without an answer, a scrape, and the time that a rule wants it to last.
const PATIENCE: Duration = Duration::from_mins(1);
/// How many minutes a healthy cluster is watched, if not half of one.
const WATCH: &str = "OVERLAY_WATCH_MINUTES";
/// How often it is looked at.
const ROUND: Duration = Duration::from_secs(3);
const PORT: u16 = 9090;

/// Asks the nodes each second. Minutes that an alert has to last are seconds here.
struct Prometheus<'a> {
    lab: &'a Lab,
    daemon: Daemon,
}

impl<'a> Prometheus<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let dir = lab.dir();
        let rules = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/prometheus/alerts.yml"
        );
        fs::write(
            dir.join("alerts.yml"),
            in_seconds(&fs::read_to_string(rules)?),
        )?;
        let nodes = lab.nodes().iter();
        let targets: Vec<String> = nodes
            .map(|node| format!("\"{}:2401\"", node.address))
            .collect();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: overlay-agent
    static_configs:
      - targets: [{}]
",
            targets.join(", ")
        );
        let file = dir.join("prometheus.yml");
        fs::write(&file, config)?;
        let mut command: Command = lab.underlay().router().command("prometheus");
        command
            .arg(argument("--config.file", &file))
            .arg(argument("--storage.tsdb.path", &dir.join("prometheus")))
            .arg(format!("--web.listen-address={}:{PORT}", router_address(0)));
        let log = dir.join("prometheus.log");
        let daemon = Daemon::start("prometheus", command, &log, Lifetime::Bound)?;
        let this = Self { lab, daemon };
        wait_for("Prometheus to see every node", PATIENCE, || {
            this.daemon.check_running()?;
            let up = this.ask("/api/v1/query?query=sum(up)")?;
            let wanted = lab.nodes().len().to_string();
            ensure!(up["data"]["result"][0]["value"][1] == wanted, "{up:#}");
            Ok(())
        })?;
        Ok(this)
    }

    fn ask(&self, path: &str) -> Result<Value> {
        let server = (router_address(0), PORT).into();
        let (status, body) = http::get(self.lab.underlay().router(), server, path)?;
        // The body may come in chunks, whose sizes are on lines of their own.
        let json: String = body.lines().filter(|line| line.starts_with('{')).collect();
        serde_json::from_str(&json).with_context(|| format!("{status} {body}"))
    }

    /// The alerts that fire: name and node.
    fn alerts(&self) -> Result<BTreeSet<(String, String)>> {
        let said = self.ask("/api/v1/alerts")?;
        let alerts = said["data"]["alerts"].as_array().context("alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let text = |alert: &Value, key: &str| {
            let label = alert["labels"][key].as_str().unwrap_or_default();
            label.to_owned()
        };
        Ok(firing
            .map(|alert| (text(alert, "alertname"), text(alert, "instance")))
            .collect())
    }

    /// Waits until an alert of a node fires, or no longer does.
    fn expect(&self, name: &str, node: &Node, fires: bool) -> Result<()> {
        let wanted = (name.to_owned(), format!("{}:2401", node.address));
        let verb = if fires { "fire" } else { "end" };
        wait_for(
            &format!("{name} of {} to {verb}", node.name),
            PATIENCE,
            || {
                let alerts = self.alerts()?;
                ensure!(alerts.contains(&wanted) == fires, "{alerts:?}");
                Ok(())
            },
        )
    }
}

fn argument(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn in_seconds(rules: &str) -> String {
    let line = |line: &str| match line.strip_suffix('m') {
        Some(rest) if line.trim_start().starts_with("for: ") => format!("{rest}s\n"),
        _ => format!("{line}\n"),
    };
    rules.lines().map(line).collect()
}

fn is_installed() -> bool {
    Command::new("prometheus")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

#[test]
fn a_healthy_cluster_raises_no_alarm() {
    if !is_installed() {
        skip!("no prometheus; Debian has it in a package of that name");
    }
    let minutes =
        env::var(WATCH).map_or(0.5, |minutes| minutes.parse().expect("a number of minutes"));
    scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
        lab.start_agents(&FLAGS)?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        for node in lab.nodes() {
            wait_for("all peers to be known", PATIENCE, || {
                let (code, said) = judge(node, &["peers"])?;
                let peers = said["peers"].as_array().context("peers")?;
                let mut known = peers.iter().map(|peer| &peer["state"]);
                ensure!(
                    code == Some(0) && known.all(|state| state == "healthy"),
                    "{said:#}"
                );
                Ok(())
            })?;
        }
        let prometheus = Prometheus::start(lab)?;
        let end = Instant::now() + scaled(Duration::from_mins(1).mul_f64(minutes));
        let mut rounds: u32 = 0;
        let began = Instant::now();
        while Instant::now() < end {
            thread::sleep((ROUND * rounds).saturating_sub(began.elapsed()));
            // Pods talk all the time.
            lab.ping_matrix()?;
            let alerts = prometheus.alerts()?;
            ensure!(alerts.is_empty(), "{alerts:?}");
            for node in lab.nodes() {
                let file = format!("--subnet-file={}", node.subnet_file.display());
                for words in [
                    vec!["status"],
                    vec!["peers"],
                    vec!["check", "--mesh", &file],
                ] {
                    let (code, said) = judge(node, &words)?;
                    ensure!(code == Some(0), "{words:?} on {}: {said:#}", node.name);
                }
            }
            rounds += 1;
        }
        println!("{rounds} rounds in {minutes} minutes without an alarm");
        Ok(())
    });
}

#[test]
fn what_goes_wrong_raises_an_alert_that_names_the_node() {
    if !is_installed() {
        skip!("no prometheus; Debian has it in a package of that name");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agents(&FLAGS)?;
        lab.wait_converged()?;
        let (one, other) = (lab.node(0), lab.node(1));
        let prometheus = Prometheus::start(lab)?;
        let rule = |action: &str| {
            let rule = format!("{action} INPUT -p udp --dport 8472 -j DROP");
            other.cmd("iptables", rule.split(' ')).map(drop)
        };
        rule("-I")?;
        prometheus.expect("OverlayPeersInTrouble", one, true)?;
        prometheus.expect("OverlayPeersInTrouble", other, true)?;
        rule("-D")?;
        prometheus.expect("OverlayPeersInTrouble", one, false)?;
        prometheus.expect("OverlayPeersInTrouble", other, false)?;
        other.kill_agent()?;
        prometheus.expect("OverlayAgentDown", other, true)?;
        lab.start_agent(other, &FLAGS)?;
        prometheus.expect("OverlayAgentDown", other, false)
    });
}
