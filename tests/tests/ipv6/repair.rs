//! Damage done to the IPv6 tier behind the agent's back is repaired within a second, and what is no
//! longer wanted goes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use overlay_tests::{
    lab::{Lab, Node, ipv6::ping_matrix, scenario},
    traffic::ping6,
    wait::wait_for,
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;

/// What is programmed of the IPv6 tier on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tier {
    mac: String,
    mtu: String,
    address: bool,
    neighbours: Vec<String>,
    fdb: Vec<String>,
    routes: Vec<String>,
}

fn tier(node: &Node) -> Result<Tier> {
    let lines = |text: String, sign: &str| {
        let mut lines: Vec<_> = text
            .lines()
            .filter(|line| line.contains(sign))
            .map(|line| line.trim().to_owned())
            .collect();
        lines.sort();
        lines
    };
    let link = node.cmd("ip", ["link", "show", "flannel-v6.1"])?;
    ensure!(link.contains("UP"), "{link}");
    let mut mtu = link.split_whitespace().skip_while(|word| *word != "mtu");
    let own = node.subnet_env6()?.subnet()?.network();
    let addresses = node.cmd("ip", ["-6", "addr", "show", "dev", "flannel-v6.1"])?;
    Ok(Tier {
        mac: node.mac("flannel-v6.1")?.to_string(),
        mtu: mtu.nth(1).unwrap_or_default().to_owned(),
        address: addresses.contains(&format!("inet6 {own}/128 ")),
        neighbours: lines(
            node.cmd("ip", ["-6", "neigh", "show", "dev", "flannel-v6.1"])?,
            "PERMANENT",
        ),
        fdb: lines(
            node.cmd("bridge", ["fdb", "show", "dev", "flannel-v6.1"])?,
            "dst",
        ),
        routes: lines(node.cmd("ip", ["-6", "route", "show"])?, "proto 241"),
    })
}

fn damage_is_repaired(lab: &Lab) -> Result<()> {
    let (node, peer) = (lab.node(0), lab.node(1));
    let pods = [node.add_pod6('a')?, peer.add_pod6('a')?];
    ping_matrix(&pods)?;
    let before = tier(node)?;
    ensure!(
        before.address && before.neighbours.len() == 1 && before.routes.len() == 1,
        "{before:?}"
    );
    let subnet = peer.subnet_env6()?.subnet()?;
    let (base, own) = (subnet.network(), node.subnet_env6()?.subnet()?.network());
    let (mac, address) = (peer.mac("flannel-v6.1")?, peer.address6());
    for damage in [
        "ip link delete flannel-v6.1".to_owned(),
        "ip link set flannel-v6.1 down".to_owned(),
        "ip link set flannel-v6.1 address 02:de:ad:de:ad:01".to_owned(),
        "ip link set flannel-v6.1 mtu 1300".to_owned(),
        "ip link set flannel-v6.1 name stolen".to_owned(),
        format!("ip -6 route del {subnet}"),
        format!("ip -6 neigh del {base} dev flannel-v6.1"),
        format!("bridge fdb del {mac} dev flannel-v6.1 self dst {address}"),
        format!("bridge fdb replace {mac} dev flannel-v6.1 self dst fd00::77 permanent"),
        format!("ip addr del {own}/128 dev flannel-v6.1"),
        "ip -6 route flush dev flannel-v6.1".to_owned(),
        "ip -6 addr flush dev flannel-v6.1".to_owned(),
    ] {
        let mut words = damage.split(' ');
        node.cmd(words.next().unwrap_or_default(), words)?;
        let start = Instant::now();
        wait_for(
            &format!("repair of `{damage}`"),
            Duration::from_secs(5),
            || {
                let now = tier(node)?;
                ensure!(now == before, "before\n{before:#?}\nnow\n{now:#?}");
                Ok(())
            },
        )?;
        let elapsed = start.elapsed();
        ensure!(
            elapsed < Duration::from_secs(1),
            "`{damage}` took {elapsed:?}"
        );
        ping6::all(&pods[0], pods[1].address, 1)?;
    }
    Ok(())
}

#[test]
fn whatever_happens_to_the_device_of_a_dual_stack_node_is_undone_within_a_second() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agents6(&[])?;
        damage_is_repaired(lab)
    });
}

