//! Whether every node is as it was before anything happened, and nothing is left over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::loaded_maps;
use serde_json::Value;

use super::world::{HEALTH_PORT, World};
use crate::{
    http,
    lab::{Node, holdings::Holdings, store::LeaseRecord},
    wait::wait_for,
};

/// Peers that go after an outage in which leases vanished stay for 90 s, as they might come back.
const PATIENCE: Duration = Duration::from_mins(2);
/// What a process may have more of than one that did less before.
const RSS_TOLERANCE_KIB: u64 = 8_192;

/// How the cluster was before anything happened.
pub struct Judge {
    leases: Vec<LeaseRecord>,
    nodes: Vec<Order>,
    holdings: Vec<Holdings>,
}

/// All there is of the overlay on a node: lines of a kind, sorted.
type Order = BTreeMap<&'static str, Vec<String>>;

impl Judge {
    pub fn new(world: &World) -> Result<Self> {
        let nodes = world.lab.nodes();
        for node in nodes {
            wait_for(&format!("{} to be ready", node.name), PATIENCE, || {
                ready(node)
            })?;
        }
        Ok(Self {
            leases: world.lab.store().leases()?,
            nodes: nodes.iter().map(order).collect::<Result<_>>()?,
            holdings: nodes.iter().map(Holdings::of).collect::<Result<_>>()?,
        })
    }

    /// Waits until every node is ready and has what it had: what is desired is what is.
    pub fn wait_in_order(&self, world: &World) -> Result<()> {
        wait_for("everything to be in order", PATIENCE, || {
            let leases = world.lab.store().leases()?;
            ensure!(leases == self.leases, "leases: {leases:?}");
            for (node, before) in world.lab.nodes().iter().zip(&self.nodes) {
                node.check_running()?;
                ready(node)?;
                compare(before, &order(node)?).with_context(|| node.name.clone())?;
            }
            Ok(())
        })?;
        world.lab.ping_matrix()
    }

    /// Agents hold what they held, and nothing holds what was replaced.
    pub fn ensure_nothing_is_left(&self, world: &World) -> Result<()> {
        for (node, before) in world.lab.nodes().iter().zip(&self.holdings) {
            wait_for("the agents to hold what they held", PATIENCE, || {
                let now = Holdings::of(node)?;
                ensure!(
                    now.descriptors <= before.descriptors
                        && (now.pins, now.programs, now.links)
                            == (before.pins, before.programs, before.links)
                        && now.rss_kib <= before.rss_kib + RSS_TOLERANCE_KIB,
                    "{} holds {now:?}, before {before:?}",
                    node.name
                );
                Ok(())
            })?;
        }
        wait_for("maps that were replaced to be gone", PATIENCE, || {
            let loaded: BTreeSet<_> = loaded_maps().flatten().map(|map| map.id()).collect();
            let left: Vec<_> = world.retired.intersection(&loaded).collect();
            ensure!(left.is_empty(), "maps {left:?} are loaded");
            Ok(())
        })
    }
}

fn ready(node: &Node) -> Result<()> {
    let answer = http::get(
        &node.namespace,
        ([127, 0, 0, 1], HEALTH_PORT).into(),
        "/readyz",
    )?;
    ensure!(answer.0 == 200, "{}: {answer:?}", node.name);
    let (code, text) = node.status()?;
    ensure!(code == Some(0), "status of {}: {text}", node.name);
    Ok(())
}

fn order(node: &Node) -> Result<Order> {
    let mut order = Order::new();
    for (what, command) in [
        ("IPv4 routes", "ip -4 route show proto 241"),
        ("IPv6 routes", "ip -6 route show proto 241"),
        ("neighbours", "ip neigh show nud permanent"),
        ("rules", "nft -s list ruleset"),
    ] {
        let mut words = command.split(' ');
        let text = node.cmd(words.next().unwrap_or_default(), words)?;
        order.insert(
            what,
            sorted(text.lines().map(|line| line.trim().to_owned())),
        );
    }
    let entries = node.cmd("bridge", ["fdb", "show"])?;
    let entries = entries.lines().filter(|line| line.contains(" dst "));
    order.insert("forwarding entries", sorted(entries.map(str::to_owned)));
    order.insert("interfaces", sorted(interfaces(node)?.into_iter()));
    order.insert("maps", sorted(mapped(node)?.into_iter()));
    let links = node.pinned_links()?;
    order.insert(
        "programs",
        sorted(links.into_iter().map(|(name, mut hooks)| {
            hooks.sort();
            format!("{name}: {}", hooks.join(" "))
        })),
    );
    let pins = node.pinned_map_ids()?;
    order.insert("pins", sorted(pins.into_iter().map(|(name, _)| name)));
    let file = fs::read_to_string(&node.subnet_file)?;
    order.insert("subnet file", sorted(file.lines().map(str::to_owned)));
    Ok(order)
}

/// Interfaces by name, with address, MTU and whether they are up.
fn interfaces(node: &Node) -> Result<Vec<String>> {
    let text = node.cmd("ip", ["-json", "link", "show"])?;
    let links: Vec<Value> = serde_json::from_str(&text)?;
    let line = |link: &Value| {
        let mut flags = link["flags"].as_array().into_iter().flatten();
        let is_up = flags.any(|flag| flag == "UP");
        format!(
            "{} {} {} up: {is_up}",
            link["ifname"], link["address"], link["mtu"]
        )
    };
    Ok(links.iter().map(line).collect())
}

/// What the maps of both families say of peers.
fn mapped(node: &Node) -> Result<Vec<String>> {
    let routes = node.operator_json(&["routes"])?;
    let rows = routes["routes"].as_array().context("no routes")?;
    let line = |row: &Value| {
        let fields = [
            "subnet",
            "vtep",
            "vtep_mac",
            "direct_allowed",
            "tunnel_allowed",
        ];
        fields.map(|field| row[field].to_string()).join(" ")
    };
    Ok(rows.iter().map(line).collect())
}

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    lines
}

fn compare(before: &Order, now: &Order) -> Result<()> {
    for (what, before) in before {
        let now = now.get(what).context("nothing of a kind")?;
        let missing: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
        let added: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
        if before != now {
            bail!("{what}: missing {missing:?}, new {added:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(lines: &[&str]) -> Order {
        let lines = sorted(lines.iter().map(|&line| line.to_owned()));
        [("routes", lines)].into()
    }

    #[test]
    fn what_is_missing_new_or_there_twice_is_not_in_order() {
        let before = routes(&["a", "b"]);
        compare(&before, &routes(&["b", "a"])).expect("the same");
        let differs = compare(&before, &routes(&["b", "c"])).expect_err("another one");
        assert_eq!(differs.to_string(), r#"routes: missing ["a"], new ["c"]"#);
        compare(&before, &routes(&["a", "a", "b"])).expect_err("one is there twice");
        compare(&before, &Order::new()).expect_err("nothing is there");
    }
}
