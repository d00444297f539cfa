//! A node goes over from flanneld to the agent and back while pods talk: nothing is lost, and the
//! other nodes see nothing of it. flanneld is played by a stand-in that makes the same kernel objects.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::{connection::SteadyConnection, flow::SteadyFlow},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(2);
const DEVICE: &str = "flannel.1";
const SUBNETS: [&str; 2] = ["10.5.1.0/24", "10.5.2.0/24"];
const KEYS: [&str; 2] = ["10.5.1.0-24", "10.5.2.0-24"];

/// Two stand-ins for flannel nodes, with a pod each.
fn flannel_cluster(test: impl FnOnce(&mut Lab) -> Result<()>) {
    scenario(Lab::builder().nodes(2), |lab| {
        for (node, subnet) in lab.nodes().iter().zip(SUBNETS) {
            lab.start_stock(node, subnet)?;
        }
        lab.wait_converged()?;
        lab.add_pods(1)?;
        lab.ping_matrix()?;
        test(lab)
    });
}

/// What must not change when a node changes hands: what peers know, and what pods depend on.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    ifindex: u32,
    mac: String,
    env: String,
    leases: Vec<(String, String)>,
}

fn identity(lab: &Lab, node: &Node) -> Result<Identity> {
    Ok(Identity {
        ifindex: node.namespace.ifindex(DEVICE)?,
        mac: node.mac(DEVICE)?.to_string(),
        env: fs::read_to_string(&node.subnet_file)?,
        leases: lab
            .store()
            .leases()?
            .into_iter()
            .map(|lease| (lease.subnet_key, lease.value))
            .collect(),
    })
}

fn wait_ready(lab: &Lab, node: &Node) -> Result<()> {
    wait_for("the agent to be ready", PATIENCE, || {
        node.check_running()?;
        let log = node.with_agent(|agent| Ok(agent.log()))?;
        ensure!(log.contains("INFO ready"), "{log}");
        lab.check_converged(node)
    })
}

/// Lines of a command's output that a predicate picks.
fn lines(node: &Node, command: &str, sign: &str) -> Result<Vec<String>> {
    let mut words = command.split(' ');
    let output = node.cmd(words.next().unwrap_or_default(), words)?;
    let picked = output.lines().filter(|line| line.contains(sign));
    Ok(picked.map(str::to_owned).collect())
}

#[test]
fn a_flannel_node_is_taken_over_and_handed_back_under_traffic_without_loss() {
    flannel_cluster(|lab| {
        let (node, peer) = (lab.node(0), lab.node(1));
        let before = identity(lab, node)?;
        let flows = [
            SteadyFlow::start(&node.first_pod(), &peer.first_pod(), INTERVAL)?,
            SteadyFlow::start(&peer.first_pod(), &node.first_pod(), INTERVAL)?,
        ];
        let connections = [
            SteadyConnection::open(&node.first_pod(), &peer.first_pod(), INTERVAL)?,
            SteadyConnection::open(&peer.first_pod(), &node.first_pod(), INTERVAL)?,
        ];

        // Over to the agent, first one node, then the other.
        lab.start_agent(node, &[])?;
        wait_ready(lab, node)?;
        let after = identity(lab, node)?;
        ensure!(before == after, "before {before:#?}\nafter {after:#?}");
        node.wait_fast()?;
        lab.start_agent(peer, &[])?;
        wait_ready(lab, peer)?;
        peer.wait_fast()?;
        ensure!(
            identity(lab, node)? == before,
            "the peer's start changed it"
        );

        // And back: flanneld starts on what the agent leaves, then the agent's rest is cleaned up.
        node.stop_agent()?;
        lab.start_stock(node, SUBNETS[0])?;
        node.follow_leases(lab.store())?;
        let route = lines(node, "ip route", SUBNETS[1])?;
        ensure!(
            route.len() == 1 && !route[0].contains("proto 241"),
            "{route:?}"
        );
        let file = format!("--subnet-file={}", node.subnet_file.display());
        let said = node.operator(&["cleanup", &file])?;
        ensure!(
            said.contains("kept for flanneld  interface flannel.1"),
            "{said}"
        );
        ensure!(!node.pin_dir.exists(), "{said}");
        let handed_back = identity(lab, node)?;
        ensure!(
            handed_back == before,
            "before {before:#?}\nafter {handed_back:#?}"
        );
        for command in ["ip route", "nft list tables"] {
            for sign in ["proto 241", "overlay-agent"] {
                let left = lines(node, command, sign)?;
                ensure!(left.is_empty(), "{command}: {left:?}");
            }
        }
        lab.ping_matrix()?;

        for flow in flows {
            let report = flow.stop()?;
            ensure!(report.datagrams.sent > 500, "{report:?}");
            report.datagrams.ensure_lossless()?;
        }
        for connection in connections {
            let report = connection.close()?;
            ensure!(report.exchanges > 100, "{report:?}");
        }
        Ok(())
    });
}