#[test]
fn whatever_happens_to_the_device_of_a_node_without_ipv4_is_undone_within_a_second() {
    scenario(Lab::builder().nodes(2).config(IPV6), |lab| {
        lab.start_agents6(&[])?;
        damage_is_repaired(lab)
    });
}

/// An error if `node` has anything left of a peer.
fn ensure_forgotten(node: &Node, base: &str, mac: &str) -> Result<()> {
    for (program, arguments) in [
        ("ip", "-6 route show"),
        ("ip", "-6 neigh show"),
        ("bridge", "fdb show"),
    ] {
        let text = node.cmd(program, arguments.split(' '))?;
        ensure!(!text.contains(base) && !text.contains(mac), "{text}");
    }
    Ok(())
}

#[test]
fn a_peer_that_vanishes_leaves_nothing_behind() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.start_stock(lab.node(1), "10.5.200.0/24&fd00:10:5:200::/64")?;
        lab.wait_converged6()?;
        let mac = lab.node(1).mac("flannel-v6.1")?.to_string();
        lab.store()
            .delete_lease("10.5.200.0-24&fd00:10:5:200::-64")?;
        wait_for("the peer to be forgotten", Duration::from_secs(5), || {
            ensure_forgotten(lab.node(0), "fd00:10:5:200::", &mac)
        })
    });
}

#[test]
fn a_peer_that_vanished_while_the_agent_was_away_is_swept_at_its_start() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let node = lab.node(0);
        lab.start_agent(node, &[])?;
        lab.start_stock(lab.node(1), "10.5.200.0/24&fd00:10:5:200::/64")?;
        lab.wait_converged6()?;
        let mac = lab.node(1).mac("flannel-v6.1")?.to_string();
        node.kill_agent()?;
        lab.store()
            .delete_lease("10.5.200.0-24&fd00:10:5:200::-64")?;
        // And what a stock flanneld of this node left of another.
        node.cmd(
            "ip",
            "-6 route add fd00:10:5:99::/64 via fd00:10:5:99:: dev flannel-v6.1 onlink".split(' '),
        )?;
        lab.start_agent(node, &[])?;
        wait_for("the peers to be forgotten", Duration::from_secs(5), || {
            ensure_forgotten(node, "fd00:10:5:200::", &mac)?;
            ensure_forgotten(node, "fd00:10:5:99::", &mac)
        })
    });
}

#[test]
fn a_device_of_flanneld_is_adopted_with_its_address() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        lab.start_agent(lab.node(1), &[])?;
        let node = lab.node(0);
        lab.start_stock(node, "10.5.200.0/24&fd00:10:5:200::/64")?;
        lab.wait_converged6()?;
        let (from, to) = (node.add_pod6('a')?, lab.node(1).add_pod6('a')?);
        ping6::all(&from, to.address, 3)?;
        let (mac, ifindex) = (
            node.mac("flannel-v6.1")?,
            node.namespace.ifindex("flannel-v6.1")?,
        );
        lab.start_agent(node, &[])?;
        lab.wait_converged6()?;
        ensure!(node.mac("flannel-v6.1")? == mac, "the MAC address changed");
        ensure!(
            node.namespace.ifindex("flannel-v6.1")? == ifindex,
            "another device"
        );
        ensure!(
            node.subnet_env6()?.subnet()?.to_string() == "fd00:10:5:200::/64",
            "another subnet"
        );
        wait_for(
            "flannel's route to be replaced by ours",
            Duration::from_secs(5),
            || {
                let routes = node.cmd("ip", ["-6", "route", "show", "dev", "flannel-v6.1"])?;
                let to_peers = routes.lines().filter(|line| line.contains(" via "));
                for line in to_peers {
                    ensure!(line.contains("proto 241"), "{routes}");
                }
                Ok(())
            },
        )?;
        ping6::all(&from, to.address, 3)
    });
}

#[test]
fn a_device_for_which_ipv6_is_off_by_default_gets_it() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        for node in lab.nodes() {
            node.namespace
                .set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        }
        lab.start_agents6(&[])?;
        let tier = tier(lab.node(0))?;
        ensure!(tier.address, "{tier:?}");
        Ok(())
    });
}
