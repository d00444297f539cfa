//! Whatever somebody does to `flannel.1` and to what belongs to it is undone, with all peers, as soon
//! as the kernel tells.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::{ping, udp},
    wait::wait_for,
};
use serde_json::Value;

const DEVICE: &str = "flannel.1";
/// What the agent promises.
const PROMISED: Duration = Duration::from_secs(1);
/// What a machine that is busy with other tests may make of it. The agent's periodic look comes
/// every 30 s: what is back by now was noticed when it happened.
const PATIENCE: Duration = Duration::from_secs(8);
/// The promise must hold at least once.
const ATTEMPTS: usize = 3;

/// Everything that makes a node reach its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KernelTier {
    mac: String,
    mtu: u64,
    up: bool,
    local: String,
    addresses: Vec<String>,
    neighbours: Vec<String>,
    forwarding: Vec<String>,
    routes: Vec<String>,
}

impl KernelTier {
    fn of(node: &Node) -> Result<Self> {
        let text = node.cmd("ip", ["-json", "-details", "link", "show", "dev", DEVICE])?;
        let links: Value = serde_json::from_str(&text)?;
        let link = &links[0];
        let text_of = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let output_of = |command: &str| -> Result<Vec<String>> {
            let mut words = command.split(' ');
            let output = node.cmd(words.next().unwrap_or_default(), words)?;
            let mut sorted: Vec<_> = output.lines().map(|line| line.trim().to_owned()).collect();
            sorted.sort();
            Ok(sorted)
        };
        Ok(Self {
            mac: text_of(&link["address"])?,
            mtu: link["mtu"].as_u64().context("no MTU")?,
            up: link["flags"]
                .as_array()
                .is_some_and(|flags| flags.iter().any(|flag| flag == "UP")),
            local: text_of(&link["linkinfo"]["info_data"]["local"])?,
            addresses: output_of(&format!("ip -4 -oneline address show dev {DEVICE}"))?
                .iter()
                .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
                .collect(),
            neighbours: output_of(&format!("ip neigh show dev {DEVICE} nud permanent"))?,
            forwarding: output_of(&format!("bridge fdb show dev {DEVICE}"))?,
            routes: output_of("ip route show proto 241")?,
        })
    }
}

/// Does something to the first node, several times, and waits each time until the kernel tier is as
/// before and pods talk again, on the fast path.
fn undone(lab: &Lab, what: &str, disturb: &dyn Fn(&Node) -> Result<()>) -> Result<()> {
    let node = lab.node(0);
    let before = KernelTier::of(node)?;
    ensure!(before.routes.len() == lab.nodes().len() - 1, "{before:#?}");
    let mut fastest = Duration::MAX;
    for _ in 0..ATTEMPTS {
        disturb(node).with_context(|| what.to_owned())?;
        let start = Instant::now();
        wait_for(&format!("{what}: to be undone"), PATIENCE, || {
            node.check_running()?;
            let now = KernelTier::of(node)?;
            if now != before {
                bail!("before {before:#?}\nnow {now:#?}");
            }
            Ok(())
        })?;
        fastest = fastest.min(start.elapsed());
    }
    ensure!(fastest < PROMISED, "{what}: undone after {fastest:?}");
    let pods = lab.pods();
    let (_, from) = &pods[0];
    for (_, to) in &pods[1..] {
        ping::once(&from.endpoint(), to.address).with_context(|| what.to_owned())?;
    }
    let (_, to) = pods.last().context("no pods")?;
    wait_for(&format!("{what}: fast packets both ways"), PATIENCE, || {
        let counted = node.counters()?;
        udp::echo_each(&from.endpoint(), &to.endpoint(), &[100], 20)?;
        let counted = node.counters()?.since(&counted);
        for hook in [Hook::Egress, Hook::Ingress] {
            ensure!(counted.fast(hook) >= 10, "counted\n{counted}");
        }
        Ok(())
    })
}

/// Two nodes on one segment, one behind the router, with a pod each.
fn three_nodes(test: impl FnOnce(&Lab) -> Result<()>) {
    scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
        lab.bring_up(1)?;
        lab.ping_matrix()?;
        test(lab)
    });
}

/// A disturbance made of command lines.
fn commands(lines: &'static [&'static str]) -> impl Fn(&Node) -> Result<()> {
    move |node| {
        for line in lines {
            let mut words = line.split(' ');
            node.cmd(words.next().unwrap_or_default(), words)?;
        }
        Ok(())
    }
}

#[test]
fn a_deleted_device_is_back_with_all_peers_and_its_mac_address() {
    three_nodes(|lab| {
        undone(
            lab,
            "deletion",
            &commands(&["ip link delete dev flannel.1"]),
        )
    });
}

#[test]
fn a_device_that_was_renamed_or_changed_is_put_right() {
    three_nodes(|lab| {
        for (what, lines) in [
            ("rename", &["ip link set flannel.1 name elsewhere"] as &[_]),
            (
                "another MAC address",
                &["ip link set flannel.1 address 02:00:00:00:99:99"],
            ),
            ("another MTU", &["ip link set flannel.1 mtu 1300"]),
            ("link down", &["ip link set flannel.1 down"]),
            (
                "another local address",
                &["ip link set flannel.1 type vxlan id 1 local 172.30.0.250"],
            ),
            ("no address", &["ip address flush dev flannel.1"]),
            (
                "a second address of the pod network",
                &["ip address add 10.5.250.0/32 dev flannel.1"],
            ),
        ] {
            undone(lab, what, &commands(lines))?;
        }
        Ok(())
    });
}

#[test]
fn deleted_and_altered_routes_neighbours_and_forwarding_entries_are_put_right() {
    three_nodes(|lab| {
        let peer = lab.node(1);
        let (subnet, address) = (peer.subnet_env()?.subnet()?, peer.address);
        let base = subnet.network();
        let mac = lab
            .node(0)
            .cmd("ip", ["neigh", "show", "dev", DEVICE, &base.to_string()])?
            .split_whitespace()
            .nth(2)
            .context("no neighbour")?
            .to_owned();
        let one = |line: String| {
            move |node: &Node| {
                let mut words = line.split(' ');
                node.cmd(words.next().unwrap_or_default(), words).map(drop)
            }
        };
        undone(lab, "a route", &one(format!("ip route delete {subnet}")))?;
        undone(
            lab,
            "every route of the agent",
            &commands(&["ip route flush proto 241"]),
        )?;
        undone(
            lab,
            "every route of the device",
            &commands(&["ip route flush dev flannel.1"]),
        )?;
        undone(
            lab,
            "every neighbour",
            &commands(&["ip neigh flush dev flannel.1 nud permanent"]),
        )?;
        undone(
            lab,
            "another neighbour",
            &one(format!(
                "ip neigh replace {base} dev {DEVICE} lladdr 02:00:00:00:99:99 nud permanent"
            )),
        )?;
        undone(
            lab,
            "a forwarding entry",
            &one(format!(
                "bridge fdb delete {mac} dev {DEVICE} self dst {address}"
            )),
        )?;
        undone(
            lab,
            "another forwarding entry",
            &one(format!(
                "bridge fdb replace {mac} dev {DEVICE} self dst 172.30.0.250 permanent"
            )),
        )
    });
}