#[test]
fn what_flannel_left_for_vanished_peers_is_swept_and_its_lease_reused() {
    flannel_cluster(|lab| {
        let node = lab.node(0);
        let ghosts = [
            "ip neigh replace 10.5.9.0 dev flannel.1 lladdr 02:00:00:00:00:99 nud permanent",
            "bridge fdb replace 02:00:00:00:00:99 dev flannel.1 self dst 172.30.0.99 permanent",
            "ip route replace 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink",
        ];
        for command in ghosts {
            let mut words = command.split(' ');
            node.cmd(words.next().unwrap_or_default(), words)?;
        }
        lab.start_agent(node, &[])?;
        wait_ready(lab, node)?;
        for (command, sign) in [
            ("ip neigh", "10.5.9."),
            ("bridge fdb", "02:00:00:00:00:99"),
            ("ip route", "10.5.9."),
        ] {
            let left = lines(node, command, sign)?;
            ensure!(left.is_empty(), "{command}: {left:?}");
        }
        let keys: Vec<_> = lab
            .store()
            .leases()?
            .into_iter()
            .map(|lease| lease.subnet_key)
            .collect();
        ensure!(keys == KEYS, "{keys:?}");
        lab.ping_matrix()
    });
}

#[test]
fn cleanup_removes_everything_of_the_agent_and_nothing_else() {
    scenario(Lab::builder().nodes(2), |lab| {
        let node = lab.node(0);
        node.cmd("ip", ["route", "add", "192.0.2.0/24", "via", "172.30.0.1"])?;
        node.cmd("nft", ["add", "table", "ip", "mine"])?;
        let state = |what: &str| -> Result<String> {
            let mut text = String::new();
            for command in [
                "ip -4 route",
                "ip -brief link",
                "nft list ruleset",
                "ip rule",
            ] {
                let mut words = command.split(' ');
                text += &node.cmd(words.next().unwrap_or_default(), words)?;
            }
            ensure!(!text.is_empty(), "{what}");
            Ok(text)
        };
        let before = state("before")?;
        for agent in lab.nodes() {
            lab.start_agent(agent, &["--ip-masq", "--ip-blackhole-route"])?;
        }
        lab.wait_converged()?;
        wait_ready(lab, node)?;
        let leases = lab.store().leases()?;
        let file = format!("--subnet-file={}", node.subnet_file.display());

        let refused = node.operator(&["cleanup", &file]).unwrap_err().to_string();
        ensure!(refused.contains("agent"), "{refused}");
        ensure!(node.subnet_file.exists(), "cleaned under a running agent");

        node.stop_agent()?;
        let running = state("running")?;
        let planned = node.operator_json(&["cleanup", &file, "--dry-run"])?;
        ensure!(state("dry run")? == running, "a dry run changed something");
        let removed = node.operator_json(&["cleanup", &file])?;
        ensure!(
            planned["removed"] == removed["removed"],
            "planned {planned:#}\nremoved {removed:#}"
        );
        for sign in [
            "interface flannel.1",
            "route 10.5.",
            "blackhole 10.5.",
            "FLANNEL-POSTRTG",
            "FLANNEL-FWD",
            "table ip overlay-agent",
            "subnet.env",
            "links/",
            "OVL_ROUTES4",
        ] {
            ensure!(
                removed.to_string().contains(sign),
                "no {sign} in {removed:#}"
            );
        }
        let after = state("after")?;
        let mine = |text: &str| -> Vec<String> {
            // iptables-nft leaves its empty base chains, which are nobody's.
            let is_base = |line: &str| {
                [
                    "table ip nat",
                    "table ip filter",
                    "type nat hook",
                    "type filter hook",
                    "chain ",
                ]
                .iter()
                .any(|sign| line.contains(sign))
                    || line.trim() == "}"
                    || line.trim().is_empty()
                    || line.starts_with('#')
            };
            let lines = text.lines().filter(|line| !is_base(line));
            lines.map(str::to_owned).collect()
        };
        ensure!(
            mine(&after) == mine(&before),
            "before\n{before}\nafter\n{after}"
        );
        ensure!(!node.subnet_file.exists() && !node.pin_dir.exists());
        ensure!(lab.store().leases()? == leases, "the lease went, too");
        let again = node.operator(&["cleanup", &file])?;
        ensure!(
            again.starts_with("nothing of overlay-agent is here"),
            "{again}"
        );
        Ok(())
    });
}
