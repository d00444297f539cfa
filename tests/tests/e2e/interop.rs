//! Our node and stand-ins for stock flannel nodes are peers of one cluster, in both directions.

use anyhow::{Context as _, Result, ensure};
use ipnetwork::Ipv4Network;
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    lab::{Lab, Node, scenario},
    traffic::{Endpoint, ping, tcp, udp},
};
use serde_json::Value;

/// n1 runs the agent; n2, and n3 behind the router, are stand-ins.
fn mixed_cluster(lab: &Lab) -> Result<()> {
    lab.start_agent(lab.node(0), &[])?;
    lab.start_stock(lab.node(1), "10.5.200.0/24")?;
    lab.start_stock(lab.node(2), "10.5.201.0/24")?;
    lab.add_pods(1)?;
    lab.wait_converged()
}

fn pod(node: &Node) -> Endpoint {
    node.pods()[0].endpoint()
}

#[test]
fn stock_nodes_and_ours_exchange_pings_tcp_and_udp_both_ways() {
    scenario(Lab::builder().nodes(2).routed_nodes(1), |lab| {
        mixed_cluster(lab)?;
        lab.ping_matrix()?;
        let ours = pod(lab.node(0));
        for stock in &lab.nodes()[1..] {
            let theirs = pod(stock);
            for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
                ping::all(from, to.address, 10)?;
                tcp::transfer(from, to, tcp::Spec::bulk(16 << 20))?;
                tcp::transfer(from, to, tcp::Spec::small_writes(100_000, 100))?;
                udp::echo_each(from, to, &[8, 100, 1422, 3000], 20)?.ensure_lossless()?;
                udp::send_segmented(from, to, 1200, 40, 5)?.ensure_lossless()?;
            }
        }
        let counted = lab.node(0).counters()?;
        for hook in [Hook::Egress, Hook::Ingress] {
            let fast = counted.packets(hook, Outcome::FastTunnel);
            ensure!(fast > 500, "our side hardly used its fast path:\n{counted}");
        }
        Ok(())
    });
}

#[test]
fn a_stock_node_reads_our_lease_as_one_of_its_own() {
    scenario(Lab::builder().nodes(1), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        let [lease] = &lab.store().leases()?[..] else {
            anyhow::bail!("not one lease")
        };
        let subnet: Ipv4Network = lease.subnet_key.replace('-', "/").parse()?;
        ensure!(subnet == lab.node(0).subnet_env()?.subnet()?, "{lease:?}");
        let value: Value = serde_json::from_str(&lease.value)?;
        let mac = value["BackendData"]["VtepMAC"]
            .as_str()
            .context("no VtepMAC")?;
        ensure!(
            lab.node(0).mac("flannel.1")?.to_string() == mac,
            "{lease:?}"
        );
        let exact = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#,
            lab.node(0).address
        );
        ensure!(
            lease.value == exact,
            "flannel writes\n{exact}\nthe agent wrote\n{}",
            lease.value
        );
        let ttl = lab.store().lease_ttl(&lease.subnet_key)?;
        ensure!(
            ttl.is_some_and(|ttl| (86_000..=86_400).contains(&ttl)),
            "TTL {ttl:?}"
        );
        Ok(())
    });
}

#[test]
fn the_device_is_the_one_flannel_makes() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.start_stock(lab.node(1), "10.5.200.0/24")?;
        lab.wait_converged()?;
        let describe = |node: &Node| -> Result<(String, String)> {
            let link = node.cmd("ip", ["-d", "link", "show", "flannel.1"])?;
            let settings = link.lines().find(|line| line.contains("vxlan id"));
            let settings = settings.with_context(|| format!("no vxlan settings in\n{link}"))?;
            let settings = settings.replace(&node.address.to_string(), "LOCAL");
            let mtu = link
                .split_whitespace()
                .skip_while(|word| *word != "mtu")
                .nth(1);
            Ok((settings, mtu.unwrap_or_default().to_owned()))
        };
        let (ours, theirs) = (describe(lab.node(0))?, describe(lab.node(1))?);
        ensure!(ours == theirs, "ours\n{ours:?}\nflannel's\n{theirs:?}");
        Ok(())
    });
}

#[test]
fn a_changed_vtep_mac_of_a_stock_node_is_followed() {
    scenario(Lab::builder().nodes(2), |lab| {
        lab.start_agent(lab.node(0), &[])?;
        lab.start_stock(lab.node(1), "10.5.200.0/24")?;
        lab.add_pods(1)?;
        lab.wait_converged()?;
        lab.ping_matrix()?;
        // What a reboot of the stock node does: the device comes back with another MAC.
        let stock = lab.node(1);
        stock.cmd("ip", ["link", "delete", "flannel.1"])?;
        lab.start_stock(stock, "10.5.200.0/24")?;
        lab.wait_converged()?;
        let ours = pod(lab.node(0));
        overlay_tests::wait::wait_for(
            "pods to talk through the new device",
            std::time::Duration::from_secs(5),
            || ping::all(&ours, pod(stock).address, 3).map(drop),
        )
    });
}
