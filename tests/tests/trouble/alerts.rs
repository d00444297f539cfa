//! What Prometheus makes of the agents' metrics with the rules in `deploy/prometheus`: nothing of a healthy
//! cluster, and an alert of what goes wrong.

use std::{
    collections::BTreeSet,
    env, fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    lab::{Lab, Node, agent::Launch, scenario, underlay::router_address},
    prometheus::Prometheus,
    skip,
    wait::{scaled, wait_for},
};
use serde_json::Value;

use crate::support::{judge, spoil_checksums};

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

/// What a Prometheus makes of the lab's agents. Minutes that an alert has to last are seconds here.
struct Watched {
    server: Prometheus,
}

impl Watched {
    fn start(lab: &Lab) -> Result<Self> {
        let rules = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/prometheus/alerts.yml"
        );
        let hurried = lab.dir().join("alerts.yml");
        fs::write(&hurried, in_seconds(&fs::read_to_string(rules)?))?;
        let nodes = lab.nodes().iter();
        let agents: Vec<_> = nodes.map(|node| (node.address, 2401).into()).collect();
        let (router, dir) = (lab.underlay().router(), lab.dir().join("prometheus"));
        let server = Prometheus::start(router, router_address(0), &agents, &hurried, &dir)?;
        wait_for("Prometheus to see every node", PATIENCE, || {
            server.check_running()?;
            let up = server.query("sum(up)")?;
            let wanted = lab.nodes().len().to_string();
            ensure!(
                up.first().is_some_and(|up| up["value"][1] == wanted),
                "{up:#?}"
            );
            Ok(())
        })?;
        Ok(Self { server })
    }

    /// The alerts that fire: name, node and what of the node: the state of its peers, or the alarm about leases.
    fn alerts(&self) -> Result<BTreeSet<[String; 3]>> {
        let firing = self.server.query("ALERTS{alertstate=\"firing\"}")?;
        let text = |alert: &Value, key: &str| {
            let label = alert["metric"][key].as_str().unwrap_or_default();
            label.to_owned()
        };
        Ok(firing
            .iter()
            .map(|alert| {
                let what = text(alert, "state") + &text(alert, "alarm");
                [text(alert, "alertname"), text(alert, "instance"), what]
            })
            .collect())
    }

    /// Waits until a node's alert about peers in this state fires, or no longer does.
    fn expect_trouble(&self, node: &Node, state: &str, fires: bool) -> Result<()> {
        self.expect_of("OverlayPeersInTrouble", node, state, fires)
    }

    /// Waits until an alert of a node fires, or no longer does.
    fn expect(&self, name: &str, node: &Node, fires: bool) -> Result<()> {
        self.expect_of(name, node, "", fires)
    }

    fn expect_of(&self, name: &str, node: &Node, state: &str, fires: bool) -> Result<()> {
        let wanted = [name, &format!("{}:2401", node.address), state].map(str::to_owned);
        let verb = if fires { "fire" } else { "end" };
        wait_for(
            &format!("{name} {state} of {} to {verb}", node.name),
            PATIENCE,
            || {
                let alerts = self.alerts()?;
                ensure!(alerts.contains(&wanted) == fires, "{alerts:?}");
                Ok(())
            },
        )
    }
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
        let prometheus = Watched::start(lab)?;
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
                let file = node.subnet_file_flag();
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
        let prometheus = Watched::start(lab)?;
        let rule = |action: &str| {
            let rule = format!("{action} INPUT -p udp --dport 8472 -j DROP");
            other.cmd("iptables", rule.split(' ')).map(drop)
        };
        rule("-I")?;
        prometheus.expect_trouble(one, "one_way", true)?;
        prometheus.expect_trouble(other, "blocked", true)?;
        rule("-D")?;
        prometheus.expect_trouble(one, "one_way", false)?;
        prometheus.expect_trouble(other, "blocked", false)?;
        other.kill_agent()?;
        prometheus.expect("OverlayAgentDown", other, true)?;
        lab.start_agent(other, &FLAGS)?;
        prometheus.expect("OverlayAgentDown", other, false)
    });
}

#[test]
fn what_spoils_packets_duplicates_and_a_wrong_clock_raise_an_alert_that_names_them() {
    if !is_installed() {
        skip!("no prometheus; Debian has it in a package of that name");
    }
    scenario(Lab::builder().nodes(3), |lab| {
        let (one, other, late) = (lab.node(0), lab.node(1), lab.node(2));
        let words = [
            "env",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "faketime",
            "-f",
            "-1h",
        ];
        late.launch(&Launch {
            wrapper: words.map(str::to_owned).to_vec(),
            ..Launch::new(lab.store(), &FLAGS)
        })?;
        for node in [one, other] {
            lab.start_agent(node, &FLAGS)?;
        }
        late.wait_ready()?;
        lab.wait_converged()?;
        let prometheus = Watched::start(lab)?;
        prometheus.expect("OverlayClockWrong", late, true)?;

        let hub = lab.underlay().hub();
        let limit = |mtu| hub.run("ip", ["link", "set", &other.name, "mtu", mtu]);
        limit("1400")?;
        prometheus.expect_trouble(one, "path_mtu", true)?;
        limit("1500")?;
        prometheus.expect_trouble(one, "path_mtu", false)?;

        spoil_checksums(lab, one, other)?;
        prometheus.expect_trouble(one, "checksum", true)?;
        prometheus.expect_trouble(other, "checksum", true)?;
        hub.run("nft", ["delete", "table", "bridge", "spoil"])?;
        prometheus.expect_trouble(one, "checksum", false)?;

        let twin = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}}}"#,
            other.address
        );
        lab.store().put_lease("10.5.250.0-24", &twin)?;
        prometheus.expect_trouble(one, "duplicate", true)?;
        prometheus.expect_of("OverlayLeaseAlarm", other, "second record", true)?;
        lab.store().delete_lease("10.5.250.0-24")?;
        prometheus.expect_trouble(one, "duplicate", false)?;
        prometheus.expect_of("OverlayLeaseAlarm", other, "second record", false)?;

        let right = [one, other].map(|node| format!("{}:2401", node.address));
        wait_for("every alert but the clock's to end", PATIENCE, || {
            let alerts = prometheus.alerts()?;
            let is_right = |[_, instance, _]: &[String; 3]| right.contains(instance);
            ensure!(!alerts.iter().any(is_right), "{alerts:?}");
            Ok(())
        })
    });
}
