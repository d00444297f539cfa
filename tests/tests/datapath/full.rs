//! More peers than the maps hold: those that fit are fast, the others have the kernel tier, and
//! whoever looks is told.

use std::time::Duration;

use anyhow::{Result, ensure};
use overlay_common::{maps::MAX_NODES, outcome::Hook};
use overlay_tests::{
    lab::{Attachment, Lab, Node, scenario, underlay::NODE_INTERFACE},
    traffic::{Endpoint, ping, tcp},
    wait::wait_for,
};

/// For an agent to take in and write down thousands of peers, beside other tests.
const DEADLINE: Duration = Duration::from_mins(4);
/// Index 0 of the map stands for no node.
const ROOM: usize = MAX_NODES - 1;
const WARNING: &str = "the node map is full";

/// Leases of `count` nodes that are not there.
fn ghosts(count: usize) -> Vec<(String, String)> {
    let ghost = |number: usize| {
        let [.., high, low] = number.to_be_bytes();
        let lease = format!(
            r#"{{"PublicIP":"172.29.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}}}"#
        );
        (format!("10.{}.{low}.0-24", 100 + usize::from(high)), lease)
    };
    (0..count).map(ghost).collect()
}

fn wait_peers(node: &Node, count: usize) -> Result<()> {
    wait_for("the node to follow the leases", DEADLINE, || {
        node.check_running()?;
        node.subnet_env()?;
        let mapped = node.mapped_subnets()?.len();
        ensure!(mapped == count, "{} maps {mapped} of {count}", node.name);
        Ok(())
    })
}

fn fast_of(node: &Node, from: &Endpoint, to: &Endpoint) -> Result<u64> {
    let before = node.counters()?;
    tcp::transfer(from, to, tcp::Spec::small_writes(50_000, 500))?;
    Ok(node.counters()?.since(&before).fast(Hook::Egress))
}

fn guarded(node: &Node) -> Result<bool> {
    Ok(node.attached(NODE_INTERFACE)?.contains_key("guard"))
}

fn pod(node: &Node) -> Result<Endpoint> {
    let pod = node.add_pod("a", Attachment::Bridge)?.endpoint();
    ping::once(&pod, node.subnet_env()?.gateway.ip())?;
    Ok(pod)
}

#[test]
fn a_peer_that_finds_no_room_has_the_kernel_tier_until_there_is_some() {
    // Subnets of the nodes come before those of the ghosts.
    let config = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"10.1.255.0","Backend":{"Type":"vxlan"}}"#;
    scenario(Lab::builder().nodes(2).config(config), |lab| {
        let (crowded, late) = (lab.node(0), lab.node(1));
        let ghosts = ghosts(ROOM);
        lab.store().put_leases(&ghosts)?;
        crowded.start_agent(lab.store(), &["--xdp=generic"])?;
        wait_peers(crowded, ROOM)?;
        let own = pod(crowded)?;
        ensure!(guarded(crowded)?, "the guard is not attached");

        late.start_agent(lab.store(), &[])?;
        wait_peers(late, ROOM)?;
        let other = pod(late)?;
        wait_for("the node without room to say so", DEADLINE, || {
            let log = crowded.with_agent(|agent| Ok(agent.log()))?;
            ensure!(log.contains(WARNING), "nothing in the log");
            Ok(())
        })?;
        wait_for(
            "the peer to be reached by the kernel tier",
            DEADLINE,
            || ping::once(&own, other.address).map(drop),
        )?;
        ensure!(guarded(crowded)?, "the guard is gone");
        let fast = fast_of(crowded, &own, &other)?;
        ensure!(fast == 0, "{fast} packets to a peer without an entry");
        let status = crowded
            .operator(&["status"])
            .err()
            .map(|error| format!("{error:#}"));
        ensure!(
            status.as_ref().is_some_and(|text| text.contains(WARNING)),
            "status says {status:?}"
        );

        let (key, _) = &ghosts[0];
        lab.store().delete_lease(key)?;
        wait_for("room for the peer", DEADLINE, || {
            let mapped = crowded.mapped_subnets()?;
            let subnet = late.subnet_env()?.subnet()?;
            ensure!(mapped.contains(&subnet), "{subnet} is not mapped");
            let fast = fast_of(crowded, &own, &other)?;
            ensure!(fast > 50, "{fast} packets were fast");
            Ok(())
        })?;
        let log = crowded.with_agent(|agent| Ok(agent.log()))?;
        let warnings = log.lines().filter(|line| line.contains(WARNING)).count();
        ensure!(warnings == 1, "{warnings} warnings");
        Ok(())
    });
}
